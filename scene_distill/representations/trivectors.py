"""A radiance field on occupied voxels: in each, a density and a colour of rank R (a local CP volume).

    p_r(u) = X_r(u_x) Y_r(u_y) Z_r(u_z)         X, Y, Z: D numbers along an axis of the voxel, linear between them
    density = softplus(sum_r d_r p_r)           colour = sigmoid(sum_r c_r p_r)

u in [0, 1]^3 is the place in the voxel; the first and the last number stand at its faces. Source: Strivec (Gao et al.
2023). The two activations and the places of the numbers are this project's reading: neither the paper nor the published
files fix them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class TrivectorField:
    """N voxels of a grid with ``resolution`` voxels a side over [-1/2, 1/2]^3.

    places int64 [N, 3]; vectors [N, R, 3, D]; densities [N, R]; colors [N, R, 3].
    """

    resolution: int
    places: Tensor
    vectors: Tensor
    densities: Tensor
    colors: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density [P] (>= 0, per world unit) and colour [P, 3] at world points [P, 3]; both 0 outside the voxels.
        Differentiable."""
        grid = (points + 0.5) * self.resolution
        cells = grid.floor().long()
        voxel, known = self._rows(cells)
        inside = grid[known] - cells[known]
        products = self._along(voxel[known], inside).prod(2)
        density = points.new_zeros(len(points))
        color = points.new_zeros(len(points), 3)
        rows = torch.nonzero(known).squeeze(1)
        raw = (self.densities[voxel[known]] * products).sum(1)
        raw_color = (self.colors[voxel[known]] * products[..., None]).sum(1)
        return (
            density.index_put((rows,), functional.softplus(raw)),
            color.index_put((rows,), raw_color.sigmoid()),
        )

    def _rows(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Row of the voxel at each cell and whether there is one."""
        side = self.resolution
        codes, order = ((self.places[:, 0] * side + self.places[:, 1]) * side + self.places[:, 2]).sort()
        wanted = (cells[:, 0] * side + cells[:, 1]) * side + cells[:, 2]
        at = torch.searchsorted(codes, wanted).clamp(max=len(codes) - 1)
        known = (codes[at] == wanted) & ((cells >= 0) & (cells < side)).all(1)
        return order[at], known

    def _along(self, voxel: Tensor, inside: Tensor) -> Tensor:
        """[P, R, 3]: the vectors of each axis at the places inside the voxels [P, 3]."""
        vectors = self.vectors[voxel]
        place = (inside * (vectors.shape[3] - 1)).clamp(0, vectors.shape[3] - 1)
        low = place.floor().long().clamp(max=vectors.shape[3] - 2)
        index = low[:, None, :, None].expand(-1, vectors.shape[1], -1, 1)
        below, above = vectors.gather(3, index).squeeze(3), vectors.gather(3, index + 1).squeeze(3)
        share = (place - low)[:, None]
        return below * (1 - share) + above * share
