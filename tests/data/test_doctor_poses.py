"""Cameras that are where they should not be are found; angles, heights and scale are right on known geometry."""

from pathlib import Path

import numpy as np
import pytest

from scene_distill.core.cameras import Camera, look_at
from scene_distill.data import doctor_poses
from scene_distill.data.doctor_poses import examine_poses, pose_problems
from scene_distill.data.scene import Frame, Scene

UP = np.array([0.0, 0.0, 1.0])


def ground(count: int = 12) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-5, 5, count), np.linspace(-5, 5, count))
    return np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)


def camera(center, target=(0, 0, 0), up=UP) -> Camera:
    return Camera(100, 80, 90.0, 90.0, 50.0, 40.0, look_at(np.array(center, float), np.array(target, float), up))


def scene(cameras: list[Camera], points: np.ndarray, seen: list[np.ndarray] | None = None) -> Scene:
    seen = seen or [np.arange(len(points))] * len(cameras)
    frames = tuple(
        Frame(f"{k:02d}.jpg", Path(f"{k:02d}.jpg"), c, s) for k, (c, s) in enumerate(zip(cameras, seen, strict=True))
    )
    return Scene(Path("."), frames, points, np.zeros((len(points), 3), np.uint8), frozenset(), UP)


def ring(count: int = 10, radius: float = 8.0, height: float = 6.0) -> list[Camera]:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [camera((radius * np.cos(a), radius * np.sin(a), height)) for a in angles]


def test_facts_of_a_ring_are_those_of_its_geometry():
    found = examine_poses(scene(ring(), ground()))
    tilt = np.degrees(np.arctan2(6, 8))
    assert found.down == pytest.approx((tilt, tilt, tilt)) and found.level == pytest.approx(0, abs=1e-6)
    assert found.height == pytest.approx(6) and found.spacing == pytest.approx(2 * 8 * np.sin(np.pi / 10))
    assert found.groups == [10] and pose_problems(found, "metre") == []


def test_parallax_is_the_angle_between_the_rays():
    two = [camera((-1, 0, 1)), camera((1, 0, 1)), camera((0, 0, 1.2), up=np.array([0.0, 1.0, 0.0]))]
    found = examine_poses(scene(two, np.zeros((1, 3)), [np.array([0])] * 3))
    assert found.parallax == pytest.approx(90)
    far = examine_poses(scene(ring(radius=8, height=2000), ground()))
    assert 0 < far.parallax < 1 and any("depth is uncertain" in what for what, _ in pose_problems(far, "metre"))


def test_a_camera_far_off_a_rolled_one_and_one_that_sees_little_are_named():
    cameras = [*ring(), camera((300, 0, 6)), camera((8.1, 1.5, 6), up=np.array([0.0, 1.0, 1.0]))]
    seen = [np.arange(144)] * 12
    seen[3] = np.arange(10)
    found = examine_poses(scene(cameras, ground(), seen))
    assert found.far == ["10.jpg"] and found.rolled == ["11.jpg"] and found.few_points == ["03.jpg"]
    told = pose_problems(found, "metre")
    assert [names for _, names in told] == [["10.jpg"], ["11.jpg"], ["03.jpg"]]


def test_nadir_views_have_no_roll_and_portraits_are_not_outliers():
    north = np.array([0.0, 1.0, 0.0])
    down = [camera((x, y, 30), (x, y, 0), up=north) for x in range(3) for y in range(3)]
    found = examine_poses(scene(down, ground()))
    assert found.level is None and found.rolled == [] and found.down[1] == pytest.approx(90)
    turned = [camera(c.center, up=np.cross(UP, c.center)) for c in ring()]
    assert examine_poses(scene(turned, ground())).rolled == []


def test_photos_that_share_no_points_are_groups():
    points = np.concatenate([ground(), ground() + np.array([100, 0, 0])])
    seen = [np.arange(144)] * 7 + [np.arange(144, 288)] * 3
    found = examine_poses(scene(ring(), points, seen))
    assert found.groups == [7, 3] and found.apart == ["07.jpg", "08.jpg", "09.jpg"]
    assert pose_problems(found, "metre")[0][0] == "photos fall into 2 groups (7, 3) that share no points"
    seen[9] = np.arange(140, 288)
    assert examine_poses(scene(ring(), points, seen)).groups == [7, 3], "four points are too few"
    seen[9] = np.arange(139, 288)
    assert examine_poses(scene(ring(), points, seen)).groups == [10]


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_scale_is_held_against_gps(monkeypatch, scale):
    """Positions around 53 degrees north, where a degree of longitude is 67 km; the scene is ``scale`` times as wide."""
    cameras = ring(12, radius=60, height=40)
    places = {f"{k:02d}.jpg": c.center for k, c in enumerate(cameras)}

    def read_gps(path: Path):
        east, north, up = places[path.name]
        return 53.0 + north / 111_290.0, -1.5 + east / 67_137.0, 80.0 + up

    monkeypatch.setattr(doctor_poses, "read_gps", read_gps)
    smaller = [camera(c.center * scale) for c in cameras]
    found = examine_poses(scene(smaller, ground()))
    assert found.gps_photos == 12 and found.gps_scale == pytest.approx(scale, rel=0.01)
    told = [what for what, _ in pose_problems(found, "metre")]
    assert told == ([] if scale == 1 else ["lengths are 0.3 times what the photos' GPS says"])
    assert pose_problems(found, "unknown") == []


def test_a_scene_whose_points_nobody_saw_is_no_crash():
    found = examine_poses(scene(ring(4), ground(), [np.zeros(0, int)] * 4))
    assert found.parallax == 0 and found.height == 0 and found.groups == [1, 1, 1, 1]
