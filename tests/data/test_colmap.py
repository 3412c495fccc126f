import hashlib
import struct
from dataclasses import fields, replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra import numpy as hnp
from tiny_scene import make_model

from scene_distill.core.errors import UserError
from scene_distill.data.colmap import (
    MODEL_PARAMS,
    ColmapCamera,
    ColmapImage,
    ColmapModel,
    ColmapPoints,
    read_model,
    seen_points,
    write_model,
)

FOLDERS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N"), include_characters=" _-."), min_size=1, max_size=12)


@st.composite
def models(draw):
    cameras = {}
    for number in range(1, draw(st.integers(1, 3)) + 1):
        model = draw(st.sampled_from(sorted(MODEL_PARAMS)))
        params = tuple(draw(st.lists(NUMBERS, min_size=MODEL_PARAMS[model], max_size=MODEL_PARAMS[model])))
        cameras[number] = ColmapCamera(number, model, draw(st.integers(1, 9999)), draw(st.integers(1, 9999)), params)
    images = []
    for number in range(draw(st.integers(0, 4))):
        keypoints = draw(st.integers(0, 5))
        images.append(
            ColmapImage(
                number + 1,
                draw(hnp.arrays(float, 4, elements=NUMBERS)),
                draw(hnp.arrays(float, 3, elements=NUMBERS)),
                draw(st.sampled_from(sorted(cameras))),
                "x" + draw(NAMES).strip() + f"{number}.jpg",
                draw(hnp.arrays(float, (keypoints, 2), elements=NUMBERS)),
                draw(hnp.arrays(np.int64, keypoints, elements=st.integers(-1, 2**40))),
            )
        )
    lengths = draw(st.lists(st.integers(0, 4), max_size=5))
    count, total = len(lengths), sum(lengths)
    ids = st.integers(0, 2**31 - 1)
    points = ColmapPoints(
        np.arange(count, dtype=np.int64) * 3 + 1,
        draw(hnp.arrays(float, (count, 3), elements=NUMBERS)),
        draw(hnp.arrays(np.uint8, (count, 3))),
        draw(hnp.arrays(float, count, elements=NUMBERS)),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        draw(hnp.arrays(np.int32, total, elements=ids)),
        draw(hnp.arrays(np.int32, total, elements=ids)),
    )
    return ColmapModel(cameras, tuple(images), points)


def assert_same(left: ColmapModel, right: ColmapModel) -> None:
    assert left.cameras == right.cameras
    assert len(left.images) == len(right.images)
    for a, b in [*zip(left.images, right.images, strict=True), (left.points, right.points)]:
        for field in fields(a):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@FOLDERS
