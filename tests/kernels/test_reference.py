"""The oracle itself: closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_scenes import draw_dense, random_scene

from scene_distill.core.geometry import covariances
from scene_distill.renderers import reference

IDENTITY_CAMERA = (
    torch.eye(4, dtype=torch.float64),
    torch.tensor([100.0, 100.0, 16.0, 16.0], dtype=torch.float64),
)


def one_gaussian(depth: float = 2.0, sigma: float = 0.05, opacity: float = 0.8) -> tuple[torch.Tensor, ...]:
    return (
        torch.tensor([[0.0, 0.0, depth]], dtype=torch.float64),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64),
        torch.full((1, 3), sigma, dtype=torch.float64),
        torch.tensor([opacity], dtype=torch.float64),
    )


def test_a_sphere_on_the_axis_projects_to_a_circle():
    means2d, conics, depths, opacities2d, extents = reference.project(one_gaussian(), IDENTITY_CAMERA, (32, 32), False)
    variance = (100.0 * 0.05 / 2.0) ** 2 + 0.3
    assert torch.allclose(means2d, torch.tensor([[16.0, 16.0]], dtype=torch.float64))
    assert torch.allclose(conics, torch.tensor([[1 / variance, 0.0, 1 / variance]], dtype=torch.float64))
    assert depths.item() == 2.0 and opacities2d.item() == 0.8
    assert extents[0, 0].item() == pytest.approx(math.sqrt(2 * math.log(255 * 0.8) * variance))


def test_the_extent_is_where_alpha_reaches_one_grey_level():
    world = one_gaussian()
    means2d, conics, _, opacities2d, extents = reference.project(world, IDENTITY_CAMERA, (32, 32), False)
    edge = means2d + extents * torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert reference.alphas_at(edge, (means2d, conics, opacities2d)).item() == pytest.approx(1 / 255)


def test_antialiasing_keeps_the_integral_of_a_small_splat():
    world = one_gaussian(sigma=0.001)
    limits = reference.Limits(alpha_min=1e-30)
    _, conics, _, opacities2d, _ = reference.project(world, IDENTITY_CAMERA, (32, 32), True, limits)
    area = 2 * math.pi / (conics[0, 0] * conics[0, 2] - conics[0, 1] ** 2).sqrt()
    assert (opacities2d * area).item() == pytest.approx(0.8 * 2 * math.pi * (100 * 0.001 / 2) ** 2)


def test_two_layers_blend_front_to_back():
    means2d = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    conics = torch.tensor([[1.0, 0.0, 1.0]] * 2, dtype=torch.float64)
    opacities = torch.tensor([0.6, 0.5], dtype=torch.float64)
    features = torch.tensor([[1.0], [10.0]], dtype=torch.float64)
    background = torch.tensor([100.0], dtype=torch.float64)
    image, alpha = reference.blend(means2d[:1], (means2d, conics, opacities), features, background)
    assert image.item() == pytest.approx(0.6 + 0.4 * 0.5 * 10 + 0.4 * 0.5 * 100)
    assert alpha.item() == pytest.approx(0.8)


def test_the_splat_that_would_finish_a_pixel_is_not_drawn():
    means2d = torch.full((3, 2), 0.5, dtype=torch.float64)
    conics = torch.tensor([[1.0, 0.0, 1.0]] * 3, dtype=torch.float64)
    opacities = torch.tensor([0.99, 0.995, 0.5], dtype=torch.float64)  # transmittance 1e-2, 5e-5 (stop)
    _, alpha = reference.blend(
        means2d[:1], (means2d, conics, opacities), torch.ones((3, 1)).double(), torch.zeros(1).double()
    )
    assert alpha.item() == pytest.approx(0.99)


def test_projected_covariance_is_the_linearised_one():
    scene = random_scene(20, seed=3)
    means, quats, scales, opacities, _, _, pose, intrinsics = scene.leaves
    world = (means, quats, scales, torch.ones_like(opacities))
    _, conics, depths, _, extents = reference.project(world, (pose, intrinsics), scene.size, False)

    def pixel(point: torch.Tensor) -> torch.Tensor:
        cam = pose[:3, :3] @ point + pose[:3, 3]
        return cam[:2] / cam[2] * intrinsics[:2] + intrinsics[2:]

    for i in torch.nonzero(extents[:, 0] > 0).flatten().tolist():
        ratio = (pixel(means[i]) - intrinsics[2:]) / intrinsics[:2]
        if (ratio.abs() > 0.4).any():
            continue  # the frustum clamp may act
        jacobian = torch.func.jacrev(pixel)(means[i])
        sigma = jacobian @ covariances(quats[i], scales[i]) @ jacobian.T + 0.3 * torch.eye(2, dtype=torch.float64)
        inverse = torch.linalg.inv(sigma)
        assert torch.allclose(conics[i], torch.stack([inverse[0, 0], inverse[0, 1], inverse[1, 1]]))
    assert (depths[extents[:, 0] > 0] > 0.2).all()


@pytest.mark.parametrize("antialiased", [False, True])
def test_gradients_agree_with_finite_differences(antialiased):
    scene = random_scene(8, 9, 7, seed=5)
    limits = reference.Limits(alpha_min=1e-12, transmittance_min=0.0, alpha_max=2.0)
    leaves = list(scene.double())
    leaves[3] = (leaves[3].detach().abs() * 0.5 + 0.2).requires_grad_()

    def both(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return draw_dense((*inputs, *leaves[6:]), scene.size, antialiased, limits)

    assert torch.autograd.gradcheck(both, tuple(leaves[:6]), eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)


def test_tile_lists_draw_the_same_picture_as_no_tiles():
    scene = random_scene(120, 37, 50)
    leaves = scene.leaves
    means2d, conics, depths, opacities2d, extents = reference.project(leaves[:4], leaves[6:], scene.size, False)
    screen = (means2d, conics, opacities2d)
    lists = reference.bin(screen, depths, extents, scene.size)
    image, alpha = reference.raster(screen, leaves[4], leaves[5], lists, scene.size)
    dense_image, dense_alpha = draw_dense(leaves, scene.size)
    assert torch.allclose(image, dense_image, atol=1e-12) and torch.allclose(alpha, dense_alpha, atol=1e-12)


def test_ssim_of_equal_images_is_one():
    image = torch.rand((20, 30, 3), dtype=torch.float64)
    l1, ssim = reference.l1_ssim(image, image)
    assert l1.item() == 0.0 and ssim.item() == pytest.approx(1.0)
