"""Anchors: points that carry a feature from which a decoder makes Gaussians (Scaffold-GS; Momentum-GS section 3.1).

An anchor owns S = 10 slots. Its private parameters are a feature [32], an offset per slot [10, 3] and six
log-scales: 0..2
scale the offsets, 3..5 are the base size of its Gaussians. Positions stay where they were put (the papers give them a
learning rate of zero).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from scene_distill.core import seeds
from scene_distill.core.cameras import Camera
from scene_distill.core.conventions import ANCHOR_FEATURES, ANCHOR_SLOTS, NEAR_M
from scene_distill.core.stages import staged

LEARNED = ("offsets", "features", "log_scales")
"""Names of the fields that an optimiser changes."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """A anchors: positions [A, 3] metres, offsets [A, 10, 3] (in units of exp(log_scales[:, :3])), features [A, 32],
    log_scales [A, 6] (log metres); where far anchors give way to coarser ones also their levels [A] (`levels`)."""

    positions: Tensor
    offsets: Tensor
    features: Tensor
    log_scales: Tensor
    levels: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, those that there are."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    @staticmethod
    def of_state(state: Mapping[str, Tensor]) -> Anchors:
        """The anchors whose fields a state holds as 'anchors.<name>'."""
        names = (f.name for f in fields(Anchors))
        return Anchors(**{name: state[f"anchors.{name}"] for name in names if f"anchors.{name}" in state})

    def state(self) -> dict[str, Tensor]:
        """The fields as 'anchors.<name>'."""
        return {f"anchors.{name}": tensor for name, tensor in self.tensors().items()}

    def __len__(self) -> int:
        return self.positions.shape[0]

    def select(self, rows: Tensor) -> Anchors:
        """The anchors of a boolean mask [A] or of indices."""
        return Anchors(**{name: tensor[rows] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> Anchors:
        """The same values on a device."""
        return Anchors(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def append(self, other: Anchors) -> Anchors:
        """Both, this one's rows first."""
        return Anchors.cat([self, other])

    @staticmethod
    def cat(parts: Sequence[Anchors]) -> Anchors:
        """All anchors of one or more parts, in their order; all have levels or none."""
        named = [part.tensors() for part in parts]
        return Anchors(**{name: torch.cat([tensors[name] for tensors in named]) for name in named[0]})

    def detach(self) -> Anchors:
        """The same values without history."""
        return Anchors(**{name: tensor.detach() for name, tensor in self.tensors().items()})

    def trainable(self) -> Anchors:
        """The same values as fresh leaves that take gradients (positions do not)."""
        return replace(self, **{name: getattr(self, name).detach().requires_grad_(True) for name in LEARNED})

    @staged("cull")
    @torch.no_grad()
    def visible(self, camera: Camera) -> Tensor:
        """Indices [V] int64 of anchors whose 3-sigma ball of radius max(exp(log_scales[:, :3])) touches the image.

        Depth must exceed NEAR_M (spec momentum_gs.md, section 1, culling before decoding; a ball instead of the
        ellipsoid).
        """
        pose = camera.pose(self.positions.device)
        in_cam = self.positions @ pose[:3, :3].T + pose[:3, 3]
        depth = in_cam[:, 2].clamp(min=1e-6)
        radius = 3.0 * self.log_scales[:, :3].amax(1).exp() / depth * max(camera.fx, camera.fy)
        x = camera.fx * in_cam[:, 0] / depth + camera.cx
        y = camera.fy * in_cam[:, 1] / depth + camera.cy
        inside = (x + radius > 0) & (x - radius < camera.width) & (y + radius > 0) & (y - radius < camera.height)
        return (inside & (in_cam[:, 2] > NEAR_M)).nonzero().squeeze(1)


def anchors_from_points(
    points: Tensor, colors: Tensor, *, spread: float, color_init: bool, seed_parts: tuple
) -> Anchors:
    """Anchors at points [A, 3] (float32, one per voxel) with colours [A, 3] in [0, 1].

    log_scales: the log root mean squared distance to the three nearest anchors. ``spread`` > 0 scatters the slots with
    that standard deviation (in units of the anchor's scale) instead of starting all at the anchor; with
    ``color_init`` the first three feature channels start at logit(colour), which `nets.gaussian_decoder` reads
    out unchanged at step 0. The paper starts both at zero.
    """
    count = points.shape[0]
    log_scales = torch.from_numpy(np.log(neighbour_distance(points.numpy()))).float()[:, None].expand(count, 6).clone()
    generator = seeds.torch_generator(*seed_parts, "anchors")
    offsets = torch.randn(count, ANCHOR_SLOTS, 3, generator=generator) * spread
    features = torch.zeros(count, ANCHOR_FEATURES)
    if color_init:
        features[:, :3] = torch.logit(colors.clamp(0.02, 0.98))
    return Anchors(points.clone(), offsets, features, log_scales)


def neighbour_distance(points: np.ndarray, neighbours: int = 3) -> np.ndarray:
    """Root mean squared distance [A] of every point [A, 3] to its nearest neighbours, floored at 1e-4; 1 for a lone
    point."""
    count = points.shape[0]
    if count < 2:
        return np.ones(count)
    distances = cKDTree(points).query(points, k=min(neighbours, count - 1) + 1)[0][:, 1:]
    return np.maximum(np.sqrt((distances**2).mean(1)), 1e-4)


def voxelise(points: np.ndarray, colors: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres [A, 3] of the occupied voxels of edge ``size`` and the mean colours [A, 3] of the points inside."""
    cells = np.round(points / size).astype(np.int64)
    unique, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((unique.shape[0], 3))
    np.add.at(sums, inverse.reshape(-1), colors.astype(np.float64))
    return unique * size, sums / counts[:, None]
