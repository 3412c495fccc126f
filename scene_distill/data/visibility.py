"""Which points a camera sees when no reconstruction says so: projection with a coarse depth buffer."""

from __future__ import annotations

import numpy as np

from scene_distill.core.cameras import Camera

_CELLS_ACROSS = 100
_DEPTH_SLACK = 1.1
"""A point counts as seen when it is at most this many times as far as the nearest point of its cell."""


def visible_points(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Sorted indices [P_f] int64 of the points [P, 3] that project into the image and are not behind nearer ones.

    The image is cut into cells, 100 across; in each, points farther than 1.1 times the nearest are taken as hidden. An
    approximation for sparse clouds without tracks, not a visibility test of surfaces.
    """
    pixels, depth = camera.project(points)
    inside = (depth > 0) & (pixels >= 0).all(1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
    rows = np.flatnonzero(inside)
    cell_px = camera.width / _CELLS_ACROSS
    column, line = (pixels[rows] / cell_px).astype(np.int64).T
    cell = line * (_CELLS_ACROSS + 1) + column
    nearest = np.full(int(cell.max(initial=0)) + 1, np.inf)
    np.minimum.at(nearest, cell, depth[rows])
    return rows[depth[rows] <= _DEPTH_SLACK * nearest[cell]]
