import json

import numpy as np
import pytest
from tiny_scene import SIZE, make_scene, ring_poses

from scene_distill.core.errors import UserError
from scene_distill.data.load import load_scene
from scene_distill.data.transforms import write_transforms


@pytest.fixture
def content(tmp_path):
    """A scene in tmp_path/transforms.json, without a COLMAP model beside it; returns the file's content."""
    write_transforms(load_scene(make_scene(tmp_path).root), tmp_path / "transforms.json")
    for part in (tmp_path / "sparse" / "0").iterdir():
        part.unlink()
    return json.loads((tmp_path / "transforms.json").read_text())


def save(tmp_path, content):
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    return tmp_path


def test_round_trip(tmp_path, content):
    original = load_scene(make_scene(tmp_path / "again").root)
    scene = load_scene(tmp_path)
    assert (
        scene.test == {"images/photo_00.jpg", "images/photo_08.jpg"}
        and scene.metadata["test_from"] == "transforms.json"
    )
    np.testing.assert_array_equal(scene.points, original.points)
    np.testing.assert_array_equal(scene.colors, original.colors)
    for left, right in zip(original.frames, scene.frames, strict=True):
        assert right.name == f"images/{left.name}"
        np.testing.assert_allclose(left.camera.cam_from_world, right.camera.cam_from_world, atol=1e-12)
        assert (left.camera.fx, left.camera.fy, left.camera.cy) == (right.camera.fx, right.camera.fy, right.camera.cy)
        pixels, depth = right.camera.project(scene.points[right.seen])
        assert (depth > 0).all() and (pixels >= 0).all() and (pixels <= SIZE).all()
    assert load_scene(tmp_path / "transforms.json").test == scene.test


def test_matrices_have_opengl_axes(tmp_path, content):
    matrix = np.array(content["frames"][3]["transform_matrix"])
    pose = ring_poses(10)[3]
    np.testing.assert_allclose(matrix[:3, 2], -pose[2, :3], atol=1e-12)  # backward
    np.testing.assert_allclose(matrix[:3, 1], -pose[1, :3], atol=1e-12)  # up
    np.testing.assert_allclose(matrix[:3, 0], pose[0, :3], atol=1e-12)


def test_shared_intrinsics_and_field_of_view(tmp_path, content):
    for frame in content["frames"]:
        for key in ("w", "h", "fl_x", "fl_y", "cx", "cy"):
            frame.pop(key)
    content["camera_angle_x"] = 2 * np.arctan(20 / 33.0)
    camera = load_scene(save(tmp_path, content)).frames[0].camera
    assert camera.fx == pytest.approx(33.0) and camera.fy == camera.fx and (camera.cx, camera.cy) == (20, 15)
    content |= {"fl_x": 31.0, "fl_y": 32.0, "cx": 19.5, "cy": 14.5}
    content["frames"][2]["fl_x"] = 30.0
    scene = load_scene(save(tmp_path, content))
    assert [frame.camera.fx for frame in scene.frames[:4]] == [31, 31, 30, 31]


def test_splits_of_the_file(tmp_path, content):
    names = [frame["file_path"] for frame in content["frames"]]
    del content["test_filenames"]
    content["train_filenames"] = names[:7]
    assert load_scene(save(tmp_path, content)).test == set(names[7:])
    content["val_filenames"] = names[:1]
    assert load_scene(save(tmp_path, content)).test == set(names[:1])
    del content["val_filenames"], content["train_filenames"]
    assert load_scene(save(tmp_path, content)).test == {names[0], names[8]}


@pytest.mark.parametrize(
    "matrix",
    [
        None,
        "abc",
        [[1, 0], [0, 1]],
        np.full((4, 4), np.nan).tolist(),
        np.diag([2.0, 2, 2, 1]).tolist(),
        np.diag([1.0, 1, -1, 1]).tolist(),
        np.zeros((4, 4)).tolist(),
    ],
)
def test_matrices_that_are_no_pose_are_left_out(tmp_path, content, matrix):
    content["frames"][5]["transform_matrix"] = matrix
    scene = load_scene(save(tmp_path, content))
    assert list(scene.skipped) == ["images/photo_05.jpg"] and "rotation" in scene.skipped["images/photo_05.jpg"]


@pytest.mark.parametrize(
    ("key", "value"), [("fl_x", "wide"), ("fl_x", -3.0), ("w", None), ("w", 1e400), ("cx", float("nan"))]
)
def test_numbers_that_are_no_lens_are_left_out(tmp_path, content, key, value):
    content["frames"][5][key] = value
    scene = load_scene(save(tmp_path, content))
    assert list(scene.skipped) == ["images/photo_05.jpg"] and "intrinsics" in scene.skipped["images/photo_05.jpg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE"),
        ({"k3": 0.1}, "distortion k3"),
        ({"frames": "none"}, "list of frames"),
        ({"frames": []}, "0 photos"),
        ({"frames": [{"x": 1}]}, "list of frames"),
        ({"ply_file_path": "nowhere.ply"}, r"nowhere\.ply is missing"),
        ({"ply_file_path": None}, "no 3D points"),
        ({"ply_file_path": 7}, "ply_file_path that is not the name"),
        ({"ply_file_path": "p" * 501}, "ply_file_path that is not the name"),
        ({"ply_file_path": "p" * 300}, "is missing"),
        ({"frames": [{"file_path": "[" * 5000}]}, "list of frames"),
        ({"test_filenames": 2**24}, "test_filenames that are not a list"),
        ({"train_filenames": ["images/photo_01.jpg", {}]}, "train_filenames that are not a list"),
        ({"camera_model": []}, r"camera model \[\]"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, content, change, message):
    with pytest.raises(UserError, match=message):
        load_scene(save(tmp_path, {**content, **change}))


def test_broken_json_is_refused(tmp_path):
    for text in ('{"frames": [', "[" * 100_000):
        (tmp_path / "transforms.json").write_text(text)
        with pytest.raises(UserError, match="not readable JSON"):
            load_scene(tmp_path)


def test_applied_transform_is_carried_along(tmp_path, content):
    content["applied_transform"] = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]
    content["frames"][0]["mask_path"] = "masks/0.png"
    scene = load_scene(save(tmp_path, content))
    assert scene.metadata["applied_transform"] == content["applied_transform"]
    assert scene.metadata["masks_ignored"] == 1
