"""Paths through keyframes, and the film that ffmpeg makes of them."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.errors import UserError
from scene_distill.viewer.flight import Film, cameras_along


def key(center, fx: float = 50.0) -> Camera:
    return Camera(64, 48, fx, fx, 32.0, 24.0, look_at(np.array(center, float), np.zeros(3), np.array([0.0, 0.0, 1.0])))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10_000), st.integers(1, 9))
def test_a_path_goes_through_its_keyframes_and_every_pose_is_rigid(count, seed, between):
    places = np.random.default_rng(seed).normal(size=(count, 3)) * 5 + 8
    keys = [key(place, 40.0 + 10 * index) for index, place in enumerate(places)]
    path = cameras_along(keys, (count - 1) * between + 1)
    for index, camera in enumerate(keys):
        found = path[index * between]
        assert np.allclose(found.cam_from_world, camera.cam_from_world, atol=1e-9)
        assert found.fx == pytest.approx(camera.fx)
    for camera in path:
        rotation = camera.cam_from_world[:3, :3]
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-9) and np.linalg.det(rotation) > 0


def test_a_straight_path_is_even():
    path = cameras_along([key((x, 10.0, 5.0)) for x in (0.0, 1.0, 2.0)], 9)
    steps = np.diff([camera.center[0] for camera in path])
    assert np.allclose(steps, 0.25, atol=1e-9)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_a_film_is_there_when_it_is_whole_and_only_then(tmp_path):
    film = Film(tmp_path / "films" / "a.mp4", (33, 18), 10)
    for step in range(5):
        film.add(torch.full((18, 33, 3), step / 5))
    assert not film.path.exists()
    film.finish()
    assert [path.name for path in film.path.parent.iterdir()] == ["a.mp4"]
    assert film.path.read_bytes()[4:8] == b"ftyp"
    other = Film(tmp_path / "films" / "b.mp4", (32, 18), 10)
    other.add(torch.zeros(18, 32, 3))
    other.abandon()
    assert [path.name for path in film.path.parent.iterdir()] == ["a.mp4"]


def test_without_ffmpeg_a_film_is_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ffmpeg is not installed"):
        Film(tmp_path / "a.mp4", (32, 18), 10)
