"""Small scenes made of cameras and points, for the tests of this room."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scene_distill.core import seeds
from scene_distill.core.cameras import Camera, look_at
from scene_distill.data.scene import Frame, Scene

UP = np.array([0.0, 0.0, 1.0])


def _scene(points, centers, targets, *, up=UP, test=frozenset(), tracks=True) -> Scene:
    frames = []
    for index, (center, target) in enumerate(zip(centers, targets, strict=True)):
        camera = Camera(64, 48, 40.0, 40.0, 32.0, 24.0, look_at(np.asarray(center), np.asarray(target), up))
        pixels, depth = camera.project(points)
        seen = np.flatnonzero((depth > 0) & (pixels >= 0).all(1) & (pixels < [64, 48]).all(1)) if tracks else []
        frames.append(Frame(f"{index:03d}.png", Path(f"{index:03d}.png"), camera, np.asarray(seen, dtype=np.int64)))
    colors = np.zeros((len(points), 3), np.uint8)
    return Scene(Path("town"), tuple(frames), np.asarray(points, float), colors, frozenset(test), up)


def _flight(points, *, height=60.0, side=7, slant=0.0, **options) -> Scene:
    low, high = np.quantile(points[:, :2], [0.02, 0.98], axis=0)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, side).T), -1).reshape(-1, 2)
    centers = np.column_stack([grid, np.full(len(grid), height)])
    ahead = np.where(np.arange(len(grid))[:, None] % 2, [slant, 0, -height], [-slant, 0, -height])
    return _scene(points, centers, centers + ahead, **options)


def _town(name="town", count=3000, length=240.0, width=150.0) -> np.ndarray:
    rng = seeds.numpy_generator("test", name)
    points = np.column_stack([rng.uniform(-length / 2, length / 2, count), rng.uniform(-width / 2, width / 2, count)])
    high = (np.sin(points[:, 0] / 9) > 0.4) & (np.cos(points[:, 1] / 9) > 0.4)
    return np.column_stack([points, np.where(high, rng.uniform(0, 12, count), rng.normal(0, 0.1, count))])


def _villages(name="villages", count=3000) -> np.ndarray:
    rng = seeds.numpy_generator("test", name)
    middles = np.array([[-80, -40], [60, 50], [90, -30], [-20, 10]])
    which = rng.choice(4, count, p=[0.6, 0.25, 0.1, 0.05])
    spread = np.array([6.0, 15.0, 4.0, 60.0])[which, None]
    return np.column_stack([middles[which] + rng.normal(size=(count, 2)) * spread, rng.uniform(0, 5, count)])


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    """(points, centers, targets) -> frames of 64 x 48 px that see exactly the points inside their image."""
    return _scene


@pytest.fixture(scope="session")
def flight() -> Callable[..., Scene]:
    """(points) -> a grid of cameras above them, looking straight down or ``slant`` metres ahead."""
    return _flight


@pytest.fixture(scope="session")
def town() -> Callable[..., np.ndarray]:
    """() -> flat ground with boxes on it."""
    return _town


@pytest.fixture(scope="session")
def villages() -> Callable[..., np.ndarray]:
    """() -> four dense clusters of very different sizes."""
    return _villages


@pytest.fixture(scope="session")
def suburb() -> Scene:
    """The aerial photographs of the shared data, 172 nadir views."""
    from scene_distill.data.load import load_scene

    root = Path(os.environ.get("SCENE_DISTILL_DATA", "../shared/data")) / "aerial_sheffield"
    if not root.is_dir():
        pytest.skip("the aerial set is not here; set SCENE_DISTILL_DATA to the folder that holds aerial_sheffield")
    return load_scene(root)
