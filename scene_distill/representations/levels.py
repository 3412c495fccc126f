"""Levels of detail of anchors: what is too small to be seen gives way to coarser anchors.

Level 0 are the anchors of the finest voxels, of edge E; what grows between them has level 0 or less. Beside them stand
coarser ones of levels 1 to `COARSEST`, one for every occupied voxel of edge 2^level E, drawn in their stead where they
are far away (as the levels of Octree-GS, but one instead of the other, so that near pictures are as without).

With t = level + log2(E f / (depth P)), the octaves by which an anchor's voxel exceeds P pixels, it is drawn with

    w = clamp(t, 0, 1) - clamp(t - 1, 0, 1)

of its opacity; level 0 and less without the second term (nothing finer replaces them), the coarsest level with 1 for
the first (nothing coarser replaces it). Everywhere the weights of levels 0 to `COARSEST` sum to one: a level fades into
the next over one octave of depth and nothing pops.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.conventions import ALPHA_MIN, ANCHOR_SLOTS
from scene_distill.core.gaussians import Gaussians
from scene_distill.representations.anchors import Anchors, anchors_from_points

COARSEST = 4
"""Highest level: voxels 16 times as wide as the finest."""


@dataclass(frozen=True)
class LevelOfDetail:
    """pixels: P, the projected voxel edge below which an anchor is not drawn; edge: E, voxel edge of level 0 in the
    scene's unit."""

    pixels: float
    edge: float

    def weights(self, levels: Tensor, depth: Tensor, focal: float) -> Tensor:
        """Opacity weights [V] in [0, 1] of anchors of ``levels`` [V] at ``depth`` [V] > 0, ``focal`` in pixels."""
        octaves = levels + torch.log2(self.edge * focal / (self.pixels * depth))
        fades_in = torch.where(levels > COARSEST - 0.5, torch.ones_like(octaves), octaves.clamp(0, 1))
        fades_out = torch.where(levels > 0.5, (octaves - 1).clamp(0, 1), torch.zeros_like(octaves))
        return fades_in - fades_out

    @torch.no_grad()
    def drawn(self, anchors: Anchors, camera: Camera) -> tuple[Tensor, Tensor]:
        """Rows [V] int64 of the anchors that a camera draws, and their weights [V]."""
        rows = anchors.visible(camera)
        pose = camera.pose(anchors.positions.device)
        depth = anchors.positions[rows] @ pose[2, :3] + pose[2, 3]
        assert anchors.levels is not None
        weights = self.weights(anchors.levels[rows], depth, max(camera.fx, camera.fy))
        shown = weights >= ALPHA_MIN
        return rows[shown], weights[shown]

    def of_cells(self, edges: Tensor) -> Tensor:
        """Levels [A] of anchors that grew in cells of ``edges`` [A]: 0 or less, a coarser one stands in for them."""
        return torch.log2(edges / self.edge).round().clamp(max=0)

    def to_dict(self) -> dict[str, float]:
        """For the metadata of a trained scene."""
        return asdict(self)

    @staticmethod
    def from_metadata(metadata: dict[str, Any]) -> LevelOfDetail | None:
        """The levels a trained scene was made with; None when it has none."""
        found = metadata.get("level_of_detail")
        return None if found is None else LevelOfDetail(**found)


def faded(gaussians: Gaussians, weights: Tensor | None) -> Gaussians:
    """Gaussians [V * 10] with the opacities weighted by their anchors' weights [V]; as they are for None."""
    if weights is None:
        return gaussians
    return replace(gaussians, opacities=gaussians.opacities * weights.repeat_interleave(ANCHOR_SLOTS))


class CoarserVoxels:
    """The voxels of levels 1 to `COARSEST` of a whole scene, so that all blocks have the same.

    points [P, 3] (float64) and colours [P, 3] in [0, 1]; ``edge`` of level 0.
    """

    def __init__(self, points: np.ndarray, colors: np.ndarray, edge: float) -> None:
        self.voxels = [_voxels(points, colors, edge, level) for level in range(1, COARSEST + 1)]

    def anchors(self, points: np.ndarray, **start: Any) -> Anchors:
        """Anchors for the voxels of all levels that hold any of the points (indices); ``start`` as for
        `anchors_from_points`."""
        parts = []
        for level, (positions, colors, voxel_of) in enumerate(self.voxels, start=1):
            rows = np.unique(voxel_of[points])
            where, paint = (torch.from_numpy(values[rows]).float() for values in (positions, colors))
            seeds = (*start["seed_parts"], level)
            made = anchors_from_points(where, paint, **(start | {"seed_parts": seeds}))
            parts.append(replace(made, levels=torch.full((len(rows),), float(level))))
        return Anchors.cat(parts)


def _voxels(points: np.ndarray, colors: np.ndarray, edge: float, level: int) -> tuple[np.ndarray, ...]:
    """Mean positions [V, 3] and colours [V, 3] of the points in each voxel, and every point's voxel [P].

    The means are moved by a hundredth of ``edge`` a level: voxels of two levels may hold the same points, and anchors
    are known by their positions.
    """
    cells = np.round(points / (edge * 2**level)).astype(np.int64)
    _, voxel_of, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    voxel_of = voxel_of.reshape(-1)
    means = []
    for values in (points, colors):
        sums = [np.bincount(voxel_of, weights=values[:, axis], minlength=len(counts)) for axis in range(3)]
        means.append(np.stack(sums, axis=1) / counts[:, None])
    return means[0] + 0.01 * edge * level, means[1], voxel_of
