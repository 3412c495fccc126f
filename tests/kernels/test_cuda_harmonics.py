"""View-dependent colours against the float64 oracle: every stored and used degree, culled rows, clamped colours."""

import pytest
import torch
from cuda_emulator import SEEDS, kernels

from scene_distill.renderers import reference

COUNT = 75  # no multiple of a block


def gaussians(bases, seed):
    g = torch.Generator().manual_seed(seed)
    means, center = torch.randn(COUNT, 3, generator=g), torch.randn(3, generator=g)
    extents = torch.rand(COUNT, 2, generator=g) + 1
    extents[::5] = 0.0
    return means, torch.randn(COUNT, bases, 3, generator=g) * 2.0, center, extents


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("stored", "used"), [(0, 0), (1, 1), (2, 2), (3, 3), (3, 1)])
@pytest.mark.parametrize("culled", [False, True])
def test_colours_and_gradients(device, seed, stored, used, culled):
    means, coefficients, center, extents = gaussians((stored + 1) ** 2, seed)
    exact = [t.double().requires_grad_(True) for t in (means, coefficients, center)]
    chosen = extents if culled else None
    expected = reference.spherical_harmonics(*exact, used, chosen)
    ops, here = kernels(device, seed), [t.to(device) for t in (means, coefficients, center)]
    given = (*here, used, None if chosen is None else chosen.to(device))
    colors = ops.spherical_harmonics(*given)
    assert torch.allclose(colors.cpu().double(), expected.detach(), atol=1e-5)
    assert bool((expected == 0).any()) and bool((expected > 0).any())

    v_colors = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(seed))
    expected.backward(v_colors.double())
    back = ops.spherical_harmonics_backward(*given, colors, v_colors.to(device), True)
    for got, leaf in zip(back, exact, strict=True):
        want = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        assert torch.allclose(got.cpu().double(), want, rtol=1e-4, atol=1e-5 * max(float(want.abs().max()), 1e-6))
    if culled:
        assert not any(t[::5].any() for t in (colors, *back[:2]))
    assert not ops.spherical_harmonics_backward(*given, colors, v_colors.to(device), False)[2].any()


def test_no_gaussians(device):
    means, coefficients, center, extents = (t.to(device) for t in gaussians(16, 1))
    ops, none = kernels(device, 1), (means[:0], coefficients[:0], center, 3, extents[:0])
    colors = ops.spherical_harmonics(*none)
    back = ops.spherical_harmonics_backward(*none, colors, colors, True)
    assert colors.shape == (0, 3) and back[1].shape == (0, 16, 3) and not back[2].any()
