"""A cube filled with tetrahedra, the lattice on which a surface lives as signed distances (DMTet, Shen et al. 2021).

The lattice is body-centred cubic: corners and centres of N x N x N cells. Two neighbouring centres and an edge of the
face between them make a tetrahedron; all of them are congruent, with dihedral angles of 60 and 90 degrees, so that
surfaces have no direction that they prefer to the others. Tetrahedra are positively oriented: det(b-a, c-a, d-a) > 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.errors import UserError

EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""The six edges of a tetrahedron, by its vertices."""

REACH = 0.2
"""Part of a cell's side that a vertex may move along every axis. A tetrahedron is sqrt(1/2) cells high, so with
sqrt(3) * 0.2 < sqrt(1/2) / 2 none can turn inside out."""


@dataclass(frozen=True, eq=False)
class TetGrid:
    """V vertices [V, 3] in [-radius, radius]^3, T tetrahedra [T, 4], E edges [E, 2], the edges of every tetrahedron
    [T, 6] in the order of `EDGES`, and which vertices lie at the boundary, bool [V]."""

    cells: int
    radius: float
    vertices: Tensor
    tetrahedra: Tensor
    edges: Tensor
    edge_of: Tensor
    boundary: Tensor

    @property
    def cell(self) -> float:
        """Side of a cell in world units."""
        return 2 * self.radius / self.cells

    @staticmethod
    def cubic(cells: int, radius: float, dtype: torch.dtype = torch.float32) -> TetGrid:
        """The lattice of ``cells`` cells along an axis: (N+1)^3 + N^3 vertices, 12 N^2 (N-1) tetrahedra."""
        if cells < 3 or radius <= 0:
            raise UserError(f"a grid of tetrahedra needs at least 3 cells and a radius above 0, got {cells}, {radius}")
        corner = np.arange((cells + 1) ** 3).reshape([cells + 1] * 3)
        centre = (corner.size + np.arange(cells**3)).reshape([cells] * 3)
        tetrahedra = np.concatenate([_between(corner, centre, axis) for axis in range(3)])
        lines = np.arange(cells + 1), np.arange(cells) + 0.5
        places = [np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3) for line in lines]
        ends = [((p == line.min()) | (p == line.max())).any(axis=1) for p, line in zip(places, lines, strict=True)]
        vertices = (np.concatenate(places) / cells * 2 - 1) * radius
        a, b, c, d = (vertices[tetrahedra[:, k]] for k in range(4))
        turned = np.einsum("ij,ij->i", np.cross(b - a, c - a), d - a) < 0
        tetrahedra[turned] = tetrahedra[turned][:, [0, 1, 3, 2]]
        pairs = np.sort(tetrahedra[:, np.array(EDGES)], axis=2).reshape(-1, 2)
        keys, edge_of = np.unique(pairs[:, 0] * len(vertices) + pairs[:, 1], return_inverse=True)
        edges = np.stack(np.divmod(keys, len(vertices)), axis=1)
        return TetGrid(
            cells,
            radius,
            torch.as_tensor(vertices, dtype=dtype),
            torch.as_tensor(tetrahedra),
            torch.as_tensor(edges),
            torch.as_tensor(edge_of.reshape(-1, 6)),
            torch.as_tensor(np.concatenate(ends)),
        )


def _between(corner: np.ndarray, centre: np.ndarray, axis: int) -> np.ndarray:
    """Tetrahedra [4 N^2 (N-1), 4] around the faces across one axis."""
    corner, centre = np.moveaxis(corner, axis, 0), np.moveaxis(centre, axis, 0)
    face = corner[1:-1]
    ring = [face[:, :-1, :-1], face[:, 1:, :-1], face[:, 1:, 1:], face[:, :-1, 1:]]
    parts = [(centre[:-1], centre[1:], ring[k], ring[(k + 1) % 4]) for k in range(4)]
    return np.concatenate([np.stack(part, axis=-1).reshape(-1, 4) for part in parts])


@dataclass(frozen=True, eq=False)
class TetSurface:
    """A surface on a grid: sdf [V] in world units, below 0 inside; offsets [V, 3] raw, tanh moves vertices."""

    grid: TetGrid
    sdf: Tensor
    offsets: Tensor

    def __post_init__(self) -> None:
        count = len(self.grid.vertices)
        if self.sdf.shape != (count,) or self.offsets.shape != (count, 3):
            raise ValueError(f"sdf {tuple(self.sdf.shape)} and offsets do not fit a grid of {count} vertices")

    @property
    def positions(self) -> Tensor:
        """Vertices [V, 3] of the deformed grid, each at most `REACH` cells from its place along every axis."""
        return self.grid.vertices.to(self.offsets) + REACH * self.grid.cell * self.offsets.tanh()

    @property
    def closed_sdf(self) -> Tensor:
        """Signed distances with the boundary outside, so that no surface is cut open by the end of the grid."""
        least = 1e-3 * self.grid.cell
        return torch.where(self.grid.boundary, self.sdf.clamp(min=least), self.sdf)

    def trainable(self) -> TetSurface:
        """A copy whose numbers take gradient."""
        sdf, offsets = (value.detach().clone().requires_grad_() for value in (self.sdf, self.offsets))
        return replace(self, sdf=sdf, offsets=offsets)

    @staticmethod
    def of_sdf(grid: TetGrid, sdf: Tensor) -> TetSurface:
        """A surface on the undeformed grid."""
        return TetSurface(grid, sdf, torch.zeros(len(sdf), 3, dtype=sdf.dtype))


def tidied(grid: TetGrid, sdf: Tensor, smallest: float = 0.05) -> Tensor:
    """Signed distances [V] without loose bits and closed bubbles.

    Parts of the inside that hold less than ``smallest`` of the largest part's vertices turn outside, and parts of the
    outside that do not reach the boundary turn inside; both keep their distance's size.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    values = sdf.detach().double().numpy().copy()
    edges, boundary = grid.edges.numpy(), grid.boundary.numpy()
    for inside in (True, False):
        sign = values < 0
        same = (sign[edges[:, 0]] == sign[edges[:, 1]]) & (sign[edges[:, 0]] == inside)
        ends = edges[same]
        graph = coo_matrix((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(values),) * 2)
        _, part = connected_components(graph, directed=False)
        if inside:
            sizes = np.bincount(part[sign], minlength=part.max() + 1)
            turn = sign & (sizes[part] < smallest * sizes.max())
        else:
            open_parts = np.zeros(part.max() + 1, bool)
            open_parts[part[boundary & ~sign]] = True
            turn = ~sign & ~open_parts[part]
        values[turn] = -values[turn]
    return torch.as_tensor(values).to(sdf)
