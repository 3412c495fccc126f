"""Plain Gaussian splats: the parameters of a standard 3DGS file and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from scene_distill.core import spherical_harmonics
from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians

INITIAL_OPACITY = 0.1
"""Opacity of a Gaussian that starts from a point (3DGS)."""

MIN_SPACING_M = 1e-7
"""Floor of the spacing of coincident points, so that its logarithm is finite."""


@dataclass(frozen=True, eq=False)
class Splats:
    """N Gaussians as a file stores them, in world space.

    means [N, 3] metres; log_scales [N, 3] log of standard deviations in metres; quats [N, 4] (w, x, y, z), not
    necessarily unit; opacity_logits [N]; sh [N, K, 3] spherical-harmonics coefficients, K = 1, 4, 9 or 16
    (`core.spherical_harmonics`). Raises `ValueError` when the shapes do not belong together.
    """

    means: Tensor
    log_scales: Tensor
    quats: Tensor
    opacity_logits: Tensor
    sh: Tensor

    def __post_init__(self) -> None:
        count, bases = len(self.means), self.sh.shape[1] if self.sh.dim() == 3 else 0
        spherical_harmonics.degree_of(bases)
        expected = [(count, 3), (count, 3), (count, 4), (count,), (count, bases, 3)]
        found = [tuple(getattr(self, field.name).shape) for field in fields(self)]
        if found != expected:
            raise ValueError(f"splat tensors have shapes {found}, expected {expected}")

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def sh_degree(self) -> int:
        """Degree 0 to 3 of the view-dependent colour."""
        return spherical_harmonics.degree_of(self.sh.shape[1])

    @classmethod
    def from_points(cls, points: np.ndarray, colors: np.ndarray) -> Splats:
        """One round splat a point, as 3DGS starts: as large as its mean distance to the 3 nearest points, opacity
        0.1.

        points [P, 3] world, finite; colors [P, 3] uint8. Raises `UserError` with fewer than two points.
        """
        from scipy.spatial import cKDTree

        if len(points) < 2:
            raise UserError(f"The scene has {len(points)} points; splats need at least 2 to start from.")
        neighbours = min(3, len(points) - 1)
        distances, _ = cKDTree(points).query(points, k=neighbours + 1)
        spacing = np.maximum(distances[:, 1:].mean(axis=1), MIN_SPACING_M)
        means = torch.as_tensor(points, dtype=torch.float32)
        quats = torch.zeros(len(points), 4)
        quats[:, 0] = 1.0
        return cls(
            means=means,
            log_scales=torch.as_tensor(np.log(spacing), dtype=torch.float32)[:, None].repeat(1, 3),
            quats=quats,
            opacity_logits=torch.full((len(points),), INITIAL_OPACITY).logit(),
            sh=spherical_harmonics.constant_coefficients(torch.as_tensor(colors, dtype=torch.float32) / 255.0),
        )

    @staticmethod
    def cat(parts: Sequence[Splats]) -> Splats:
        """All splats of the parts, in order; lower degrees are filled up with zeros to the highest one."""
        bases = max(part.sh.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part.sh, (0, 0, 0, bases - part.sh.shape[1])) for part in parts]
        return Splats(
            means=torch.cat([part.means for part in parts]),
            log_scales=torch.cat([part.log_scales for part in parts]),
            quats=torch.cat([part.quats for part in parts]),
            opacity_logits=torch.cat([part.opacity_logits for part in parts]),
            sh=torch.cat(padded),
        )

    def select(self, index: Tensor) -> Splats:
        """The splats at ``index``: a mask [N] bool or indices [...] int64."""
        return Splats(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def gaussians(self, camera: Camera) -> Gaussians:
        """Activated Gaussians with the colours [N, 3] (>= 0) that the splats show to ``camera``; differentiable."""
        center = torch.as_tensor(camera.center, dtype=self.means.dtype, device=self.means.device)
        directions = torch.nn.functional.normalize(self.means - center, dim=-1)
        return Gaussians(
            means=self.means,
            quats=self.quats,
            scales=self.log_scales.exp(),
            opacities=self.opacity_logits.sigmoid(),
            features=spherical_harmonics.evaluate(self.sh, directions).clamp_min(0.0),
        )


def stored_tensors(splats: Splats) -> dict[str, Tensor]:
    """The tensors of the splats by their names."""
    return {field.name: getattr(splats, field.name) for field in fields(splats)}
