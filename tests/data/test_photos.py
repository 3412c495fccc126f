import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from relief import drone_poses, write_photos
from scipy.spatial.transform import Rotation

from scene_distill.core.errors import UserError
from scene_distill.data import photo_pairs
from scene_distill.data.geodesy import similarity
from scene_distill.data.lens import Lens
from scene_distill.data.load import CACHE, load_scene

LENS = Lens(320, 240, 264, 264, 160, 120, k1=-0.08, k2=0.01)
POSES = drone_poses(columns=3, rows=3)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Nine drone photos with GPS, one with a space in its name, beside one that cannot be opened."""
    folder = tmp_path_factory.mktemp("flight") / "photos"
    write_photos(folder, LENS, POSES, (28.0, 82.0))
    (folder / "p04.jpg").rename(folder / "p04 (1).jpg")
    (folder / "p99.jpg").write_bytes(b"not a photo")
    return folder


@pytest.mark.timeout(120)
def test_a_folder_of_photos_becomes_a_metric_scene(photos, monkeypatch):
    pytest.importorskip("pycolmap")
    monkeypatch.setattr("scene_distill.data.photos.FEATURES", 1000)
    told: list[tuple[str, int, int]] = []

    def stop_after_matching(*step) -> None:
        told.append(step)
        if step[0] == "placing cameras":
            raise Stop

    with pytest.raises(Stop):  # as if killed between two stages
        load_scene(photos, progress=stop_after_matching)
    assert ("finding features", 9, 9) in told and ("matching photos", 36, 36) in told
    assert not list((photos / CACHE).rglob("reconstruction.json"))

    told.clear()
    scene = load_scene(photos, progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "finding features"] == [("finding features", 9, 9)]
    assert [step for step in told if step[0] == "matching photos"] == [("matching photos", 36, 36)]
    assert ("placing cameras", 9, 9) in told and told[-1] == ("undistorting photos", 9, 9)

    assert [frame.name for frame in scene.frames][3:5] == ["p03.jpg", "p04 (1).jpg"] and len(scene.frames) == 9
    assert list(scene.skipped) == ["p99.jpg"] and "not an image" in scene.skipped["p99.jpg"]
    assert scene.metadata["unit"] == "metre" and scene.up.tolist() == [0, 0, 1]
    np.testing.assert_allclose(scene.metadata["origin"][:2], [28, 82], atol=1e-4)
    _assert_cameras_are_where_they_were(scene)
    assert all(len(frame.seen) > 50 for frame in scene.frames) and len(scene.points) > 300

    told.clear()
    again = load_scene(photos, progress=lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"checking photos", "undistorting photos"}
    np.testing.assert_array_equal(again.points, scene.points)


def _assert_cameras_are_where_they_were(scene) -> None:
    centers = np.stack([frame.camera.center for frame in scene.frames])
    truth = np.stack([-pose[:3, :3].T @ pose[:3, 3] for pose in POSES])
    scale, rotation, _ = similarity(centers, truth)
    assert scale == pytest.approx(1, abs=0.01)
    assert np.degrees(Rotation.from_matrix(rotation).magnitude()) < 1.0
    offsets = centers - truth
    assert np.abs(offsets - offsets.mean(0)).max() < 0.05
    for frame, pose in zip(scene.frames, POSES, strict=True):
        turn = frame.camera.cam_from_world[:3, :3] @ pose[:3, :3].T
        assert np.degrees(Rotation.from_matrix(turn).magnitude()) < 1.0
        assert frame.camera.fx == pytest.approx(LENS.fx, rel=0.03)


def test_photos_that_do_not_overlap_are_refused(tmp_path):
    pytest.importorskip("pycolmap")
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match=f"{tmp_path}: no two photos match"):
        load_scene(tmp_path)
    assert not list(tmp_path.rglob("reconstruction.json"))


def test_too_few_photos_are_refused_and_new_photos_are_noticed(tmp_path, photos):
    for name in ("p00.jpg", "p01.jpg"):
        shutil.copy(photos / name, tmp_path)
    with pytest.raises(UserError, match=r"2 usable photos.*at least 3"):
        load_scene(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="holds nothing"):
        load_scene(tmp_path)


def test_pairs_by_position_and_by_looks():
    grid = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0)), -1).reshape(-1, 2)
    pairs = photo_pairs.near_pairs(grid, neighbours=8)
    assert all(np.linalg.norm(grid[i] - grid[j]) < 3.2 and i < j for i, j in pairs)
    assert {(0, 1), (44, 45), (44, 54), (44, 55)} <= set(pairs) and len(pairs) < 8 * 100
    assert len(photo_pairs.all_pairs(5)) == 10

    rng = np.random.default_rng(0)
    places = [rng.integers(0, 256, (60, 128)) for _ in range(4)]  # four places, photographed in turn
    looks = [
        (places[i % 4][rng.permutation(60)[:40]] + rng.integers(-9, 10, (40, 128))).clip(0, 255) for i in range(100)
    ]
    alike = photo_pairs.alike_pairs([look.astype(np.uint8) for look in looks], rng)
    distant = [(i, j) for i, j in alike if j - i > photo_pairs.NEXT]
    assert np.mean([i % 4 == j % 4 for i, j in distant]) > 0.99 and len(alike) < 35 * 100
    assert {(i, i + 1) for i in range(99)} <= set(alike)
