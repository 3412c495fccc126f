import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_scene import SIZE, make_model, make_scene

from scene_distill.core.errors import UserError
from scene_distill.data.colmap import ColmapCamera, ColmapPoints, read_model
from scene_distill.data.load import load_scene


@pytest.mark.parametrize("folder", ["sparse/0", "sparse", "colmap/sparse/0"])
@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_colmap_layouts_give_the_same_scene(tmp_path, folder, kind):
    tiny = make_scene(tmp_path)
    for stale in (tmp_path / "sparse" / "0").iterdir():
        stale.unlink()
    scene = load_scene(tiny.save(kind, folder))
    assert [frame.name for frame in scene.frames] == [f"photo_{i:02d}.jpg" for i in range(10)]
    assert scene.test == {"photo_00.jpg", "photo_08.jpg"} and not scene.skipped
    np.testing.assert_array_equal(scene.points, tiny.model.points.xyz)
    np.testing.assert_array_equal(scene.frames[4].seen, np.arange(1, 50, 3))
    camera = scene.frames[4].camera
    assert (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy) == (*SIZE, 35, 36, 20, 15)
    np.testing.assert_allclose(camera.center, [5 * np.cos(0.8 * np.pi), 5 * np.sin(0.8 * np.pi), 2], atol=1e-12)
    np.testing.assert_allclose(scene.up, [0, 0, 1], atol=1e-9)


def test_shrunk_photos_shrink_their_cameras(tmp_path):
    tiny = make_scene(tmp_path, folder="images_2")
    for photo in (tmp_path / "images_2").iterdir():
        Image.open(photo).resize((20, 15)).save(photo)
    scene = load_scene(tiny.save())
    camera = scene.frames[0].camera
    assert (camera.width, camera.height, camera.fx, camera.cy) == (20, 15, 17.5, 7.5)


def test_held_out_photos_follow_the_list_or_the_step(tmp_path):
    tiny = make_scene(tmp_path)
    listed = tmp_path / "test.txt"
    listed.write_text("photo_03.jpg\n\nphoto_05.jpg\n")
    assert load_scene(tiny.root, test_list=listed).test == {"photo_03.jpg", "photo_05.jpg"}
    assert load_scene(tiny.root, test_every=5).test == {"photo_00.jpg", "photo_05.jpg"}
    assert not load_scene(tiny.root, test_every=0).test
    (tmp_path / "scene_info.json").write_text(json.dumps({"test_images": ["photo_01.jpg"]}))
    assert load_scene(tiny.root).test == {"photo_00.jpg", "photo_08.jpg"}
    listed.write_text("photo_99.jpg\n")
    with pytest.raises(UserError, match=r"photo_99\.jpg"):
        load_scene(tiny.root, test_list=listed)
    with pytest.raises(UserError, match="does not exist"):
        load_scene(tiny.root, test_list=tmp_path / "none.txt")
    with pytest.raises(UserError, match="0 to train on"):
        load_scene(tiny.root, test_every=1)
    with pytest.raises(UserError, match="-1"):
        load_scene(tiny.root, test_every=-1)


def test_scene_info_tells_up_unit_and_origin(tmp_path):
    tiny = make_scene(tmp_path)
    info = {"frame": "local ENU metres (x east, y north, z up)", "origin_lat_lon_alt": [28.0, -82.0, 3.0]}
    (tmp_path / "scene_info.json").write_text(json.dumps(info))
    scene = load_scene(tiny.root)
    assert scene.up.tolist() == [0, 0, 1] and scene.metadata["unit"] == "metre"
    assert scene.metadata["origin"] == [28.0, -82.0, 3.0]
    (tmp_path / "scene_info.json").write_text(json.dumps({"up": [0, -2, 0], "unit": "foot"}))
    scene = load_scene(tiny.root)
    assert scene.up.tolist() == [0, -1, 0] and scene.metadata["unit"] == "foot"
    (tmp_path / "scene_info.json").write_text("{")
    with pytest.raises(UserError, match="scene_info"):
        load_scene(tiny.root)


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a photo at all" * 10)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _wrong_size(path: Path) -> None:
    Image.new("RGB", (SIZE[0] + 1, SIZE[1])).save(path)


