import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image
from relief import Relief, drone_poses
from tiny_scene import make_scene

from scene_distill.core.errors import UserError
from scene_distill.data.colmap import ColmapCamera
from scene_distill.data.lens import Lens
from scene_distill.data.load import CACHE, load_scene
from scene_distill.data.undistortion import Undistorter, pinhole_of

LENSES = st.builds(
    Lens,
    width=st.just(160),
    height=st.just(120),
    fx=st.floats(100, 200),
    fy=st.floats(100, 200),
    cx=st.floats(60, 100),
    cy=st.floats(40, 80),
    k1=st.floats(-0.12, 0.12),
    k2=st.floats(-0.01, 0.03),
    p1=st.floats(-0.004, 0.004),
    p2=st.floats(-0.004, 0.004),
)


@settings(deadline=None, max_examples=50)
@given(lens=LENSES, seed=st.integers(0, 99))
def test_undistorted_is_the_inverse_of_distorted(lens, seed):
    rays = np.random.default_rng(seed).uniform(-0.6, 0.6, (50, 2))
    np.testing.assert_allclose(lens.undistorted(lens.distorted(rays)), rays, atol=1e-9)


def test_distortion_is_pycolmaps():
    pycolmap = pytest.importorskip("pycolmap")
    lens = Lens(160, 120, 150, 140, 81, 59, -0.1, 0.02, 0.003, -0.002)
    params = [lens.fx, lens.fy, lens.cx, lens.cy, lens.k1, lens.k2, lens.p1, lens.p2]
    camera = pycolmap.Camera(model="OPENCV", width=160, height=120, params=params)
    rays = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2))
    ours = lens.distorted(rays) * [lens.fx, lens.fy] + [lens.cx, lens.cy]
    theirs = [camera.img_from_cam(np.array([*ray, 1.0])) for ray in rays]
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(lens=LENSES)
def test_every_pixel_of_the_pinhole_comes_from_inside_the_photo(lens):
    pinhole = pinhole_of(lens)
    assert pinhole.is_pinhole and pinhole.fx == lens.fx and pinhole.fy == lens.fy
    u = (np.array([0.5, pinhole.width / 2, pinhole.width - 0.5]) - pinhole.cx) / pinhole.fx
    v = (np.array([0.5, pinhole.height / 2, pinhole.height - 0.5]) - pinhole.cy) / pinhole.fy
    pixels = lens.distorted(np.stack(np.meshgrid(u, v), -1)) * [lens.fx, lens.fy] + [lens.cx, lens.cy]
    assert (pixels >= -0.2).all() and (pixels <= np.array([lens.width, lens.height]) + 0.2).all()
    assert not lens.folds(np.stack(np.meshgrid(u, v), -1)).any()


def test_the_pinhole_is_as_large_as_pycolmaps():
    """COLMAP scales the image where we crop it, so areas are compared in solid angle: width over focal length."""
    pycolmap = pytest.importorskip("pycolmap")
    lens = Lens(160, 120, 150, 140, 80, 60, -0.1, 0.02)
    camera = pycolmap.Camera(model="OPENCV", width=160, height=120, params=[150, 140, 80, 60, -0.1, 0.02, 0, 0])
    theirs = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(blank_pixels=0.0), camera)
    ours = pinhole_of(lens)
    assert ours.width / ours.fx == pytest.approx(theirs.width / theirs.focal_length_x, rel=0.03)
    assert ours.height / ours.fy == pytest.approx(theirs.height / theirs.focal_length_y, rel=0.03)


def test_a_photo_through_a_lens_becomes_the_photo_of_a_pinhole(tmp_path):
    lens = Lens(200, 150, 160, 155, 104, 73, -0.12, 0.02, 0.002, -0.001)
    relief, pose = Relief(cells=300), drone_poses()[4]
    Image.fromarray(relief.photo(lens, pose)).save(tmp_path / "a.png")
    path, pinhole = Undistorter(tmp_path / "cache").undistort(tmp_path / "a.png", lens)
    made = np.asarray(Image.open(path)).astype(float)
    assert made.shape == (pinhole.height, pinhole.width, 3)
    expected = relief.photo(pinhole, pose).astype(float)
    straight = relief.photo(Lens(pinhole.width, pinhole.height, lens.fx, lens.fy, pinhole.cx + 1, pinhole.cy), pose)
    error, shifted = np.abs(made - expected).mean(), np.abs(made - straight).mean()
    assert error < 4.0 and error < 0.6 * shifted  # a pixel's shift is told apart from resampling


def test_work_that_was_stopped_goes_on_and_changes_are_seen(tmp_path):
    tiny = make_scene(tmp_path)
    camera = ColmapCamera(1, "SIMPLE_RADIAL", 40, 30, (35.0, 20.0, 15.0, -0.05))
    tiny.model = type(tiny.model)({1: camera}, tiny.model.images, tiny.model.points)
    tiny.save()
    calls = 0

    def stop(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        assert stage == "undistorting photos" and total == 10
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_scene(tmp_path, progress=stop)
    cache = tmp_path / CACHE / "undistorted"
    made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(made) == 4 and all(path.suffix == ".jpg" for path in made)
    scene = load_scene(tmp_path)
    assert len(scene.frames) == 10 and all(frame.path.parent == cache for frame in scene.frames)
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())
    camera = scene.frames[0].camera
    assert Image.open(scene.frames[0].path).size == (camera.width, camera.height) and camera.fx == 35.0
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "photo_00.jpg")
    assert load_scene(tmp_path).frames[0].path != scene.frames[0].path
    assert len(list(cache.iterdir())) == 11


@pytest.mark.parametrize("k1", [-0.2, -0.24, -0.35])
def test_folded_corners_are_cropped(k1):
    """r (1 + k1 r^2) never reaches the photo's corners at 1, with -0.24 not its sides at 0.8, with -0.35 not 0.66."""
    lens = Lens(160, 120, 100, 100, 80, 60, k1=k1)
    pinhole = pinhole_of(lens)
    corners = np.array([[pinhole.width - pinhole.cx, pinhole.height - pinhole.cy], [-pinhole.cx, -pinhole.cy]]) / 100
    assert not lens.folds(corners).any()
    assert pinhole.width > 130 and pinhole.height > 100
    if k1 == -0.35:
        assert lens.folds(corners * 1.05).any()


def test_lenses_that_fold_are_refused():
    with pytest.raises(UserError, match="cannot be undistorted"):
        pinhole_of(Lens(160, 120, 80, 80, 80, 60, k1=-5.0))


def test_a_cache_that_cannot_be_made_is_told(tmp_path):
    tiny = make_scene(tmp_path)
    camera = ColmapCamera(1, "SIMPLE_RADIAL", 40, 30, (35.0, 20.0, 15.0, -0.05))
    tiny.model = type(tiny.model)({1: camera}, tiny.model.images, tiny.model.points)
    tiny.save()
    (tmp_path / CACHE).write_text("a file in the way")
    with pytest.raises(UserError, match="cannot make"):
        load_scene(tmp_path)
