import numpy as np
import pytest
import torch

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.errors import UserError
from scene_distill.representations.splats import Splats


def random_splats(count, bases=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(count, 3, generator=generator),
        log_scales=torch.randn(count, 3, generator=generator),
        quats=torch.randn(count, 4, generator=generator),
        opacity_logits=torch.randn(count, generator=generator),
        sh=torch.randn(count, bases, 3, generator=generator),
    )


def camera_at(center):
    return Camera(64, 48, 60.0, 60.0, 32.0, 24.0, look_at(np.array(center, float), np.zeros(3), np.array([0.0, 0, 1])))


def test_points_become_round_splats_as_large_as_their_spacing():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [100, 100, 100]], float)
    splats = Splats.from_points(points, np.full((5, 3), [255, 0, 51], np.uint8))
    scales = splats.log_scales.exp()
    torch.testing.assert_close(scales[0], torch.full((3,), 2.0))
    drawn = splats.gaussians(camera_at([5, 5, 5]))
    torch.testing.assert_close(drawn.opacities, torch.full((5,), 0.1))
    torch.testing.assert_close(drawn.features, torch.tensor([1.0, 0.0, 0.2]).repeat(5, 1), atol=1e-6, rtol=0)


def test_coincident_points_stay_finite_and_a_single_point_is_refused():
    splats = Splats.from_points(np.zeros((4, 3)), np.zeros((4, 3), np.uint8))
    assert torch.isfinite(splats.log_scales).all()
    with pytest.raises(UserError, match="at least 2"):
        Splats.from_points(np.zeros((1, 3)), np.zeros((1, 3), np.uint8))


def test_colours_follow_the_direction_from_camera_to_splat():
    splats = random_splats(1)
    sh = torch.zeros(1, 4, 3)
    sh[0, 3, 0] = -0.5  # -C1·x·(-0.5): red grows with x
    splats = Splats(torch.zeros(1, 3), splats.log_scales, splats.quats, splats.opacity_logits, sh)
    seen_along_plus_x = splats.gaussians(camera_at([-3, 0, 0])).features
    seen_along_minus_x = splats.gaussians(camera_at([3, 0, 0])).features
    assert seen_along_plus_x[0, 0] > 0.7 and seen_along_minus_x[0, 0] < 0.3
    assert seen_along_plus_x[0, 1] == pytest.approx(0.5)


def test_colours_are_not_negative():
    assert (random_splats(100, bases=16).gaussians(camera_at([2, 1, 0])).features >= 0).all()


def test_select_and_cat_undo_each_other():
    splats = random_splats(10)
    mask = torch.arange(10) % 3 == 0
    joined = Splats.cat([splats.select(mask), splats.select(~mask)])
    order = torch.cat([torch.nonzero(mask), torch.nonzero(~mask)]).squeeze(1)
    torch.testing.assert_close(joined.means, splats.means[order])
    torch.testing.assert_close(joined.sh, splats.sh[order])


def test_cat_fills_lower_degrees_with_zeros():
    joined = Splats.cat([random_splats(2, bases=1), random_splats(3, bases=9)])
    assert joined.sh_degree == 2 and len(joined) == 5
    assert (joined.sh[:2, 1:] == 0).all()


def test_mismatched_shapes_are_refused():
    splats = random_splats(3)
    with pytest.raises(ValueError, match="shapes"):
        Splats(splats.means, splats.log_scales, splats.quats, splats.opacity_logits[:2], splats.sh)
