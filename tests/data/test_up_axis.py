import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.spatial.transform import Rotation

from scene_distill.core.cameras import Camera, look_at
from scene_distill.data.load import load_scene
from scene_distill.data.up_axis import up_axis

UP = np.array([0.0, 0.0, 1.0])


def flight(kind: str, rng: np.random.Generator) -> list[np.ndarray]:
    """cam_from_world of a kind of capture over the ground z = 0, with the wobble of a hand."""
    centers = rng.uniform(-60, 60, (40, 3)) * [1, 1, 0] + [0, 0, 60]
    targets, up = centers * [1, 1, 0], np.array([0.0, 1.0, 0.0])
    if kind == "oblique":  # one heading, 45 degrees down, plus other headings
        headings = rng.uniform(0, 2 * np.pi, 40)
        targets = targets + 60 * np.stack([np.cos(headings), np.sin(headings), 0 * headings], 1)
        up = UP
    elif kind == "street":
        centers = rng.uniform(-60, 60, (40, 3)) * [1, 1, 0] + [0, 0, 1.7]
        headings = rng.uniform(0, 2 * np.pi, 40)
        targets = centers + np.stack([np.cos(headings), np.sin(headings), 0 * headings], 1)
        up = UP
    elif kind == "line":  # one heading, one line
        centers, targets = centers * [0.02, 1, 1], targets * [0.02, 1, 1]
    poses = []
    for index, (center, target) in enumerate(zip(centers, targets, strict=True)):
        turn = np.array([0.0, (-1.0) ** index, 0.0]) if kind == "lawnmower" else up
        if kind == "turning":
            turn = np.array([np.cos(index), np.sin(index), 0.0])
        poses.append(look_at(center, target + rng.normal(0, 1.0, 3) * [1, 1, 0], turn))
    return poses


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["oblique", "street", "nadir", "line", "lawnmower", "turning"]),
    seed=st.integers(0, 1000),
)
def test_up_is_found_in_any_frame(kind, seed):
    rng = np.random.default_rng(seed)
    world = Rotation.random(random_state=seed).as_matrix()
    shift = rng.normal(0, 100, 3)
    scale = float(np.exp(rng.normal()))
    points = rng.uniform(-80, 80, (500, 3)) * [1, 1, 0] + [0, 0, 1] * rng.uniform(0, 8, (500, 1))
    cameras = []
    for pose in flight(kind, rng):
        center = -pose[:3, :3].T @ pose[:3, 3]
        moved = np.eye(4)
        moved[:3, :3] = pose[:3, :3] @ world.T
        moved[:3, 3] = -moved[:3, :3] @ (scale * world @ center + shift)
        cameras.append(Camera(100, 100, 80, 80, 50, 50, moved))
    up, how = up_axis(cameras, scale * points @ world.T + shift)
    assert np.linalg.norm(up) == pytest.approx(1)
    assert up @ world @ UP > np.cos(np.radians(6)), how


def test_one_heading_without_a_plane_takes_the_cameras_own_up():
    poses = [look_at(np.array([x, 0.0, 1.5]), np.array([x, 10.0, 1.5]), UP) for x in np.linspace(-0.2, 0.2, 9)]
    points = np.random.default_rng(0).uniform(-5, 5, (200, 3)) + np.array([0, 10, 0])
    up, how = up_axis([Camera(100, 100, 80, 80, 50, 50, pose) for pose in poses], points)
    np.testing.assert_allclose(up, UP, atol=1e-9)
    assert "mean" in how


def test_the_aerial_set_without_its_metadata(aerial_set):
    scene = load_scene(aerial_set)
    up, how = up_axis([frame.camera for frame in scene.frames], scene.points)
    assert up[2] > np.cos(np.radians(1)) and "nadir" in how
