"""What the viewer says of a Gaussian: its age, its class, and the layers of both."""

import shutil

import numpy as np
import pytest
import torch

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.errors import UserError
from scene_distill.representations.semantics import Semantics
from scene_distill.representations.splats import Splats
from scene_distill.viewer.browser_splats import PackedSplats, drawn_by_browsers
from scene_distill.viewer.layers import Looked, draw, layers_of
from scene_distill.viewer.picking import pick
from scene_distill.viewer.scenes import EVERYTHING, ViewedSplats
from scene_distill.viewer.sessions import open_session

FRONT = Camera(32, 32, 32.0, 32.0, 16, 16, look_at(np.zeros(3), np.array([0, 0, 9.0]), np.array([0, -1.0, 0])))


def two_walls(**known) -> ViewedSplats:
    """A splat left of the middle and one right of it, nearly opaque, 4 m away."""
    splats = Splats.from_points(np.array([[-1.2, 0, 4.0], [1.2, 0, 4.0]]), np.full((2, 3), 128, np.uint8))
    splats.log_scales.fill_(np.log(0.3))
    splats.opacity_logits.fill_(6.0)
    return ViewedSplats(splats, np.zeros(3), **known)


def shares(scene: ViewedSplats, x: int, **known):
    return pick(scene, FRONT, EVERYTHING, x, 16, **known).shares[0]


def missing(scene) -> dict[str, str]:
    return {layer["id"]: layer["missing"] for layer in layers_of(scene, None, False, "the file is silent")}


def test_age_is_the_steps_of_the_block_since_birth():
    scene = two_walls(born=torch.tensor([0, 30], dtype=torch.int32), blocks=torch.tensor([0, 1], dtype=torch.int32))
    assert (shares(scene, 6, steps={0: 50, 1: 80}).born, shares(scene, 6, steps={0: 50, 1: 80}).age) == (0, 50)
    assert (shares(scene, 25, steps={0: 50, 1: 80}).born, shares(scene, 25, steps={0: 50, 1: 80}).age) == (30, 50)
    assert (shares(scene, 25, steps={0: 50}).born, shares(scene, 25, steps={0: 50}).age) == (30, None)
    image = draw("age", Looked(scene, None, FRONT)).image
    assert not missing(scene)["age"] and float(image[16, 25].sum()) > 2 * float(image[16, 6].sum()) > 0


def test_without_births_the_age_is_unknown():
    unknown = torch.full((2,), -1, dtype=torch.int32)
    for scene in (two_walls(), two_walls(born=unknown)):
        assert shares(scene, 6, steps={0: 9}).born is None and shares(scene, 6, steps={0: 9}).age is None
        assert missing(scene)["age"]
    half = two_walls(born=torch.tensor([-1, 3], dtype=torch.int32))
    assert shares(half, 6).born is None and shares(half, 25).born == 3 and not missing(half)["age"]
    with pytest.raises(UserError):
        draw("age", Looked(two_walls(), None, FRONT))


def test_classes_have_colours_names_and_a_legend():
    labels = Semantics("label", labels=torch.tensor([1, -1]), names=("road", "tree"))
    scene = two_walls(semantics=labels)
    assert shares(scene, 6).kind == "tree" and shares(scene, 25).kind == "no class"
    picture = draw("semantics", Looked(scene, None, FRONT))
    [tree, road] = picture.legend["classes"]
    assert (tree["name"], tree["count"], road["count"], picture.legend["more"]) == ("tree", 1, 0, 0)
    assert np.allclose(picture.image[16, 6] * 255, tree["color"], atol=8)
    grey = picture.image[16, 25]
    assert float(grey.max() - grey.min()) < 0.01 < float(grey.min())
    assert not missing(scene)["semantics"] and missing(two_walls())["semantics"] == "the file is silent"


def test_features_show_their_principal_components():
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    scene = two_walls(semantics=Semantics("f_sem_0 to f_sem_1", features=features))
    assert shares(scene, 6).kind is None
    picture = draw("semantics", Looked(scene, None, FRONT))
    assert picture.legend["unit"] == "f_sem_0 to f_sem_1" and picture.image[16, 6].sum() > 0


def test_a_run_knows_the_ages_of_what_it_shows_finished_or_not(town_run, tmp_path):
    session = open_session(town_run)
    assert session.looking.steps == {0: 24, 1: 24}
    found = pick(session.looking.scene, session.frames[5].camera.resized(96), EVERYTHING, 48, 36, session.looking.steps)
    assert found.shares and all(share.born + share.age == 24 for share in found.shares)
    copy = tmp_path / "cut-off"
    shutil.copytree(town_run, copy)
    (copy / "model.safetensors").unlink()
    committed = open_session(copy)
    assert committed.looking.steps == {0: 24, 1: 24}
    assert torch.equal(committed.looking.scene.born, session.looking.scene.born)


def test_a_browser_gets_splats_up_to_a_limit_packed_once(monkeypatch):
    scene, packed = two_walls(), PackedSplats()
    assert drawn_by_browsers(scene, 7)["address"] == "/splats/7"
    first = packed.of(scene, 7)
    assert first[:2] == b"\x1f\x8b" and packed.of(scene, 7) is first and packed.of(two_walls(), 8) is not first
    monkeypatch.setattr("scene_distill.viewer.browser_splats.MOST_SPLATS", 1)
    assert "too many" in drawn_by_browsers(scene, 7)["missing"]
    with pytest.raises(UserError, match="too many"):
        packed.of(scene, 7)
