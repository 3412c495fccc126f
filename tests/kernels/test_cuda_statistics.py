"""Contributions and medians against the float64 oracle, with and without a mask."""

import pytest
import torch
from cuda_emulator import SEEDS, kernels
from test_cuda_raster import decided, splats

from scene_distill.renderers import reference

SIZE = (41, 35)


def drawn(count, seed, masked):
    """screen, lists, and a mask of pixels whose thresholds float32 decides as the oracle does."""
    tensors = splats(count, SIZE, 1, seed)
    mask = decided(tensors, SIZE)
    if masked:
        mask &= torch.rand(SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(seed)) > 0.4
        mask[:16, 16:32] = False  # a whole tile
    return tensors[:3], tensors[5:], mask


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("masked", [False, True])
def test_contributions(device, seed, masked):
    screen, lists, mask = drawn(150, seed, masked)
    expected = reference.raster_contributions(tuple(t.double() for t in screen), lists, mask, SIZE)
    here = [t.to(device) for t in (*screen, *lists)]
    given = (*here, *SIZE, mask.to(device))
    found = kernels(device, seed).raster_contributions(*given)
    assert torch.allclose(found[0].cpu().double(), expected[0], rtol=1e-4, atol=1e-4)
    assert torch.allclose(found[1].cpu().double(), expected[1], rtol=1e-4, atol=1e-6)
    assert torch.equal(found[2].cpu(), expected[2]) and int(expected[2].sum()) > 3000
    again = kernels(device, seed + 7).raster_contributions(*given)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("masked", [False, True])
def test_median(device, seed, masked):
    screen, lists, mask = drawn(25, seed, masked)
    expected = reference.raster_median(tuple(t.double() for t in screen), lists, mask, SIZE)
    given = [t.to(device) for t in (*screen, *lists)]
    found = kernels(device, seed).raster_median(*given, *SIZE, mask.to(device)).cpu()
    assert (found != expected).float().mean() < 2e-3 and found.dtype == torch.int32
    assert 0.1 < (expected >= 0).float().mean() < 1
    assert bool((found[~mask] == -1).all())
    unmasked = kernels(device, seed).raster_median(*given, *SIZE).cpu()
    assert torch.equal(unmasked[mask], found[mask]) and (masked is False or bool((unmasked[~mask] >= 0).any()))


def test_nothing_is_drawn(device):
    screen = [torch.zeros(shape, device=device) for shape in ((0, 2), (0, 3), (0,))]
    lists = [torch.zeros(3, dtype=torch.int32, device=device), torch.zeros(0, dtype=torch.int32, device=device)]
    ops = kernels(device, 1)
    assert [t.shape for t in ops.raster_contributions(*screen, *lists, 17, 5)] == [(0,)] * 3
    assert bool((ops.raster_median(*screen, *lists, 17, 5) == -1).all())
