"""Oriented, coloured points of a scene: the centres of its splats, or the surface that its views show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.core.geometry import rotmats_from_quats
from scene_distill.representations.splats import Splats

_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class OrientedPoints:
    """P surface points: positions [P, 3] float64 world, normals [P, 3] float64 unit pointing outside, colors [P, 3]
    float32 sRGB in [0, 1]."""

    positions: np.ndarray
    normals: np.ndarray
    colors: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, rows: np.ndarray) -> OrientedPoints:
        """The points at a mask or at indices."""
        return OrientedPoints(self.positions[rows], self.normals[rows], self.colors[rows])

    def moved(self, offset: np.ndarray) -> OrientedPoints:
        """The points shifted by ``offset`` [3]."""
        return OrientedPoints(self.positions + offset, self.normals, self.colors)


def points_of_splats(
    splats: Splats,
    *,
    min_opacity: float = 0.5,
    cameras: Sequence[Camera] = (),
    up: tuple[float, float, float] | None = None,
) -> OrientedPoints:
    """The centres of the splats that are at least ``min_opacity`` opaque, in the splats' frame.

    The normal is the splat's shortest axis, turned towards the nearest camera; without cameras towards ``up``, without
    either away from the middle of the cloud. The colour is the constant part of the harmonics. Raises `UserError` when
    no splat is opaque enough.
    """
    splats = splats.select(splats.opacity_logits.sigmoid() >= min_opacity)
    if len(splats) == 0:
        raise UserError(f"no splat has an opacity of {min_opacity:g} or more; ask for less")
    positions = splats.means.double().cpu().numpy()
    normals = np.empty_like(positions)
    for start in range(0, len(splats), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        rotations = rotmats_from_quats(splats.quats[rows].double())
        shortest = splats.log_scales[rows].argmin(dim=1)
        axes = rotations.gather(2, shortest[:, None, None].expand(-1, 3, 1)).squeeze(2)
        normals[rows] = axes.cpu().numpy()
    outside = _outside(positions, cameras, up)
    normals *= np.where((normals * outside).sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    colors = (0.5 + SH_C0 * splats.sh[:, 0]).clamp(0.0, 1.0)
    return OrientedPoints(positions, normals, colors.float().cpu().numpy())


def _outside(
    positions: np.ndarray, cameras: Sequence[Camera], up: tuple[float, float, float] | None
) -> np.ndarray:  # fmt: skip
    """A direction [P, 3], of any length, that points out of the surface at each position."""
    if cameras:
        from scipy.spatial import cKDTree

        centers = np.stack([camera.center for camera in cameras])
        _, nearest = cKDTree(centers).query(positions)
        return centers[nearest] - positions
    if up is not None:
        return np.broadcast_to(np.asarray(up, float), positions.shape)
    return positions - positions.mean(axis=0)