@given(model=models(), kind=st.sampled_from(["bin", "txt"]))
def test_what_is_written_reads_back_exactly(tmp_path, model, kind):
    folder = tmp_path / kind
    write_model(model, folder, kind)
    assert_same(read_model(folder), model)


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_pycolmap_reads_our_models(tmp_path, kind):
    pycolmap = pytest.importorskip("pycolmap")
    ours = make_model()
    write_model(ours, tmp_path, kind)
    theirs = pycolmap.Reconstruction(tmp_path)
    assert theirs.num_points3D() == len(ours.points) and theirs.num_reg_images() == len(ours.images)
    image = theirs.find_image_with_name("photo_03.jpg")
    np.testing.assert_allclose(image.cam_from_world().matrix(), ours.images[3].cam_from_world()[:3], atol=1e-12)
    np.testing.assert_array_equal(theirs.points3D[9].xyz, ours.points.xyz[2])
    assert theirs.points3D[9].track.length() == np.diff(ours.points.offsets)[2]


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_we_read_pycolmaps_models(tmp_path, kind):
    pycolmap = pytest.importorskip("pycolmap")
    ours = make_model()
    write_model(ours, tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    theirs = pycolmap.Reconstruction(tmp_path / "ours")
    theirs.write_binary(tmp_path / "theirs") if kind == "bin" else theirs.write_text(tmp_path / "theirs")
    read = read_model(tmp_path / "theirs")
    left, right = seen_points(read), seen_points(ours)
    row_of = {int(point_id): row for row, point_id in enumerate(ours.points.ids)}
    for image in read.images:
        rows = sorted(row_of[int(point_id)] for point_id in read.points.ids[left[image.id]])
        np.testing.assert_array_equal(rows, right[image.id])
        ours_image = next(i for i in ours.images if i.name == image.name)
        np.testing.assert_allclose(image.cam_from_world(), ours_image.cam_from_world(), atol=1e-9)


def test_points_seen_are_known_from_keypoints_or_from_tracks():
    model = make_model()
    expected = {image.id: np.arange((image.id - 1) % 3, 50, 3) for image in model.images}
    bare = [replace(i, points2d=np.zeros((0, 2)), point_ids=np.zeros(0, np.int64)) for i in model.images]
    trackless = ColmapPoints.without_tracks(model.points.xyz, model.points.colors)
    trackless = replace(trackless, ids=model.points.ids)
    shuffled = model.points.ids[::-1].copy()
    for variant in (model, replace(model, images=tuple(bare)), replace(model, points=trackless)):
        for image_id, rows in seen_points(variant).items():
            np.testing.assert_array_equal(rows, expected[image_id])
    reverse = seen_points(replace(model, points=replace(trackless, ids=shuffled)))
    np.testing.assert_array_equal(reverse[1], np.sort(49 - expected[1]))


@FOLDERS
@given(data=st.data())
def test_a_damaged_file_is_told_in_one_sentence(tmp_path, data):
    kind = data.draw(st.sampled_from(["bin", "txt"]))
    folder = tmp_path / kind
    write_model(make_model(3, 6), folder, kind)
    path = folder / f"{data.draw(st.sampled_from(['cameras', 'images', 'points3D']))}.{kind}"
    content = bytearray(path.read_bytes())
    cut = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:cut]
    else:
        content[cut] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        read_model(folder)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("stem", "keep"), [("cameras", 30), ("images", 100), ("points3D", 300)])
def test_a_truncated_binary_file_is_named(tmp_path, stem, keep):
    write_model(make_model(), tmp_path)
    path = tmp_path / f"{stem}.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{stem}\.bin is damaged"):
        read_model(tmp_path)


def test_a_fisheye_camera_is_refused_by_name(tmp_path):
    write_model(make_model(), tmp_path, "txt")
    (tmp_path / "cameras.txt").write_text("1 OPENCV_FISHEYE 40 30 35 35 20 15 0 0 0 0\n")
    with pytest.raises(UserError, match=r"camera 1 .*OPENCV_FISHEYE"):
        read_model(tmp_path)
    write_model(make_model(), tmp_path / "b")
    (tmp_path / "b" / "cameras.bin").write_bytes(struct.pack("<QiiQQ", 1, 4, 99, 40, 30))
    with pytest.raises(UserError, match="number 99"):
        read_model(tmp_path / "b")


def test_text_comments_and_empty_keypoint_lines(tmp_path: Path):
    (tmp_path / "cameras.txt").write_text("# comment\n1 SIMPLE_RADIAL 40 30 35 20 15 0.1\n")
    (tmp_path / "images.txt").write_text("# c\n1 1 0 0 0 0 0 5 1 a b.jpg\n\n2 1 0 0 0 0 0 6 1 c.jpg\n1.5 2.5 -1\n\n")
    model = read_model(tmp_path)
    assert [image.name for image in model.images] == ["a b.jpg", "c.jpg"]
    assert model.images[0].point_ids.size == 0 and model.images[1].point_ids.tolist() == [-1]
    assert model.cameras[1].lens().k1 == 0.1 and len(model.points) == 0


def test_the_shared_aerial_model_is_written_byte_for_byte(tmp_path, aerial_set):
    source = aerial_set / "sparse" / "0"
    write_model(read_model(source), tmp_path)
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        digests = [hashlib.blake2b((folder / name).read_bytes()).digest() for folder in (source, tmp_path)]
        assert digests[0] == digests[1], name
