"""Distances between sets of shapes."""

import pytest
import torch

from scene_distill.core.errors import UserError
from scene_distill.training.shape_evaluation import (
    chamfer,
    coverage_and_matching,
    frechet,
    frechet_within_kinds,
    overlap,
    overlaps,
    pooled_voxels,
    recognised,
)


def boxes(*corners, side=8):
    grids = torch.zeros(len(corners), side, side, side, dtype=torch.bool)
    for grid, (low, high) in zip(grids, corners, strict=True):
        grid[low:high, low:high, low:high] = True
    return grids


def test_frechet_distance_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20000, 3, generator=generator)
    b = 2 * torch.randn(20000, 3, generator=generator) + torch.tensor([1.0, 0, 0])
    assert frechet(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet(a, b) == pytest.approx(1 + 3, rel=0.05)
    with pytest.raises(UserError, match="at least two"):
        frechet(a[:1], b)


def test_distances_of_what_is_no_number_are_none():
    a = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert frechet(a, a / 0) != frechet(a, a / 0)


def test_kinds_that_collapse_are_seen_within():
    """Two kinds far apart: samples at the kinds' means hardly change the distance of all, and lose all within."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(20000) % 2
    means = torch.tensor([[-100.0, 0], [100.0, 0]])
    reference = means[kinds] + torch.randn(20000, 2, generator=generator)
    assert frechet_within_kinds(reference, kinds, reference, kinds) == pytest.approx(0, abs=1e-5)
    collapsed = means[kinds]
    assert frechet_within_kinds(collapsed, kinds, reference, kinds) == pytest.approx(2, rel=0.05)
    moved = frechet_within_kinds(reference + torch.tensor([0, 3.0]), kinds, reference, kinds)
    assert moved == pytest.approx(9, rel=0.01)
    unknown = torch.cat([kinds, torch.tensor([5])])
    more = torch.cat([reference, torch.full((1, 2), 1e6)])
    assert frechet_within_kinds(more, unknown, reference, kinds) == pytest.approx(0, abs=1e-5)


def test_overlaps():
    a, b = boxes((0, 4), (0, 4)), boxes((0, 4), (2, 6))
    assert overlap(a, b).tolist() == pytest.approx([1, 8 / (64 + 64 - 8)])
    assert torch.equal(overlaps(a, b).diagonal(), overlap(a, b))
    nothing = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    assert overlap(nothing, nothing).item() == 1 and overlap(nothing, a[:1]).item() == 0


def test_chamfer_of_a_shift():
    a = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    b = a.clone()
    a[0, 2, 2, 2], b[0, 5, 2, 2] = True, True
    assert chamfer(a, b).item() == pytest.approx(3 / 8)
    assert chamfer(a, a).item() == 0
    assert chamfer(a, torch.zeros_like(a)).isnan().all()


def test_coverage_and_matching():
    reference = boxes((0, 3), (3, 6), (5, 8), (0, 8))
    assert coverage_and_matching(reference, reference) == (1.0, 0.0)
    coverage, matching = coverage_and_matching(reference[:1].expand(5, -1, -1, -1), reference)
    assert coverage == 0.25 and matching > 0.5


def test_recognised_by_the_nearest_mean():
    reference = boxes((0, 4), (0, 5), (4, 8), (3, 8))
    kinds = torch.tensor([1, 1, 2, 2])
    assert recognised(reference, kinds, reference, kinds) == 1
    assert recognised(reference, kinds.flip(0), reference, kinds) == 0
    assert torch.equal(pooled_voxels(reference[:1])[0], torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]))
