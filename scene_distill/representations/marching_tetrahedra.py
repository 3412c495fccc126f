"""Triangles where a signed distance changes its sign, differentiable in distances and in the grid's vertices.

    v = a + (b - a) s_a / (s_a - s_b)          on every edge (a, b) with s_a < 0 <= s_b or the other way round

A tetrahedron gives one triangle (one or three vertices inside) or two (two inside). Neighbours share edges, so the
surface is watertight and every vertex belongs to one edge; which triangles there are is not differentiable, where their
corners lie is. Triangles run counter-clockwise seen from outside (where s > 0). The table is made below, not typed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scene_distill.representations.tetrahedra import EDGES, TetSurface


def _triangles_of_cases() -> tuple[np.ndarray, np.ndarray]:
    """Triangles [16, 2, 3] as edges of a positively oriented tetrahedron, and their number [16], for every set of
    inside vertices (bit k: vertex k)."""
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    middles = corners[np.array(EDGES)].mean(axis=1)
    number = {edge: k for k, edge in enumerate(EDGES)}
    table, counts = np.zeros((16, 2, 3), np.int64), np.zeros(16, np.int64)
    for case in range(1, 15):
        inside = [k for k in range(4) if case >> k & 1]
        outside = [k for k in range(4) if not case >> k & 1]
        if len(inside) == 2:
            (a, b), (c, d) = inside, outside
            ring = [number[tuple(sorted(edge))] for edge in ((a, c), (a, d), (b, d), (b, c))]  # type: ignore[index]
            faces = [[ring[0], ring[1], ring[2]], [ring[0], ring[2], ring[3]]]
        else:
            faces = [[number[tuple(sorted((a, b)))] for a in inside for b in outside]]  # type: ignore[index]
        outwards = corners[outside].mean(axis=0) - corners[inside].mean(axis=0)
        for k, face in enumerate(faces):
            p, q, r = middles[face]
            table[case, k] = face if np.cross(q - p, r - p) @ outwards > 0 else face[::-1]
        counts[case] = len(faces)
    return table, counts


_TABLE, _COUNTS = (torch.as_tensor(part) for part in _triangles_of_cases())


@dataclass(frozen=True, eq=False)
class Extracted:
    """vertices [V, 3] with their graph, faces [F, 3] int64, and the edge of the grid [V] that each vertex lies on."""

    vertices: Tensor
    faces: Tensor
    edges: Tensor


def march_tetrahedra(surface: TetSurface) -> Extracted:
    """The zero set of a surface's distances as triangles; none where all distances have one sign."""
    grid, sdf = surface.grid, surface.closed_sdf
    inside = sdf.detach() < 0
    crossing = inside[grid.edges[:, 0]] != inside[grid.edges[:, 1]]
    crossed = torch.nonzero(crossing)[:, 0]
    number = crossing.cumsum(0) - 1
    code = sum(inside[grid.tetrahedra[:, k]].long() << k for k in range(4))
    assert isinstance(code, Tensor)
    active = torch.nonzero(_COUNTS[code])[:, 0]
    case, edge_of = code[active], grid.edge_of[active]
    first = edge_of.gather(1, _TABLE[case, 0])
    second = edge_of.gather(1, _TABLE[case, 1])[_COUNTS[case] == 2]
    a, b = grid.edges[crossed].unbind(1)
    s_a, s_b = sdf[a], sdf[b]
    positions = surface.positions
    share = (s_a / (s_a - s_b))[:, None]
    vertices = positions[a] + (positions[b] - positions[a]) * share
    return Extracted(vertices, number[torch.cat([first, second])], crossed)
