"""A coloured mesh of voxels that know their distance from a surface.

Occupied voxels that were not measured lie a voxel inside, empty ones `OUTSIDE` beyond the surface. The surface is taken
`LEVEL` of a voxel outside of distance 0, so that sheets thinner than a voxel, which no centre need lie in, keep both of
their sides. Corners take the mean colour of the nearest voxels.
"""

from __future__ import annotations

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.export.marching_cubes import Lattice, extract_level
from scene_distill.representations.meshes import TriangleMesh

LEVEL, OUTSIDE, INSIDE = 0.35, 0.8, -1.0
"""Distances in voxels; an empty voxel's centre is at least half a voxel away."""

_NEAREST = 4


def mesh_of_voxels(grid: np.ndarray, index: np.ndarray, distance: np.ndarray, color: np.ndarray) -> TriangleMesh:
    """The surface of a solid in the cube [-0.5, 0.5]^3, normals pointing out.

    grid [R, R, R] bool occupancy; index [M] numbers x R^2 + y R + z of measured voxels, their signed distances [M] in
    voxels (negative inside) and colours [M, 3] in [0, 1] (sRGB). Raises `UserError` when nothing is occupied.
    """
    side = grid.shape[0]
    if not grid.any() or not len(index):
        raise UserError("no voxel is occupied, so there is no surface; take another seed or more steps")
    values = np.where(grid, INSIDE, OUTSIDE).reshape(-1)
    values[index] = np.clip(distance, INSIDE, LEVEL - 0.05)
    values = np.pad(values.reshape(grid.shape), 1, constant_values=OUTSIDE)

    def inside(points: np.ndarray) -> np.ndarray:
        cell = np.rint((points + 0.5) * side + 0.5).astype(np.int64)
        beyond = ((cell < 0) | (cell > side + 1)).any(axis=1)
        x, y, z = np.clip(cell, 0, side + 1).T
        return np.where(beyond, -OUTSIDE, -values[x, y, z])

    reach = 0.5 + 0.5 / side
    lattice = Lattice(np.full(3, -reach), np.full(3, reach), 1 / side)
    mesh = extract_level(inside, lattice, -LEVEL)
    return TriangleMesh(mesh.vertices, mesh.faces, _painted(mesh.vertices, index, color, side))


def _painted(vertices: np.ndarray, index: np.ndarray, color: np.ndarray, side: int) -> np.ndarray:
    from scipy.spatial import cKDTree

    centers = (np.stack([index // side**2, index // side % side, index % side], axis=1) + 0.5) / side - 0.5
    count = min(_NEAREST, len(index))
    reach, near = cKDTree(centers).query(vertices, k=count)
    weight = 1 / (reach.reshape(-1, count) * side + 0.1) ** 2
    mean = (weight[..., None] * color[near.reshape(-1, count)]).sum(1) / weight.sum(1, keepdims=True)
    return np.clip(mean, 0, 1).astype(np.float32)
