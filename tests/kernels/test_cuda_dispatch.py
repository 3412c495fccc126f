"""The whole picture through the op set on --device: dispatch by device, autograd, every drawing option.

On the CPU this draws with the native kernels; with ``--device cuda`` it is the only file that reaches the CUDA kernels
through torch's dispatcher, as training does.
"""

import pytest
import torch
from kernel_scenes import boundary_pixels, draw_dense, draw_native, random_scene, relative_error

from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers import ops
from scene_distill.renderers.splat import DrawOptions, render_from


def moved(leaves, device):
    return tuple(leaf.detach().to(device).requires_grad_() for leaf in leaves)


def drawn(leaves, size, **options):
    gaussians = Gaussians(*leaves[:5])
    return render_from(gaussians, leaves[6], leaves[7], size, background=leaves[5], options=DrawOptions(**options))


@pytest.mark.parametrize("antialiased", [False, True])
def test_pictures_and_gradients_agree_with_the_dense_oracle(device, antialiased):
    scene = random_scene(150, 49, 37, channels=5, seed=41)
    double = scene.double()
    clear = ~boundary_pixels(double, scene.size, antialiased)
    v_image = torch.randn((37, 49, 5), generator=torch.Generator().manual_seed(3)) * clear[..., None]
    expected, expected_alpha = draw_dense(double, scene.size, antialiased)
    leaves = moved(scene.single(), device)
    image, alpha = draw_native(leaves, scene.size, antialiased)
    assert image.device.type == device.type
    assert (image.cpu() - expected)[clear].abs().max() < 5e-5
    assert (alpha.cpu() - expected_alpha)[clear].abs().max() < 5e-5
    found = torch.autograd.grad(image, leaves, v_image.to(device))
    wanted = torch.autograd.grad(expected, double, v_image.double())
    for got, want in zip(found, wanted, strict=True):
        assert relative_error(got.cpu(), want) < 2e-3


@pytest.mark.parametrize("orthographic", [False, True])
def test_every_option_at_once(device, orthographic):
    scene = random_scene(200, 49, 37, seed=42)
    leaves = list(moved(scene.single(), device))
    if orthographic:  # px per metre
        leaves[7] = leaves[7].detach().new_tensor([9.0, 10.0, 25.0, 18.0]).requires_grad_()
    mask = torch.zeros((37, 49), dtype=torch.bool, device=device)
    mask[4:30, 10:47] = True
    picture = drawn(leaves, scene.size, orthographic=orthographic, median_depth=True, absolute_gradients=True,
                    gradient_bound=0.3, mask=mask)  # fmt: skip
    assert torch.equal(picture.image[~mask], leaves[5].detach().expand_as(picture.image)[~mask])
    assert not picture.alpha[~mask].any() and not picture.median_depth[~mask].any()
    covered = picture.median_depth > 0
    assert torch.equal(covered, picture.alpha >= 0.5) and bool(covered.any()) and not bool(covered[mask].all())
    picture.image.square().sum().backward()
    assert all(torch.isfinite(leaf.grad).all() and leaf.grad.any() for leaf in leaves)
    signed = torch.autograd.grad(
        drawn(leaves, scene.size, orthographic=orthographic, mask=mask).image.sum(), leaves[0]
    )[0]
    assert signed.any() and picture.probe.grad.sum() > 0
    screen, lists = projected(leaves, scene.size, orthographic)
    weight_sum, weight_max, pixels = ops.raster_contributions(screen, lists, scene.size, mask)
    assert weight_sum.sum().item() == pytest.approx(picture.alpha.sum().item(), rel=1e-4)
    assert bool(((pixels > 0) == (weight_max > 0)).all()) and int(pixels.max()) <= int(mask.sum())


def projected(leaves, size, orthographic):
    with torch.no_grad():
        means2d, conics, depths, opacities2d, extents = ops.project(
            *leaves[:4], *leaves[6:], *size, orthographic=orthographic
        )
        screen = (means2d, conics, opacities2d)
        return screen, ops.bin(*screen, depths, extents, *size)


def test_gaussians_that_are_not_finite_are_an_error(device):
    scene = random_scene(30, 20, 20, seed=43)
    leaves = moved(scene.single(), device)
    with torch.no_grad():
        leaves[2][3, 1] = float("inf")
    with pytest.raises(UserError, match="1 of 30 Gaussians have a NaN or infinite"):
        draw_native(leaves, scene.size)


def test_a_training_step_lowers_the_loss(device):
    scene = random_scene(200, 49, 37, seed=44)
    leaves = moved(scene.single(), device)
    target = draw_native(tuple(leaf.detach() for leaf in leaves), scene.size)[0].roll(2, 1).clamp(0, 1)
    parameters = leaves[:3]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    losses = []
    for step in range(1, 21):
        image, _ = draw_native(leaves, scene.size)
        l1, ssim = ops.l1_ssim(image, target)
        loss = 0.8 * l1 + 0.2 * (1 - ssim)
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient, moment in zip(parameters, gradients, moments, strict=True):
            ops.adam_(parameter, gradient, *moment, 1e-3, 0.9, 0.999, 1e-15, step)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
