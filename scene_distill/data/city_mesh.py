"""Triangles of a procedural city and what each of them is painted with.

A *surface* is a painted patch: a kind of material, two colours, a few numbers, and a frame (origin, u, v) in metres
that turns a point of the patch into texture coordinates. Triangles point at surfaces; textures are evaluated at hit
points, so nothing is ever baked and nothing is limited by a texel. World: ENU metres, z up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

PARAMS = 6
"""Numbers a paint may carry beside its colours; their meaning is the kind's own."""


class Kind(IntEnum):
    """Materials that `city_textures` knows how to colour."""

    GROUND = 0
    PLAIN = 1
    FACADE = 2
    TILES = 3
    FLAT_ROOF = 4
    SOLAR = 5
    FOLIAGE = 6
    GRASS = 7
    PAVING = 8
    PARKING = 9
    COURT = 10
    WATER = 11
    DECK = 12


def linear(red: int, green: int, blue: int) -> tuple[float, float, float]:
    """Linear-light reflectance of an sRGB colour given as bytes (IEC 61966-2-1)."""
    encoded = np.array([red, green, blue]) / 255.0
    values = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return float(values[0]), float(values[1]), float(values[2])


@dataclass(frozen=True)
class Paint:
    """What a patch looks like: material kind, base and accent colour (linear reflectance) and the kind's numbers."""

    kind: Kind
    color: tuple[float, float, float]
    accent: tuple[float, float, float] = (0.0, 0.0, 0.0)
    params: tuple[float, ...] = ()


@dataclass(frozen=True)
class Placement:
    """A local frame on the ground: rotated by ``yaw`` radians about z, then moved to (x, y)."""

    x: float
    y: float
    yaw: float = 0.0

    def world(self, points: np.ndarray) -> np.ndarray:
        """World coordinates [..., 3] of local points [..., 3]."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        points = np.asarray(points, float)
        x, y = points[..., 0], points[..., 1]
        return np.stack([self.x + cos * x - sin * y, self.y + sin * x + cos * y, points[..., 2]], axis=-1)

    def at(self, x: float, y: float, yaw: float = 0.0) -> Placement:
        """A frame at local (x, y), turned by ``yaw`` against this one."""
        origin = self.world(np.array([x, y, 0.0]))
        return Placement(float(origin[0]), float(origin[1]), self.yaw + yaw)


@dataclass(frozen=True, eq=False)
class CityMesh:
    """F triangles over V vertices and the S surfaces they show.

    vertices [V, 3] float32; faces [F, 3] int32, counter-clockwise seen from outside; normals [F, 3] float32 unit;
    face_surface [F] int32. Per surface: kinds [S] uint8, frames [S, 3, 3] float32 (origin, u axis, v axis),
    colors [S, 2, 3] float32 (base, accent; linear), params [S, PARAMS] float32, seeds [S] float32 in [0, 1).
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    face_surface: np.ndarray
    kinds: np.ndarray
    frames: np.ndarray
    colors: np.ndarray
    params: np.ndarray
    seeds: np.ndarray


