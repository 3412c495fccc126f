"""The density of Gaussians as a field for marching cubes:

    d(x) = sum_i opacity_i exp(-1/2 |S_i^-1 R_i^T (x - mean_i)|^2)

The surface is where d = `LEVEL`. SuGaR (Guedon and Lepetit 2024, section 4) does the same with 0.3 and finds the points
from depth maps. Colours are the density-weighted means of the Gaussians' base colours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.core.geometry import rotmats_from_quats
from scene_distill.representations.splats import Splats

LEVEL = 0.3
"""Density of the surface (SuGaR)."""

REACH = 3.0
"""Standard deviations beyond which a Gaussian adds nothing (its value there is 0.011)."""

_BOX_CELLS = 16
_PAIRS_AT_ONCE = 1 << 23


class GaussianDensity:
    """Density of splats at any points, Gaussians far from a point left out.

    Points are sorted into boxes with a side of ``box_m``; the Gaussians that reach into a box are looked up once for
    all of its points. ``min_opacity`` drops the haze. Raises `UserError` when nothing is left.
    """

    def __init__(self, splats: Splats, box_m: float, min_opacity: float = 0.2) -> None:
        splats = splats.select(splats.opacity_logits.sigmoid() >= min_opacity)
        if len(splats) == 0:
            raise UserError(f"no Gaussian has an opacity of {min_opacity:g} or more; there is no density to look at")
        self._means = splats.means.double()
        rotations = rotmats_from_quats(splats.quats.double())
        scales = splats.log_scales.double().exp().clamp_min(1e-9)
        self._whiten = (rotations / scales[:, None, :]).transpose(1, 2)  # [N, 3, 3]: S^-1 R^T
        self._opacities = splats.opacity_logits.double().sigmoid()
        self._colors = (0.5 + SH_C0 * splats.sh[:, 0].double()).clamp(0.0, 1.0)
        self._half = (REACH * torch.linalg.vector_norm(rotations * scales[:, None, :], dim=2)).numpy()  # [N, 3]
        self._box_m = box_m
        self._sort_into_boxes()

    def _sort_into_boxes(self) -> None:
        """List (box, Gaussian) for every box that a Gaussian's bounding box touches, sorted by box."""
        means = self._means.numpy()
        low = np.floor((means - self._half) / self._box_m).astype(np.int64)
        high = np.floor((means + self._half) / self._box_m).astype(np.int64)
        sides = high - low + 1
        counts = sides.prod(axis=1)
        if float(counts.astype(float).sum()) > 4e8:
            raise UserError(
                f"Gaussians reach into {counts.sum():.3g} boxes of {self._box_m:g}; use larger voxels for the density"
            )
        gaussian = np.repeat(np.arange(len(means)), counts)
        rank = np.arange(len(gaussian)) - np.repeat(np.cumsum(counts) - counts, counts)
        side = sides[gaussian]
        offset = np.stack([rank // (side[:, 1] * side[:, 2]), rank // side[:, 2] % side[:, 1], rank % side[:, 2]], 1)
        boxes = low[gaussian] + offset
        keys = _keys(boxes)
        order = np.argsort(keys, kind="stable")
        self._gaussian = torch.from_numpy(gaussian[order])
        self._boxes, self._starts = np.unique(keys[order], return_index=True)
        self._starts = np.append(self._starts, len(order))
        places = boxes[order][self._starts[:-1]]
        self._places = places

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high corner [3] of the box around all Gaussians' reach."""
        means = self._means.numpy()
        return (means - self._half).min(axis=0), (means + self._half).max(axis=0)

    def occupied(self, low: np.ndarray, high: np.ndarray) -> bool:
        """Whether any Gaussian reaches into the box."""
        inside = (self._places >= np.floor(low / self._box_m)) & (self._places <= np.floor(high / self._box_m))
        return bool(inside.all(axis=1).any())

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Densities [n] float64 at points [n, 3]."""
        return self._sums(points, with_colors=False)[:, 0].numpy()

    def colors(self, points: np.ndarray) -> np.ndarray:
        """Colours [n, 3] float32 in [0, 1] at points [n, 3]; grey where no Gaussian reaches."""
        sums = self._sums(points, with_colors=True)
        mean = sums[:, 1:] / sums[:, :1].clamp_min(1e-12)
        return torch.where(sums[:, :1] > 1e-9, mean, 0.5).float().numpy()

    def _sums(self, points: np.ndarray, *, with_colors: bool) -> Tensor:
        """[n, 1 or 4]: density, and density times colour."""
        points = np.asarray(points, np.float64)
        out = torch.zeros(len(points), 4 if with_colors else 1, dtype=torch.float64)
        keys = _keys(np.floor(points / self._box_m).astype(np.int64))
        order = np.argsort(keys, kind="stable")
        boxes, first = np.unique(keys[order], return_index=True)
        spot = np.minimum(np.searchsorted(self._boxes, boxes), len(self._boxes) - 1)
        ends = np.append(first[1:], len(order))
        for index in np.flatnonzero(self._boxes[spot] == boxes):
            near = self._gaussian[self._starts[spot[index]] : self._starts[spot[index] + 1]]
            rows = order[first[index] : ends[index]]
            step = max(1, _PAIRS_AT_ONCE // len(near))
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                weights = self._weights(torch.from_numpy(points[part]), near)
                out[part, 0] = weights.sum(1)
                if with_colors:
                    out[part, 1:] = weights @ self._colors[near]
        return out

    def _weights(self, points: Tensor, near: Tensor) -> Tensor:
        """Contribution [p, g] of the Gaussians ``near`` [g] at points [p, 3]."""
        whiten = self._whiten[near]
        # |W x - W m|^2 with the product written as one matrix multiplication over all Gaussians.
        moved = points @ whiten.reshape(-1, 3).T - (whiten @ self._means[near, :, None]).reshape(1, -1)
        squares = moved.square_().reshape(len(points), len(near), 3).sum(2)
        return torch.where(squares <= REACH**2, torch.exp(-0.5 * squares), 0.0) * self._opacities[near]


def box_of(voxel_m: float) -> float:
    """Side of the look-up boxes that suits marching cubes with this voxel."""
    return voxel_m * _BOX_CELLS


def _keys(boxes: np.ndarray) -> np.ndarray:
    """One int64 for each box [n, 3]: 21 bits a side."""
    wide = boxes + (1 << 20)
    return (wide[:, 0] << 42) | (wide[:, 1] << 21) | wide[:, 2]
