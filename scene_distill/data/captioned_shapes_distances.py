"""Signed distances to the primitives of toy objects, negative inside.

Exact for frusta, and for polyhedra inside them; near edges of polyhedra and around ellipsoids a bound that has the
right sign and vanishes on the surface (the usual k0 (k0 - 1) / k1 for ellipsoids). Distances to several solids are
least distances, exact outside of them.
"""

from __future__ import annotations

import numpy as np

from scene_distill.data.captioned_shapes_primitives import BALL, FRUSTUM, Primitive

_TINY = 1e-12


def signed_distance(primitive: Primitive, points: np.ndarray) -> np.ndarray:
    """Distances [n] float64 of points [n, 3] from the primitive's surface, in the points' unit."""
    local = (points - primitive.center) @ np.linalg.inv(primitive.frame).T
    if primitive.kind == BALL:
        return _from_ellipsoid(local, np.linalg.norm(primitive.frame, axis=0))
    if primitive.kind == FRUSTUM:
        return _from_frustum(local, primitive)
    return _from_polyhedron(local, primitive)


def nearest(primitives: list[Primitive], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least of the distances of points [n, 3], [n], and whose it is, [n]."""
    distances = np.stack([signed_distance(primitive, points) for primitive in primitives])
    which = distances.argmin(axis=0)
    return distances[which, np.arange(len(points))], which


def normals(primitives: list[Primitive], points: np.ndarray, step: float) -> np.ndarray:
    """Unit directions [n, 3] in which the least distance grows, from central differences over ``step``."""
    gradient = np.empty((len(points), 3))
    for axis in range(3):
        shift = np.zeros(3)
        shift[axis] = step
        gradient[:, axis] = nearest(primitives, points + shift)[0] - nearest(primitives, points - shift)[0]
    return gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), _TINY)


def _from_ellipsoid(local: np.ndarray, radii: np.ndarray) -> np.ndarray:
    inside = np.linalg.norm(local, axis=1)
    slope = np.linalg.norm(local / radii, axis=1)
    return np.where(slope > _TINY, inside * (inside - 1) / np.maximum(slope, _TINY), -radii.min())


def _from_frustum(local: np.ndarray, primitive: Primitive) -> np.ndarray:
    """Distance in the half plane (radius, height) from a cap or from the slanted side, whichever is nearer."""
    wide, half = np.linalg.norm(primitive.frame[:, 0]), np.linalg.norm(primitive.frame[:, 2])
    bottom, top = primitive.shape * wide
    radius, height = np.hypot(local[:, 0], local[:, 1]) * wide, local[:, 2] * half
    over = radius - np.minimum(radius, np.where(height < 0, bottom, top))
    beyond = np.abs(height) - half
    side = np.array([top - bottom, 2 * half])
    along = np.clip(((radius - bottom) * side[0] + (height + half) * side[1]) / (side @ side), 0, 1)
    off = np.stack([radius - bottom - along * side[0], height + half - along * side[1]])
    sign = np.where((off[0] < 0) & (beyond < 0), -1.0, 1.0)
    return sign * np.sqrt(np.minimum(over**2 + beyond**2, (off**2).sum(0)))


def _from_polyhedron(local: np.ndarray, primitive: Primitive) -> np.ndarray:
    faces, levels = primitive.shape[:, :3], primitive.shape[:, 3]
    lengths = np.linalg.norm(faces @ np.linalg.inv(primitive.frame), axis=1)
    return ((local @ faces.T - levels) / lengths).max(axis=1)