class MeshBuilder:
    """Collects painted shapes and hands them over as one `CityMesh`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._vertices: list[np.ndarray] = []
        self._faces: list[np.ndarray] = []
        self._face_surface: list[np.ndarray] = []
        self._surfaces: list[tuple[Paint, np.ndarray, float]] = []
        self._count = 0

    def mesh(self, vertices: np.ndarray, faces: np.ndarray, paint: Paint, frame: np.ndarray) -> None:
        """Add triangles [F, 3] over world vertices [V, 3], all showing one surface with ``frame`` [3, 3]."""
        self._vertices.append(np.asarray(vertices, np.float32))
        self._faces.append(np.asarray(faces, np.int32) + self._count)
        self._face_surface.append(np.full(len(faces), len(self._surfaces), np.int32))
        self._surfaces.append((paint, frame, float(self.rng.random())))
        self._count += len(vertices)

    def polygon(self, corners: np.ndarray, paint: Paint) -> None:
        """Add a flat polygon [n, 3], counter-clockwise from outside, that its middle sees whole.

        u runs along the first edge, v inwards from it.
        """
        corners = np.asarray(corners, float)
        along = corners[1] - corners[0]
        along /= np.linalg.norm(along)
        inward = corners[-1] - corners[0]
        inward = inward - along * (inward @ along)
        inward /= np.linalg.norm(inward)
        frame = np.stack([corners[0], along, inward])
        count = len(corners)
        if count <= 4:
            self.mesh(corners, np.array([[0, i, i + 1] for i in range(1, count - 1)]), paint, frame)
            return
        fan = np.array([[count, i, (i + 1) % count] for i in range(count)])
        self.mesh(np.vstack([corners, corners.mean(axis=0)]), fan, paint, frame)

    def slab(self, place: Placement, size: tuple[float, float], z: float, paint: Paint) -> None:
        """Add a horizontal rectangle of ``size`` (x, y) centred on ``place`` at height ``z``, seen from above."""
        half_x, half_y = size[0] / 2, size[1] / 2
        local = [(-half_x, -half_y, z), (half_x, -half_y, z), (half_x, half_y, z), (-half_x, half_y, z)]
        self.polygon(place.world(np.array(local)), paint)

    def walls(self, place: Placement, size: tuple[float, float], z: tuple[float, float], paint: Paint) -> None:
        """Add the four sides of a box of ``size`` centred on ``place`` from z[0] to z[1]."""
        half_x, half_y = size[0] / 2, size[1] / 2
        ring = [(-half_x, -half_y), (half_x, -half_y), (half_x, half_y), (-half_x, half_y)]
        for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
            local = [(x0, y0, z[0]), (x1, y1, z[0]), (x1, y1, z[1]), (x0, y0, z[1])]
            self.polygon(place.world(np.array(local)), paint)

    def box(self, place: Placement, size: tuple[float, float], z: tuple[float, float], paint: Paint) -> None:
        """Add a box's sides and top in one paint (the bottom is never seen)."""
        self.walls(place, size, z, paint)
        self.slab(place, size, z[1], paint)

    def frustum(
        self,
        place: Placement,
        low: tuple[float, float],
        high: tuple[float, float],
        z: tuple[float, float],
        paint: Paint,
    ) -> None:
        """Add the slanted sides between a rectangle ``low`` at z[0] and a rectangle ``high`` at z[1]."""
        signs = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
        for (a, b), (c, d) in zip(signs, signs[1:] + signs[:1], strict=True):
            local = [
                (a * low[0] / 2, b * low[1] / 2, z[0]),
                (c * low[0] / 2, d * low[1] / 2, z[0]),
                (c * high[0] / 2, d * high[1] / 2, z[1]),
                (a * high[0] / 2, b * high[1] / 2, z[1]),
            ]
            self.polygon(place.world(np.array(local)), paint)

    def finish(self) -> CityMesh:
        """Everything added so far as one mesh."""
        vertices, faces = np.concatenate(self._vertices), np.concatenate(self._faces)
        corners = vertices[faces].astype(np.float64)
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        params = np.zeros((len(self._surfaces), PARAMS), np.float32)
        for row, (paint, _, _) in zip(params, self._surfaces, strict=True):
            row[: len(paint.params)] = paint.params
        return CityMesh(
            vertices=vertices,
            faces=faces,
            normals=normals.astype(np.float32),
            face_surface=np.concatenate(self._face_surface),
            kinds=np.array([paint.kind for paint, _, _ in self._surfaces], np.uint8),
            frames=np.array([frame for _, frame, _ in self._surfaces], np.float32),
            colors=np.array([(paint.color, paint.accent) for paint, _, _ in self._surfaces], np.float32),
            params=params,
            seeds=np.array([seed for _, _, seed in self._surfaces], np.float32),
        )


def icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere of 20 * 4^subdivisions triangles: vertices [V, 3], faces [F, 3] counter-clockwise from outside."""
    golden = (1 + 5**0.5) / 2
    vertices = [(a * 1.0, b * golden, 0.0) for a in (-1, 1) for b in (-1, 1)]
    vertices += [(0.0, a * 1.0, b * golden) for a in (-1, 1) for b in (-1, 1)]
    vertices += [(b * golden, 0.0, a * 1.0) for a in (-1, 1) for b in (-1, 1)]
    points = np.array(vertices) / np.hypot(1, golden)
    from scipy.spatial import ConvexHull

    for _ in range(subdivisions):
        faces = ConvexHull(points).simplices
        edges = np.unique(
            np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1), axis=0
        )
        middles = points[edges].mean(axis=1)
        points = np.concatenate([points, middles / np.linalg.norm(middles, axis=1, keepdims=True)])
    faces = ConvexHull(points).simplices
    corners = points[faces]
    inward = (
        np.einsum("fi,fi->f", np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), corners[:, 0]) < 0
    )
    faces[inward] = faces[inward][:, ::-1]
    return points, faces
