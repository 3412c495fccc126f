"""How good sampled shapes are: distances between sets, and agreement of pairs.

Frechet     distance of two sets in a named feature space (`prior_evaluation.feature_distance`). 'structure' and
            'surface': latents as flows see them; 'voxels': occupancy averaged over cells of 4^3. Its floor is the
            distance of training from test objects, sets of the same sizes. Within kinds: after the reference's mean of
            an object's kind is taken from both, so that kinds which each collapse to one shape cannot hide behind the
            distances between kinds.
agreement   of samples from the same noise: intersection over union of occupancy, and Chamfer distance of shells,
            (mean a->b + mean b->a) / 2 of distances that are not squared, in edges of the cube.
coverage    share of reference objects that are the nearest of at least one sample; matching distance (MMD): mean over
            reference objects of the distance to the nearest sample; distances are 1 - intersection over union.
recognised  share of samples whose nearest mean of a kind's 'voxels' features is that of the kind asked for.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.data.shape_world import shell, voxel_centers
from scene_distill.training.prior_evaluation import feature_distance


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of features [N, D] and [M, D]; not a number where a feature is none. `UserError` below two of
    each."""
    if min(len(a), len(b)) < 2:
        raise UserError("a Frechet distance needs at least two objects on either side")
    if not (a.isfinite().all() and b.isfinite().all()):
        return float("nan")
    return feature_distance(a, b)


def frechet_within_kinds(samples: Tensor, kinds: Tensor, reference: Tensor, reference_kinds: Tensor) -> float:
    """Frechet distance of features [N, D] and [M, D] from the reference's means of their ``kinds`` [N] and [M].

    Samples of kinds that the reference lacks are left out.
    """
    means = reference.new_zeros(int(reference_kinds.max()) + 1, reference.shape[1])
    for kind in reference_kinds.unique():
        means[kind] = reference[reference_kinds == kind].mean(0)
    known = torch.isin(kinds, reference_kinds)
    return frechet(samples[known] - means[kinds[known]], reference - means[reference_kinds])


def pooled_voxels(grids: Tensor, cell: int = 4) -> Tensor:
    """Share of occupied voxels of every cell, [N, (R / cell)^3] float32, of occupancy [N, R, R, R] bool."""
    return torch.nn.functional.avg_pool3d(grids.float()[:, None], cell).flatten(1)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [N] of pairs of occupancy [N, R, R, R] bool; 1 where both are empty."""
    both, either = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones(len(a)))


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersections over unions [N, M] of all pairs of [N, R, R, R] and [M, R, R, R]."""
    rows, columns = a.flatten(1).float(), b.flatten(1).float()
    both = rows @ columns.T
    either = rows.sum(1)[:, None] + columns.sum(1)[None] - both
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Chamfer distances [N] of pairs; not a number where one of a pair is empty."""
    from scipy.spatial import cKDTree

    centers, found = voxel_centers(a.shape[1]), []
    for left, right in zip(a, b, strict=True):
        points = [centers[np.flatnonzero(shell(grid.numpy()))] for grid in (left, right)]
        if min(map(len, points)) == 0:
            found.append(float("nan"))
            continue
        trees = [cKDTree(p) for p in points]
        found.append((trees[1].query(points[0])[0].mean() + trees[0].query(points[1])[0].mean()) / 2)
    return torch.tensor(found)


def coverage_and_matching(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Coverage and minimum matching distance of occupancy sets [N, R, R, R] and [M, R, R, R]."""
    distance = 1 - overlaps(samples, reference)
    covered = distance.argmin(1).unique()
    return len(covered) / len(reference), float(distance.min(0).values.mean())


def recognised(samples: Tensor, kinds: Tensor, reference: Tensor, reference_kinds: Tensor) -> float:
    """Share of samples [N, R, R, R] asked to be of ``kinds`` [N] that the nearest mean of the reference's kinds tells
    as such."""
    known = reference_kinds.unique()
    features = pooled_voxels(reference)
    means = torch.stack([features[reference_kinds == kind].mean(0) for kind in known])
    told = known[torch.cdist(pooled_voxels(samples), means).argmin(1)]
    return float((told == kinds).float().mean())
