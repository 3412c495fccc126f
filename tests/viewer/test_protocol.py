"""Messages from a browser: good ones become requests, anything else one sentence."""

import contextlib
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.viewer.protocol import (
    LARGEST_MESSAGE,
    PathRequest,
    PickRequest,
    RenderRequest,
    SteerRequest,
    number_of,
    parse,
)

POSE = np.eye(4).ravel().tolist()
CAMERA = {"pose": POSE, "fov": 0.8, "width": 64, "height": 48}


def message(**changes) -> dict:
    return {"type": "render", "id": 1, "camera": CAMERA, "layers": ["rgb"]} | changes


def test_a_render_request_says_what_is_drawn():
    request = parse(json.dumps(message(
        layers=["rgb", "depth"], blocks=[0, 2], crop=[0, 0, 0, 1, 2, 3], gain=2, depth_range=[1, 9], quality=70
    )))  # fmt: skip
    assert isinstance(request, RenderRequest)
    camera = request.camera
    assert (camera.width, camera.height) == (64, 48) and camera.fx == camera.fy == 24 / math.tan(0.4)
    assert request.layers == ("rgb", "depth") and request.selection.blocks == {0, 2}
    assert request.selection.crop[1].tolist() == [1, 2, 3] and request.look.depth_range_m == (1, 9)


def test_the_other_requests():
    assert isinstance(parse(json.dumps(message(type="pick", x=63, y=0))), PickRequest)
    assert isinstance(parse(json.dumps({"type": "steer", "command": "pause"})), SteerRequest)
    path = {"type": "path", "keyframes": [CAMERA, CAMERA], "seconds": 1, "fps": 10}
    assert isinstance(parse(json.dumps(path)), PathRequest)


TURNED = np.diag([1, 1, -1, 1]).ravel().tolist()
BAD = [
    message(type="sing"), message(type=["render"]), message(camera=None), message(camera=CAMERA | {"width": 0}),
    message(camera=CAMERA | {"width": 4096, "height": 4096}), message(camera=CAMERA | {"width": 64.5}),
    message(camera=CAMERA | {"pose": POSE[:15]}), message(camera=CAMERA | {"pose": [1] * 16}),
    message(camera=CAMERA | {"pose": TURNED}), message(camera=CAMERA | {"fov": 0}),
    message(camera=CAMERA | {"fov": True}),
    message(camera=CAMERA | {"pose": [*POSE[:3], 1e300, *POSE[4:]]}), message(layers=[]), message(layers=["rgb"] * 3),
    message(layers=["secrets"]), message(layers="rgb"), message(blocks=["a"]), message(blocks=[2**40]),
    message(crop=[1, 1, 1, 0, 0, 0]), message(crop=[0] * 5), message(gain=0), message(gain="4"),
    message(depth_range=[5, 1]), message(quality=101), message(id=-1), message(id="1"),
    message(type="pick", x=64, y=0), message(type="pick", x=0, y=-1),
    message(type="pick", x=0, y=0, purpose="p" * 99),
    {"type": "path", "keyframes": [CAMERA], "seconds": 1},
    {"type": "path", "keyframes": [CAMERA] * 2, "seconds": 600, "fps": 60},
    {"type": "path", "keyframes": [CAMERA, CAMERA | {"width": 65}], "seconds": 1},
    {"type": "steer", "command": "rm -rf"}, {"type": "steer"}, {}, [], 3, None, "render",
]  # fmt: skip


@pytest.mark.parametrize("wrong", BAD, ids=range(len(BAD)))
def test_a_wrong_message_is_refused_with_one_sentence(wrong):
    with pytest.raises(UserError) as refusal:
        parse(json.dumps(wrong))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300


@pytest.mark.parametrize("text", [
    "", "{", "nul", '{"type": "render", "type": 1}', b"\x00\x01", "[" * 50_000, "x" * (LARGEST_MESSAGE + 1),
    '{"type":"render","id":1,"camera":{"pose":[NaN,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1],"fov":0.8,"width":64,"height":48}}',
    '{"type":"render","id":1,"camera":{"pose":[1' + "0" * 400 + "]}}",
])  # fmt: skip
def test_what_is_no_message_is_refused(text):
    with pytest.raises(UserError):
        parse(text)


@pytest.mark.parametrize("text, number", [
    ('{"type": "render", "id": 7}', 7), ('{"type": "render", "id": "7"}', None), ('{"id": true}', None),
    ("[7]", None), ("7", None),
    ("", None), (b"\x00\x01", None), ("[" * 50_000, None), ('{"id": 7, "x": "' + "x" * LARGEST_MESSAGE + '"}', None),
])  # fmt: skip
def test_a_refusal_names_the_number_where_there_is_one(text, number):
    assert number_of(text) == number


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["render", "pick", "path", "steer", "cancel"]), st.sampled_from(
    ["camera", "layers", "blocks", "crop", "gain", "depth_range", "quality", "id", "keyframes", "seconds", "x"]
), JSON)  # fmt: skip
def test_any_field_may_hold_anything(kind, field, value):
    whole = message(type=kind, x=1, y=1, keyframes=[CAMERA] * 2, seconds=1, command="pause")
    with contextlib.suppress(UserError):
        parse(json.dumps(whole | {field: value}))
