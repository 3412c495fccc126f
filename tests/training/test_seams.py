"""The seam metric on a flat ground cut in two, where the band is known in closed form."""

import numpy as np
import pytest
import torch

from scene_distill.blocks.bounds import ContractedSpace
from scene_distill.blocks.partition import Cell, Partition
from scene_distill.core.cameras import Camera, look_at
from scene_distill.renderers.splat import Rendering
from scene_distill.training.seams import BAND, SeamMeter, seam_pixels, surface_points

HEIGHT_M = 50.0
SPACE = ContractedSpace(np.eye(3), np.array([-40.0, -30.0, -1.0]), np.array([40.0, 30.0, 60.0]), 0.0)
TWO = Partition(SPACE, (Cell((0.0, 0.0, 0.0), (0.5, 1.0, 1.0)), Cell((0.5, 0.0, 0.0), (1.0, 1.0, 1.0))), "balanced")


def nadir(x: float = 0.0, width: int = 100) -> Camera:
    pose = look_at(np.array([x, 0.0, HEIGHT_M]), np.array([x, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    return Camera(width, width // 2, width / 1.0, width / 1.0, width / 2, width / 4, pose)


def rendering(camera: Camera, image: torch.Tensor, alpha: float = 1.0) -> Rendering:
    shape = (camera.height, camera.width)
    return Rendering(image, torch.full(shape, alpha), torch.full(shape, HEIGHT_M), torch.zeros(0, 2), torch.zeros(0, 2))


def test_surface_points_project_back_to_their_pixels():
    camera = nadir(7.0)
    depth = np.random.default_rng(0).uniform(20, 60, (camera.height, camera.width))
    pixels, depths = camera.project(surface_points(camera, depth))
    ys, xs = np.mgrid[: camera.height, : camera.width] + 0.5
    np.testing.assert_allclose(pixels, np.stack([xs, ys], -1).reshape(-1, 2), atol=1e-9)
    np.testing.assert_allclose(depths, depth.ravel(), atol=1e-9)


@pytest.mark.parametrize("width", [100, 300])
def test_the_band_is_a_share_of_the_width_around_the_border(width):
    camera = nadir(0.0, width)
    seam = seam_pixels(TWO, camera, np.full((camera.height, camera.width), HEIGHT_M))
    distance = np.abs(np.arange(width) + 0.5 - width / 2)
    assert np.array_equal(seam, np.broadcast_to(distance <= BAND * width, seam.shape))


def test_even_error_gives_one_and_twice_the_error_in_the_band_gives_two():
    camera = nadir(3.0)
    seam = torch.from_numpy(seam_pixels(TWO, camera, np.full((camera.height, camera.width), HEIGHT_M)))
    photo = torch.full((camera.height, camera.width, 3), 0.5)
    for factor in (0.5, 1.0, 2.0):
        meter = SeamMeter(TWO)
        error = torch.where(seam, 0.1 * factor, 0.1)[..., None]
        meter.add(camera, rendering(camera, photo + error), photo)
        found = meter.result()
        assert found["seam_ratio"] == pytest.approx(factor, rel=1e-5)
        assert found["elsewhere_psnr"] == pytest.approx(20.0, abs=1e-3)
        assert found["seam_psnr"] == pytest.approx(20.0 - 20 * np.log10(factor), abs=1e-3)
        assert found["seam_share"] == pytest.approx(float(seam.float().mean()))


def test_a_bad_view_does_not_look_like_a_seam():
    """Two views of even error, the bad one with more of the border: pooled means would differ, the ratio does not."""
    meter = SeamMeter(TWO)
    for x, error in ((0.0, 0.3), (24.0, 0.05)):
        camera = nadir(x)
        photo = torch.full((camera.height, camera.width, 3), 0.5)
        meter.add(camera, rendering(camera, photo + error), photo)
    assert meter.views == 2
    assert meter.result()["seam_ratio"] == pytest.approx(1.0, rel=1e-5)


def test_pixels_without_surface_and_scenes_of_one_block_count_nowhere():
    camera = nadir()
    photo = torch.zeros(camera.height, camera.width, 3)
    meter = SeamMeter(TWO)
    meter.add(camera, rendering(camera, photo, alpha=0.2), photo)
    assert meter.result() == {}
    assert SeamMeter.of({}) is None
    one = Partition(SPACE, (Cell((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),), "balanced")
    assert SeamMeter.of({"blocks": one.to_dict()}) is None
    assert SeamMeter.of({"blocks": TWO.to_dict()}) is not None
