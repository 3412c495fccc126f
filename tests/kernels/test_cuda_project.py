"""Projection and binning kernels against the float64 oracle."""

import pytest
import torch
from cuda_emulator import SEEDS, kernels

from scene_distill.core.errors import UserError
from scene_distill.renderers import native, reference

SIZE = (48, 40)


def world(count, seed):
    """Gaussians around a camera: in view, behind it, far outside the frustum, transparent, needles."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 3, generator=g) * torch.tensor([2.0, 2.0, 1.5]) + torch.tensor([0.0, 0.0, 2.5])
    quats = torch.randn(count, 4, generator=g)
    scales = torch.exp(torch.randn(count, 3, generator=g) * 0.8 - 2.0)
    opacities = torch.rand(count, generator=g) * 1.1 - 0.1
    angle = torch.tensor(0.2)
    pose = torch.eye(4)
    pose[0, 0], pose[0, 2], pose[2, 0], pose[2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    pose[:3, 3] = torch.tensor([0.1, -0.2, 0.3])
    return means, quats, scales, opacities, pose, torch.tensor([40.0, 42.0, 25.0, 19.0])


def oracle(tensors, antialiased, orthographic):
    exact = [t.double().requires_grad_(True) for t in tensors]
    found = reference.project(tuple(exact[:4]), tuple(exact[4:]), SIZE, antialiased, orthographic=orthographic)
    return exact, found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("orthographic", [False, True], ids=["perspective", "orthographic"])
def test_projection_and_its_gradient(device, seed, antialiased, orthographic):
    tensors = world(150, seed)
    if orthographic:
        tensors = (*tensors[:5], torch.tensor([9.0, 10.0, 25.0, 19.0]))  # px per metre
    exact, expected = oracle(tensors, antialiased, orthographic)
    here, ops = [t.to(device) for t in tensors], kernels(device, seed)
    project, backward = (ops.project_orthographic, ops.project_orthographic_backward) if orthographic else (
        ops.project, ops.project_backward)  # fmt: skip
    found = project(*here, *SIZE, antialiased)
    seen = expected[4][:, 0] > 0
    assert 30 < int(seen.sum()) < 140
    for got, want in zip(found, expected, strict=True):
        assert torch.allclose(got.cpu().double(), want.detach(), rtol=2e-5, atol=2e-5)

    g = torch.Generator().manual_seed(seed + 10)
    grads = [torch.randn(t.shape, generator=g) for t in expected[:4]]
    torch.autograd.backward(expected[:4], [grad.double() for grad in grads])
    given = [grad.to(device) for grad in grads]
    back = backward(*here, *SIZE, antialiased, found[4], *given, True)
    for got, want in zip(back, exact, strict=True):
        scale = want.grad.abs().max()
        assert torch.allclose(got.cpu().double(), want.grad, rtol=2e-4, atol=float(2e-5 * scale))


def test_gradients_nobody_asked_for_are_zero(device):
    tensors = [t.to(device) for t in world(40, 3)]
    ops = kernels(device, 1)
    extents = ops.project(*tensors, *SIZE, False)[4]
    only_means = torch.ones(40, 2, device=device)
    *found, pose, intrinsics = ops.project_backward(
        *tensors, *SIZE, False, extents, only_means, None, None, None, False
    )
    assert not pose.any() and not intrinsics.any() and not found[3].any() and not found[2].any()
    zeros = [torch.zeros(shape, device=device) for shape in ((40, 3), (40,), (40,))]
    full = ops.project_backward(*tensors, *SIZE, False, extents, only_means, *zeros, False)
    assert all(torch.equal(a, b) for a, b in zip(found, full[:4], strict=True))


def test_non_finite_gaussians_are_culled_and_reported(device):
    """By the error that the CPU kernels raise at once, where the device is waited for anyway."""
    tensors = list(world(20, 4))
    tensors[0][0, 1], tensors[1][1, 0] = float("nan"), float("inf")
    tensors[2][2, 2], tensors[3][3], tensors[1][4] = float("inf"), float("nan"), 0.0
    here, ops = [t.to(device) for t in tensors], kernels(device, 1)
    found = ops.project(*here, *SIZE, False)
    assert all(torch.isfinite(t).all() for t in found) and bool((found[4][:4] < 0).all())
    assert bool((found[4][4:] >= 0).all()) and not found[3][:4].any()
    back = ops.project_backward(*here, *SIZE, False, found[4], *(torch.ones_like(t) for t in found[:4]), True)
    assert not any(t[:4].any() for t in back[:4]) and all(torch.isfinite(t).all() for t in back)
    errors = []
    for draw in (
        lambda: native.project(tuple(tensors[:4]), tuple(tensors[4:]), SIZE, False),
        lambda: ops.bin(found[0], found[1], found[3], found[2], found[4], *SIZE),
    ):
        with pytest.raises(UserError, match="4 of 20 Gaussians have a NaN or infinite") as caught:
            draw()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_no_gaussians(device):
    tensors = [t.to(device) for t in world(0, 1)]
    ops = kernels(device, 1)
    found = ops.project(*tensors, *SIZE, False)
    assert [t.shape[0] for t in found] == [0] * 5
    assert not ops.project_backward(*tensors, *SIZE, False, found[4], *found[:2], *found[2:4], True)[4].any()
    offsets, pairs = ops.bin(*found[:2], found[3], found[2], found[4], *SIZE)
    assert pairs.numel() == 0 and offsets.tolist() == [0] * 10


def lists(offsets, pairs):
    return [pairs[a:b].tolist() for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def rectangle(x, y, like):
    steps = torch.arange(151, dtype=like.dtype) / 10 + 0.5
    return torch.stack(torch.meshgrid(x + steps, y + steps, indexing="ij"), -1).reshape(-1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_tile_lists(device, seed):
    count = 200
    means2d, conics, depths, opacities, extents = kernels(device, seed).project(
        *(t.to(device) for t in world(count, seed)), *SIZE, False
    )
    depths = (depths * 8).round() / 8 * (extents[:, 0] > 0)  # many ties
    screen = (means2d, conics, opacities)
    found = lists(*(t.cpu() for t in kernels(device, seed).bin(*screen, depths, extents, *SIZE)))
    exact = tuple(t.cpu().double() for t in (*screen, depths, extents))
    needed = lists(*reference.bin(exact[:3], exact[3], exact[4], SIZE))
    order = {int(i): rank for rank, i in enumerate(torch.argsort(depths.cpu(), stable=True))}
    assert sum(map(len, needed)) > 150
    for tile in range(9):
        assert found[tile] == sorted(found[tile], key=order.__getitem__)
        assert set(needed[tile]) <= set(found[tile])
        # The oracle looks at pixel centres, the kernel at the rectangle they span: needles may pass between centres.
        for i in set(found[tile]) - set(needed[tile]):
            between = rectangle(tile % 3 * 16, tile // 3 * 16, exact[0])
            alphas = reference.alphas_at(between, tuple(t[i : i + 1] for t in exact[:3]))
            assert alphas.max() > 0.95 / 255
    assert sum(map(len, found)) <= 1.1 * sum(map(len, needed))


def test_one_pixel_image(device):
    tensors = [t.to(device) for t in world(30, 5)]
    tensors[5] = torch.tensor([1.0, 1.0, 0.5, 0.5], device=device)
    ops = kernels(device, 2)
    means2d, conics, depths, opacities, extents = ops.project(*tensors, 1, 1, False)
    offsets, pairs = ops.bin(means2d, conics, opacities, depths, extents, 1, 1)
    assert offsets.tolist() == [0, pairs.numel()] and pairs.numel() == int((extents[:, 0] > 0).sum())


def test_thresholds_are_those_of_the_conventions():
    assert (
        reference.Limits(**{name: pytest.approx(getattr(native.LIMITS, name)) for name, _ in native.Limits._fields_})
        == reference.LIMITS
    )
