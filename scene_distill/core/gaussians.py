"""Activated Gaussians: what a representation hands to a renderer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians in world space, ready to draw.

    means [N, 3] metres; quats [N, 4] (w, x, y, z), not necessarily unit; scales [N, 3] standard deviations in metres
    (linear, > 0); opacities [N] in (-1, 1], where anything <= 0 is not drawn; features [N, D], for colours D = 3 in
    [0, 1].
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor

    def __len__(self) -> int:
        return self.means.shape[0]