def _turned(path: Path) -> None:
    Image.new("RGB", (SIZE[1], SIZE[0])).save(path)


def _deep(path: Path) -> None:
    Image.fromarray(np.zeros((SIZE[1], SIZE[0]), np.uint16)).save(path, format="PNG")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_missing, "missing"),
        (_empty, "not an image"),
        (_garbage, "not an image"),
        (_truncated, "truncated"),
        (_wrong_size, "41x30 but its camera says 40x30"),
        (_turned, "EXIF orientation"),
        (_deep, "not 8-bit"),
    ],
)
def test_a_bad_photo_is_named_and_left_out(tmp_path, spoil, reason):
    tiny = make_scene(tmp_path)
    spoil(tmp_path / "images" / "photo_04.jpg")
    scene = load_scene(tiny.root)
    assert list(scene.skipped) == ["photo_04.jpg"] and reason in scene.skipped["photo_04.jpg"]
    assert str(tmp_path) not in scene.skipped["photo_04.jpg"]
    assert len(scene.frames) == 9 and scene.test == {"photo_00.jpg", "photo_08.jpg"}


@pytest.mark.parametrize(
    "fields",
    [
        {"quat": np.array([np.nan, 0, 0, 1])},
        {"quat": np.zeros(4)},
        {"translation": np.array([0, np.inf, 0])},
        {"camera_id": 77},
        {"name": "photo_03.jpg"},
    ],
)
def test_a_bad_pose_is_named_and_left_out(tmp_path, fields):
    tiny = make_scene(tmp_path)
    tiny.change_image(4, **fields)
    scene = load_scene(tiny.save())
    bad = 2 if "name" in fields else 1
    assert len(scene.skipped) == bad and len(scene.frames) == 10 - bad
    assert all(np.isfinite(frame.camera.cam_from_world).all() for frame in scene.frames)


def test_unusable_intrinsics_and_dropped_points(tmp_path):
    tiny = make_scene(tmp_path)
    xyz = tiny.model.points.xyz.copy()
    xyz[[1, 4]] = [[np.nan], [np.inf]]
    broken = ColmapCamera(2, "PINHOLE", *SIZE, (np.nan, 35.0, 20.0, 15.0))
    cameras = {**tiny.model.cameras, 2: broken}
    tiny.model = replace(tiny.model, cameras=cameras, points=replace(tiny.model.points, xyz=xyz))
    tiny.change_image(2, camera_id=2)
    scene = load_scene(tiny.save())
    assert list(scene.skipped) == ["photo_02.jpg"] and "intrinsics" in scene.skipped["photo_02.jpg"]
    assert scene.metadata["points_dropped"] == 2 and len(scene.points) == 48
    np.testing.assert_array_equal(scene.frames[1].seen, np.arange(5, 48, 3))
    np.testing.assert_array_equal(scene.points[scene.frames[1].seen], xyz[np.arange(7, 50, 3)])


def test_too_many_bad_photos_are_refused(tmp_path):
    tiny = make_scene(tmp_path)
    for index in range(6):
        (tmp_path / "images" / f"photo_{index:02d}.jpg").unlink()
    with pytest.raises(UserError, match=r"6 of 10 photos cannot be used.*6x, e\.g\. photo_00\.jpg.*missing"):
        load_scene(tiny.root)


def test_a_scene_needs_points(tmp_path):
    tiny = make_scene(tmp_path)
    tiny.model = replace(tiny.model, points=ColmapPoints.without_tracks(np.zeros((0, 3)), np.zeros((0, 3), np.uint8)))
    with pytest.raises(UserError, match="no 3D points"):
        load_scene(tiny.save())


def test_folders_that_hold_nothing_are_told_what_would_do(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"COLMAP folder.*transforms\.json.*folder of photos"):
            load_scene(path)
    (tmp_path / "readme.md").write_text("hello")
    with pytest.raises(UserError, match="is a file"):
        load_scene(tmp_path / "readme.md")
    tiny = make_scene(tmp_path / "scene")
    os.rename(tiny.root / "images", tiny.root / "pictures")
    with pytest.raises(UserError, match="no images/"):
        load_scene(tiny.root)


