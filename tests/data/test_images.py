import threading
import time
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from PIL import Image

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.data import images as images_module
from scene_distill.data.images import ImageCache, read_photo
from scene_distill.data.scene import Frame

ITEM = 3 * 20 * 15  # bytes of one cached photo below


def make_frame(folder: Path, index: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Frame:
    rng = np.random.default_rng(index)
    channels = () if mode == "L" else (len(mode),)
    pixels = rng.integers(0, 256, (size[1], size[0], *channels)).astype(np.uint8)
    path = folder / f"{index}.png"
    Image.fromarray(pixels, mode).save(path)
    return Frame(path.name, path, Camera(*size, 30, 30, size[0] / 2, size[1] / 2, np.eye(4)), np.zeros(0, np.int64))


@pytest.fixture
def frames(tmp_path):
    return [make_frame(tmp_path, index) for index in range(6)]


@pytest.fixture
def decoded(monkeypatch):
    """Names in the order they were decoded."""
    names: list[str] = []

    def read(frame: Frame, width: int | None = None) -> torch.Tensor:
        names.append(frame.name)
        return read_photo(frame, width)

    monkeypatch.setattr(images_module, "read_photo", read)
    return names


def test_shrinking_averages_areas(frames):
    original = np.asarray(Image.open(frames[0].path)).astype(float)
    photo = read_photo(frames[0], 20)
    assert photo.shape == (15, 20, 3) and photo.dtype == torch.uint8
    means = original.reshape(15, 2, 20, 2, 3).mean((1, 3))
    assert np.abs(photo.numpy() - means).max() <= 1.0
    np.testing.assert_array_equal(read_photo(frames[0]), original)
    np.testing.assert_array_equal(read_photo(frames[0], 40), original)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(width=st.integers(1, 60), size=st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_the_photo_fits_its_resized_camera(tmp_path, width, size):
    frame = make_frame(tmp_path, 0, size)
    camera = frame.camera.resized(width)
    assert read_photo(frame, width).shape == (camera.height, camera.width, 3)


def test_a_shrunk_photo_keeps_its_place(tmp_path):
    """A bright spot stays where the resized camera says it is, whatever the ratio and the decoder's own shrinking."""
    pixels = np.zeros((600, 800, 3), np.float32)
    y, x = np.mgrid[:600, :800] + 0.5
    pixels += 250 * np.exp(-((x - 517.0) ** 2 + (y - 211.0) ** 2) / (2 * 20**2))[..., None]
    path = tmp_path / "spot.jpg"
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=98)
    frame = Frame("spot", path, Camera(800, 600, 500, 500, 400, 300, np.eye(4)), np.zeros(0, np.int64))
    for width in (800, 400, 395, 200, 173, 100, 61):
        photo = read_photo(frame, width).numpy()[..., 0].astype(float)
        rows, columns = np.mgrid[: photo.shape[0], : photo.shape[1]] + 0.5
        camera = frame.camera.resized(width)
        found_x, found_y = (columns * photo).sum() / photo.sum(), (rows * photo).sum() / photo.sum()
        assert found_x / camera.width * 800 == pytest.approx(517, abs=1.5)
        assert found_y / camera.height * 600 == pytest.approx(211, abs=1.5)


def test_transparency_is_composited_on_black(tmp_path):
    frame = make_frame(tmp_path, 0, mode="RGBA")
    rgba = np.asarray(Image.open(frame.path)).astype(float)
    assert np.abs(read_photo(frame).numpy() - rgba[..., :3] * rgba[..., 3:] / 255).max() <= 1.0
    grey = make_frame(tmp_path, 1, mode="L")
    assert read_photo(grey).shape == (30, 40, 3)


def test_photos_that_changed_on_disk_are_refused(tmp_path, frames):
    Image.new("RGB", (41, 30)).save(frames[0].path)
    with pytest.raises(UserError, match="41x30 but its camera says 40x30"):
        read_photo(frames[0], 20)
    frames[1].path.write_bytes(frames[1].path.read_bytes()[:300])
    frames[2].path.unlink()
    for frame in frames[1:3]:
        with pytest.raises(UserError, match=f"{frame.name} cannot be decoded"):
            read_photo(frame, 20)


def test_least_recently_used_goes_first(frames, decoded):
    with ImageCache(frames, 20, 2 * ITEM) as cache:
        for index in (0, 1, 0, 2, 0, 1):
            torch.testing.assert_close(cache.get(frames[index]), read_photo(frames[index], 20))
        assert decoded == ["0.png", "1.png", "2.png", "1.png"]
        assert cache.kept_bytes == 2 * ITEM


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(budget=st.integers(-1, 5 * ITEM), asked=st.lists(st.integers(0, 5), max_size=20))
def test_the_budget_is_never_exceeded(tmp_path, budget, asked):
    frames = [make_frame(tmp_path, index) for index in range(6)]
    with ImageCache(frames, 20, budget) as cache:
        for step, index in enumerate(asked):
            if step % 3 == 0:
                cache.prefetch([frames[i] for i in asked[step : step + 4]])
            assert cache.get(frames[index]).shape == (15, 20, 3)
            assert 0 <= cache.kept_bytes <= max(budget, 0)


def test_a_lowered_budget_drops_photos(frames, decoded):
    with ImageCache(frames, 20, 6 * ITEM) as cache:
        for frame in frames:
            cache.get(frame)
        cache.limit(2 * ITEM)
        assert cache.kept_bytes == 2 * ITEM
        cache.get(frames[5])
        cache.get(frames[0])
        assert decoded[6:] == ["0.png"]


def test_a_budget_below_one_photo_still_works(frames, decoded):
    with ImageCache(frames, 20, ITEM - 1) as cache:
        cache.prefetch(frames)
        cache.get(frames[0])
        cache.get(frames[0])
        assert decoded == ["0.png", "0.png"] and cache.kept_bytes == 0


def test_prefetch_decodes_ahead_within_the_budget(frames, decoded):
    with ImageCache(frames, 20, 3 * ITEM) as cache:
        cache.prefetch(frames)
        _wait_until(lambda: len(decoded) == 3)
        time.sleep(0.05)
        assert decoded == ["0.png", "1.png", "2.png"]
        for index in (0, 1, 2):
            cache.get(frames[index])
        assert len(decoded) == 3
        cache.prefetch(frames[3:4])
        _wait_until(lambda: len(decoded) == 4)
    assert not any(thread.name == "photo-prefetch" for thread in threading.enumerate())


def test_a_photo_being_prefetched_is_not_decoded_twice(frames, monkeypatch):
    started, go_on, names = threading.Event(), threading.Event(), []

    def slow(frame: Frame, width: int | None = None) -> torch.Tensor:
        names.append(frame.name)
        started.set()
        go_on.wait(5)
        return read_photo(frame, width)

    monkeypatch.setattr(images_module, "read_photo", slow)
    with ImageCache(frames, 20, 10 * ITEM) as cache:
        cache.prefetch(frames[:1])
        assert started.wait(5)
        timer = threading.Timer(0.1, go_on.set)
        timer.start()
        assert cache.get(frames[0]).shape == (15, 20, 3)
        assert names == ["0.png"]


def test_a_photo_that_fails_in_the_background_is_told_by_get(frames):
    frames[0].path.unlink()
    with ImageCache(frames, 20, 10 * ITEM) as cache:
        cache.prefetch(frames[:2])
        with pytest.raises(UserError, match=r"0\.png"):
            cache.get(frames[0])
        assert cache.get(frames[1]).shape == (15, 20, 3)
    stranger = replace(frames[1], name="stranger")
    with pytest.raises(KeyError):
        cache.get(stranger)


def test_many_threads_share_one_cache(frames):
    errors = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            index = int(rng.integers(6))
            if not torch.equal(cache.get(frames[index]), expected[index]) or cache.kept_bytes > 3 * ITEM:
                errors.append(index)

    expected = [read_photo(frame, 20) for frame in frames]
    with ImageCache(frames, 20, 3 * ITEM) as cache:
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert not errors


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
