"""Meshes that the viewer's tests look at."""

import numpy as np

from scene_distill.representations.meshes import TriangleMesh

FACES = [[0, 2, 1], [0, 3, 2], [4, 5, 6], [4, 6, 7], [0, 1, 5], [0, 5, 4],
         [1, 2, 6], [1, 6, 5], [2, 3, 7], [2, 7, 6], [3, 0, 4], [3, 4, 7]]  # fmt: skip


def cube(middle=(0.0, 0.0, 0.0), colors: np.ndarray | None = None) -> TriangleMesh:
    """Edges of length 2."""
    corners = [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]
    return TriangleMesh(np.array(corners, float) + middle, np.array(FACES), colors)


def wall(texture: np.ndarray, width: float) -> TriangleMesh:
    """A wall across y = 0, ``width`` wide and high."""
    half = width / 2
    corners = np.array([[-half, 0, -half], [half, 0, -half], [half, 0, half], [-half, 0, half]])
    uvs = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    return TriangleMesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), None, uvs, texture)