def test_notes_on_alpha_orientation_and_photos_without_pose(tmp_path):
    tiny = make_scene(tmp_path)
    images = tmp_path / "images"
    Image.new("RGBA", SIZE, (255, 0, 0, 128)).save(images / "photo_01.png")
    tiny.change_image(1, name="photo_01.png")
    with Image.open(images / "photo_02.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(images / "photo_02.jpg", exif=exif)
    scene = load_scene(tiny.save())
    assert scene.metadata["photos_with_alpha_on_black"] == 1
    assert scene.metadata["exif_orientation_ignored"] == 1
    assert scene.metadata["photos_without_pose"] == ["photo_01.jpg"]
    assert len(scene.frames) == 10


def test_a_model_without_tracks_sees_by_projection(tmp_path):
    tiny = make_scene(tmp_path)
    cloud = tiny.model.points
    tiny.model = replace(tiny.model, points=ColmapPoints.without_tracks(cloud.xyz, cloud.colors))
    for index in range(10):
        tiny.change_image(index, points2d=np.zeros((0, 2)), point_ids=np.zeros(0, np.int64))
    scene = load_scene(tiny.save())
    assert scene.metadata["seen_from"] == "projection"
    for frame in scene.frames:
        pixels, depth = frame.camera.project(scene.points)
        assert len(frame.seen) > 20 and (depth[frame.seen] > 0).all()
        assert ((pixels[frame.seen] >= 0) & (pixels[frame.seen] <= SIZE)).all()


def test_progress_is_told(tmp_path):
    tiny = make_scene(tmp_path)
    told = []
    load_scene(tiny.root, progress=lambda *step: told.append(step))
    assert told[-1] == ("checking photos", 10, 10) and len(told) == 10


def test_large_models_load_fast(tmp_path):
    """A million observations in under a second and a half; the file of points is the slow part."""
    count, views = 100_000, 10
    rng = np.random.default_rng(0)
    tiny = make_scene(tmp_path)
    cloud = tiny.model.points
    points = ColmapPoints(
        np.arange(count, dtype=np.int64),
        rng.normal(size=(count, 3)),
        np.zeros((count, 3), np.uint8),
        np.zeros(count),
        np.arange(count + 1, dtype=np.int64) * views,
        np.tile(np.arange(1, 11, dtype=np.int32), count),
        np.repeat(np.arange(count, dtype=np.int32), views),
    )
    images = [
        replace(image, points2d=np.zeros((count, 2)), point_ids=np.arange(count)) for image in make_model().images
    ]
    tiny.model = replace(tiny.model, images=tuple(images), points=points)
    tiny.save()
    assert len(cloud) == 50
    seconds = []
    for _ in range(3):
        start = time.process_time()
        scene = load_scene(tiny.root)
        seconds.append(time.process_time() - start)
    assert sum(len(frame.seen) for frame in scene.frames) == count * views
    assert min(seconds) < 1.5


def test_the_shared_aerial_set(aerial_set):
    seconds = []
    for _ in range(3):
        start = time.process_time()
        scene = load_scene(aerial_set)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 2.0
    info = json.loads((aerial_set / "scene_info.json").read_text())
    assert len(scene.frames) == 172 and scene.test == set(info["test_images"]) and len(scene.test) == 22
    assert scene.metadata["unit"] == "metre" and scene.up.tolist() == [0, 0, 1] and not scene.skipped
    model = read_model(aerial_set / "sparse" / "0")
    row_of = dict(zip(model.points.ids.tolist(), range(len(model.points)), strict=True))
    for frame in scene.frames[::40]:
        image = next(image for image in model.images if image.name == frame.name)
        pixels, depth = frame.camera.project(scene.points[[row_of[point] for point in image.point_ids.tolist()]])
        errors = np.linalg.norm(pixels - image.points2d, axis=1)
        assert np.quantile(depth, 0.01) > 40 and np.median(errors) < 0.5 and np.mean(errors) < 0.7
