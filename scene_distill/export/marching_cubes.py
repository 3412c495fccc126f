"""A level set of any field as a mesh: marching cubes (Lewiner 2003, through scikit-image) in parts.

Space is cut into cubes of ``CELLS`` cells on one lattice, so neighbouring cubes compute the same values on the plane
they share and their triangles meet. Peak memory is one cube, whatever the scene; cubes where the field says that it has
no surface are not evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.representations.meshes import TriangleMesh

CELLS = 64
"""Cells along the side of a cube: 65^3 values, 2 MB as float64."""

MAX_CUBES = 4_000_000
"""Most cubes that are walked through; more means a voxel chosen in the wrong unit."""


class Field(Protocol):
    """A scalar field in space. What lies above the level is inside: a density as it is, a signed distance negated."""

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values [n] at points [n, 3] float64."""
        ...


Occupied = Callable[[np.ndarray, np.ndarray], bool]
"""(low [3], high [3]) -> whether the field may cross the level in this box; True when in doubt."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """A box from ``low`` [3] to ``high`` [3] (world units) and the edge of a cell."""

    low: np.ndarray
    high: np.ndarray
    voxel_m: float

    def cubes(self) -> Iterator[tuple[int, int, int]]:
        """Lower corners, in cells, of the cubes that cover the box."""
        counts = self.counts()
        for x in range(counts[0]):
            for y in range(counts[1]):
                for z in range(counts[2]):
                    yield CELLS * x, CELLS * y, CELLS * z

    def counts(self) -> np.ndarray:
        """Cubes along every axis [3]."""
        cells = np.ceil((self.high - self.low) / self.voxel_m)
        return np.maximum(np.ceil(cells / CELLS), 1).astype(np.int64)


def extract_level(
    field: Field,
    lattice: Lattice,
    level: float,
    *,
    occupied: Occupied = lambda low, high: True,
    closed: bool = True,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> TriangleMesh:
    """The surface where ``field`` equals ``level`` inside the lattice's box, normals pointing to lower values.

    ``closed`` ends the solid at the faces of the box instead of leaving it open there. Raises `UserError` when the box
    is empty or absurdly large for the voxel, when the field is not finite, or when it does not cross the level.
    """
    total = _checked(lattice)
    parts = []
    for done, start in enumerate(lattice.cubes(), start=1):
        low = lattice.low + np.array(start) * lattice.voxel_m
        if occupied(low, low + CELLS * lattice.voxel_m):
            part = _cube(field, lattice, np.array(start), level, closed)
            if part is not None:
                parts.append(part)
        report(done, total)
    mesh = TriangleMesh.cat(parts).welded(lattice.voxel_m)
    if len(mesh) == 0:
        raise UserError(
            f"the field does not cross the level {level:g} at voxels of {lattice.voxel_m:g}; choose another"
        )
    return mesh


def _checked(lattice: Lattice) -> int:
    """Number of cubes; refuses boxes that cannot be walked through."""
    if not (lattice.voxel_m > 0 and np.isfinite([lattice.low, lattice.high]).all()):
        raise UserError(f"a voxel of {lattice.voxel_m:g} in a box {lattice.low} to {lattice.high} is not usable")
    if not (lattice.high > lattice.low).all():
        raise UserError(f"the box from {lattice.low} to {lattice.high} is empty")
    total = float(np.prod(lattice.counts().astype(float)))
    if total > MAX_CUBES:
        raise UserError(
            f"voxels of {lattice.voxel_m:g} cut the box into {total:.3g} cubes of {CELLS}^3; use larger voxels or a "
            "smaller box"
        )
    return int(total)


def _cube(
    field: Field, lattice: Lattice, start: np.ndarray, level: float, closed: bool
) -> TriangleMesh | None:  # fmt: skip
    """The surface in one cube, in world units; None when there is none."""
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise UserError(
            f"marching cubes needs scikit-image ({error}); install it with pip install 'scene-distill[meshes]'"
        ) from error
    axes = [lattice.low[k] + (start[k] + np.arange(CELLS + 1)) * lattice.voxel_m for k in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    values = np.asarray(field(points), np.float64)
    if values.shape != (len(points),) or not np.isfinite(values).all():
        raise UserError(f"the field gives {values.shape} for {len(points)} points or numbers that are not finite")
    values = values.reshape((CELLS + 1,) * 3)
    outside = np.zeros(values.shape, bool)
    for axis in range(3):
        place = np.moveaxis(outside, axis, 0)
        place[(axes[axis] <= axes[axis][0]) & (start[axis] == 0)] = True
        place[axes[axis] >= lattice.high[axis] - 1e-9 * lattice.voxel_m] = True
    if closed:
        values = np.where(outside, np.minimum(values, level - 1e-3 * max(abs(level), 1e-6)), values)
    if not values.min() < level < values.max():
        return None
    vertices, faces, _, _ = marching_cubes(values, level, gradient_direction="ascent", allow_degenerate=False)
    return TriangleMesh(
        lattice.low + (start + vertices.astype(np.float64)) * lattice.voxel_m, faces.astype(np.int64)
    )  # fmt: skip
