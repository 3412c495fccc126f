"""Triangle meshes: corners, faces, and what they are painted with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

WELD_FRACTION = 1e-5
"""Vertices closer than this fraction of the welding length are one: rounding of float32 coordinates, not detail."""


@dataclass(frozen=True, eq=False)
class TriangleMesh:
    """F triangles over V vertices in world space, coloured at the vertices or by a texture or not at all.

    vertices [V, 3] float64; faces [F, 3] int64, counter-clockwise seen from outside; colors [V, 3] float32 in [0, 1]
    (sRGB, as photographs store it) or None; uvs [V, 2] float32, u to the right and v down in the texture, both in
    [0, 1], or None; texture [H, W, 3] uint8 sRGB or None. uvs and texture come together. Raises `ValueError` when the
    shapes do not belong together or a face names a vertex that is not there.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray | None = None
    uvs: np.ndarray | None = None
    texture: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.vertices)
        if self.vertices.shape != (count, 3) or self.faces.shape != (len(self.faces), 3):
            raise ValueError(f"vertices {self.vertices.shape} and faces {self.faces.shape} should be [V, 3] and [F, 3]")
        if self.colors is not None and self.colors.shape != (count, 3):
            raise ValueError(f"colors are {self.colors.shape}, expected {(count, 3)}")
        if (self.uvs is None) != (self.texture is None):
            raise ValueError("texture coordinates and texture come together")
        if self.uvs is not None and self.uvs.shape != (count, 2):
            raise ValueError(f"uvs are {self.uvs.shape}, expected {(count, 2)}")
        if len(self.faces) and not 0 <= self.faces.min() <= self.faces.max() < count:
            raise ValueError(f"faces name vertices {self.faces.min()} to {self.faces.max()} of {count}")

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def corners(self) -> np.ndarray:
        """Corner positions [F, 3, 3] (face, corner, axis)."""
        return self.vertices[self.faces]

    def face_vectors(self) -> np.ndarray:
        """Normals [F, 3] float64 as long as twice the faces' areas, pointing outside."""
        corners = self.corners
        return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])

    def face_normals(self) -> np.ndarray:
        """Unit normals [F, 3]; zero for faces without area."""
        vectors = self.face_vectors()
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)

    def face_areas(self) -> np.ndarray:
        """Areas [F] in square world units."""
        return np.linalg.norm(self.face_vectors(), axis=1) / 2

    def vertex_normals(self) -> np.ndarray:
        """Unit normals [V, 3]: means of the adjoining faces' by area, zero for a vertex without faces.

        Vertices in one place (the two sides of a texture seam) get one normal.
        """
        vectors = self.face_vectors()
        _, place = distinct_rows(self.vertices)
        sums = np.zeros((int(place.max(initial=-1)) + 1, 3))
        for corner in range(3):
            np.add.at(sums, place[self.faces[:, corner]], vectors)
        normals = sums[place]
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)

    def moved(self, offset: np.ndarray) -> TriangleMesh:
        """The mesh shifted by ``offset`` [3]."""
        return replace(self, vertices=self.vertices + offset)

    def select_faces(self, keep: np.ndarray) -> TriangleMesh:
        """The faces at ``keep`` (a mask [F] bool or indices) and only the vertices they use, in their old order."""
        faces = self.faces[keep]
        used, inverse = np.unique(faces, return_inverse=True)
        return TriangleMesh(
            self.vertices[used],
            inverse.reshape(-1, 3).astype(np.int64),
            None if self.colors is None else self.colors[used],
            None if self.uvs is None else self.uvs[used],
            self.texture,
        )

    def without_texture(self) -> TriangleMesh:
        """Shape and vertex colours only."""
        return replace(self, uvs=None, texture=None)

    def welded(self, length: float = 0.0) -> TriangleMesh:
        """The mesh with vertices in one place merged, to within `WELD_FRACTION` of ``length`` (0: exactly there);
        collapsed and doubled faces are dropped.

        A merged vertex keeps the position and the mean colour; texture coordinates, which differ across seams, are
        left out.
        """
        step = length * WELD_FRACTION
        lattice = np.round(self.vertices / step).astype(np.int64) if step else self.vertices
        first, place = distinct_rows(lattice)
        colors = None
        if self.colors is not None:
            counts = np.bincount(place, minlength=len(first)).astype(np.float32)
            sums = [np.bincount(place, self.colors[:, c], len(first)) for c in range(3)]
            colors = (np.stack(sums, axis=1) / counts[:, None]).astype(np.float32)
        faces = place[self.faces]
        proper = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
        faces = faces[proper]
        turned = np.take_along_axis(faces, (faces.argmin(1)[:, None] + np.arange(3)) % 3, axis=1)
        kept, _ = distinct_rows(turned)
        return TriangleMesh(self.vertices[first], faces[np.sort(kept)].astype(np.int64), colors)

    @staticmethod
    def cat(parts: Sequence[TriangleMesh]) -> TriangleMesh:
        """All faces of untextured parts, in order; coloured when all parts are."""
        starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
        colors = [part.colors for part in parts]
        return TriangleMesh(
            np.concatenate([np.zeros((0, 3)), *(part.vertices for part in parts)]),
            np.concatenate(
                [np.zeros((0, 3), np.int64), *(p.faces + start for p, start in zip(parts, starts, strict=False))]
            ),
            None
            if not parts or any(c is None for c in colors)
            else np.concatenate([c for c in colors if c is not None]),
        )


def distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row of ``rows`` [n, k] first occurs [m], in lexicographic order, and which of them every row
    is [n]: what `np.unique` finds over an axis, faster on millions of rows."""
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    begins = np.ones(len(rows), bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    place = np.empty(len(rows), np.int64)
    place[order] = np.cumsum(begins) - 1
    return order[begins], place
