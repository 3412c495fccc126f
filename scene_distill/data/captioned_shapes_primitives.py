"""Solid primitives that toy objects are glued from, and the first of them that a ray meets.

Three kinds are enough: balls (ellipsoids), frusta (cylinders, cones and what lies between, with flat caps) and convex
polyhedra of at most six faces (boxes, roofs, wedges). Each lives in a local frame of its own, so that a ray is
carried over by one matrix and the equations stay those of the unit solid. All hits are exact, and so are the normals.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BALL, FRUSTUM, POLYHEDRON = 0, 1, 2

_FACES = 6
_FAR = np.float32(1e9)
_TINY = np.float32(1e-9)

BOX_PLANES = np.array([[1, 0, 0, 1], [-1, 0, 0, 1], [0, 1, 0, 1], [0, -1, 0, 1], [0, 0, 1, 1], [0, 0, -1, 1]], float)
"""Half-spaces n.x <= w of the cube [-1, 1]^3 as rows (n, w)."""

ROOF_PLANES = np.array([[1, 0, 0, 1], [-1, 0, 0, 1], [0, 2, 1, 1], [0, -2, 1, 1], [0, 0, -1, 1], [0, 0, 1, 2]], float)
"""A gable roof: ridge along x at z = 1, eaves at y = -1 and 1, z = -1."""

BOW_PLANES = np.array([[2, 1, 0, 1], [-2, 1, 0, 1], [0, -1, 0, 1], [0, 0, 1, 1], [0, 0, -1, 1], [0, 1, 0, 2]], float)
"""An upright prism, wide at y = -1, an edge at y = 1."""

SAIL_PLANES = np.array([[1, 0, 1, 0], [-1, 0, 0, 1], [0, 1, 0, 1], [0, -1, 0, 1], [0, 0, -1, 1], [0, 0, 1, 2]], float)
"""A right-angled wedge: upright edge at x = -1, foot along z = -1."""


@dataclass(frozen=True, eq=False)
class Primitive:
    """One solid: ``x_world = frame @ x_local + center`` with the unit solid of its ``kind``, painted one colour.

    frame [3, 3] float64 (columns: local axes with their half lengths in world units); center [3]; color [3] linear
    reflectance. ``shape`` holds a frustum's radii at z = -1 and z = 1 (the larger is 1), or a polyhedron's half-spaces
    [6, 4].
    """

    kind: int
    frame: np.ndarray
    center: np.ndarray
    color: np.ndarray
    shape: np.ndarray

    def extent(self) -> np.ndarray:
        """Corners [8, 3] of a box around the solid, in world units."""
        signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)
        return signs @ self.frame.T + self.center

    def placed(self, scale: float, offset: np.ndarray) -> Primitive:
        """The solid at ``scale * x + offset``."""
        return Primitive(self.kind, self.frame * scale, self.center * scale + offset, self.color, self.shape)


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rotation [3, 3] in degrees: roll about x first, then pitch about y, then yaw about z."""
    (cy, cp, cr), (sy, sp, sr) = (f(np.radians([yaw, pitch, roll])) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def ball(center: Sequence[float], radii: float | Sequence[float], color: np.ndarray, yaw: float = 0.0,
         pitch: float = 0.0) -> Primitive:  # fmt: skip
    """An ellipsoid with half axes ``radii``, turned by yaw and pitch in degrees."""
    frame = rotation(yaw, pitch) * np.broadcast_to(np.asarray(radii, float), 3)
    return Primitive(BALL, frame, np.asarray(center, float), color, np.zeros(2))


def block(center: Sequence[float], half: Sequence[float], color: np.ndarray, yaw: float = 0.0, pitch: float = 0.0,
          roll: float = 0.0, planes: np.ndarray = BOX_PLANES) -> Primitive:  # fmt: skip
    """A box with half sides ``half``, or another polyhedron by its ``planes`` [6, 4]; angles in degrees."""
    frame = rotation(yaw, pitch, roll) * np.asarray(half, float)
    return Primitive(POLYHEDRON, frame, np.asarray(center, float), color, planes)


def tube(start: Sequence[float], end: Sequence[float], radius: float, color: np.ndarray,
         end_radius: float | None = None) -> Primitive:  # fmt: skip
    """A cylinder from ``start`` to ``end``, or a frustum that is ``end_radius`` wide at its end (0: a cone)."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    axis = (b - a) / 2
    length = np.linalg.norm(axis)
    helper = np.eye(3)[int(np.argmin(np.abs(axis)))]
    x = np.cross(helper, axis / length)
    x /= np.linalg.norm(x)
    radii = np.array([radius, radius if end_radius is None else end_radius])
    widest = radii.max()
    frame = np.stack([widest * x, widest * np.cross(axis / length, x), axis], axis=1)
    return Primitive(FRUSTUM, frame, (a + b) / 2, color, radii / widest)


def arc(points: Sequence[Sequence[float]], radius: float, color: np.ndarray) -> list[Primitive]:
    """A round bar along a polyline: cylinders with balls in the joints."""
    bars = [tube(a, b, radius, color) for a, b in itertools.pairwise(points)]
    return bars + [ball(point, radius, color) for point in points[1:-1]]


class Solids:
    """Primitives packed for ray casting; hits are those of a camera outside all of them."""

    def __init__(self, primitives: Sequence[Primitive]) -> None:
        order = sorted(primitives, key=lambda p: p.kind)
        self.colors = np.stack([p.color for p in order]).astype(np.float32)
        inverse = np.linalg.inv(np.stack([p.frame for p in order]))
        self._local_from_world = inverse.astype(np.float32)
        self._centers = np.stack([p.center for p in order])
        self._kinds = np.array([p.kind for p in order])
        self._radii = np.stack([p.shape if p.kind == FRUSTUM else np.ones(2) for p in order]).astype(np.float32)
        self._planes = np.stack([p.shape if p.kind == POLYHEDRON else BOX_PLANES for p in order]).astype(np.float32)

    def first_hits(self, origin: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What rays from ``origin`` [3] along ``directions`` [3, n] meet first.

        Returns the primitive [n] (-1: none), the distance [n] in direction lengths and the outward unit normal [n, 3].
        """
        origins = np.einsum("kij,kj->ki", self._local_from_world, origin - self._centers).astype(np.float32)
        rays = self._local_from_world @ directions.astype(np.float32)
        distance = np.full((len(self._kinds), directions.shape[1]), _FAR, np.float32)
        for kind, meet in ((BALL, _meet_balls), (FRUSTUM, self._meet_frusta), (POLYHEDRON, self._meet_polyhedra)):
            which = np.flatnonzero(self._kinds == kind)
            if which.size:
                rows = slice(which[0], which[-1] + 1)
                distance[rows] = meet(origins[rows], rays[rows], rows)
        nearest = distance.argmin(axis=0)
        reach = distance[nearest, np.arange(len(nearest))]
        hit = reach < _FAR
        normals = np.zeros((len(nearest), 3), np.float32)
        index = np.flatnonzero(hit)
        normals[index] = self._normals(nearest[index], origins, rays[nearest[index], :, index], reach[index])
        return np.where(hit, nearest, -1), reach, normals

    def _meet_frusta(self, o: np.ndarray, d: np.ndarray, rows: slice) -> np.ndarray:
        middle, slope = self._radii[rows].mean(1), np.diff(self._radii[rows], axis=1)[:, 0] / 2
        ox, oy, oz = o.T[..., None]
        dx, dy, dz = d[:, 0], d[:, 1], d[:, 2]
        m, k = middle[:, None], slope[:, None]
        here = m + k * oz
        a = dx * dx + dy * dy - k * k * dz * dz
        b = ox * dx + oy * dy - k * dz * here
        c = ox * ox + oy * oy - here * here
        a = np.where(np.abs(a) < _TINY, _TINY, a)
        inside = b * b - a * c
        root = np.sqrt(np.maximum(inside, 0))
        best = np.full_like(dx, _FAR)
        for t in ((-b - root) / a, (-b + root) / a):
            z = oz + t * dz
            good = (inside >= 0) & (t > 0) & (np.abs(z) <= 1) & (m + k * z >= 0)
            best = np.where(good & (t < best), t, best)
        dz = np.where(np.abs(dz) < _TINY, _TINY, dz)
        for side, radius in ((-1, self._radii[rows, :1]), (1, self._radii[rows, 1:])):
            t = (side - oz) / dz
            x, y = ox + t * dx, oy + t * dy
            good = (t > 0) & (x * x + y * y <= radius * radius)
            best = np.where(good & (t < best), t, best)
        return best

    def _meet_polyhedra(self, o: np.ndarray, d: np.ndarray, rows: slice) -> np.ndarray:
        enter, leave, _ = self._crossings(o, d, self._planes[rows])
        return np.where((enter < leave) & (enter > 0), enter, _FAR)

    @staticmethod
    def _crossings(o: np.ndarray, d: np.ndarray, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where rays [K, 3, n] enter and leave convex solids, [K, n] each, and the face [K, n] they enter by."""
        enter = np.full((d.shape[0], d.shape[2]), -_FAR, np.float32)
        leave = np.full_like(enter, _FAR)
        face = np.zeros(enter.shape, np.int8)
        for f in range(_FACES):
            normal, level = planes[:, f, :3], planes[:, f, 3]
            speed = np.einsum("ki,kin->kn", normal, d)
            gap = (level - np.einsum("ki,ki->k", normal, o))[:, None]
            t = gap / np.where(np.abs(speed) < _TINY, _TINY, speed)
            later = (speed < 0) & (t > enter)
            enter = np.where(later, t, enter)
            face = np.where(later, np.int8(f), face)
            leave = np.where((speed > 0) & (t < leave), t, leave)
            leave = np.where((np.abs(speed) < _TINY) & (gap < 0), -_FAR, leave)
        return enter, leave, face

    def _normals(self, which: np.ndarray, origins: np.ndarray, rays: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """Outward unit normals [n, 3] in the world where rays [n, 3] (local) meet primitives ``which`` [n]."""
        local = origins[which] + reach[:, None] * rays
        kind = self._kinds[which]
        out = local.copy()
        tubes = np.flatnonzero(kind == FRUSTUM)
        if tubes.size:
            radii, p = self._radii[which[tubes]], local[tubes]
            slope, wide = (radii[:, 1] - radii[:, 0]) / 2, radii.mean(1)
            at = wide + slope * p[:, 2]
            side = np.abs(np.hypot(p[:, 0], p[:, 1]) - at) < 1e-3 * np.maximum(wide, 1e-3)
            out[tubes, 2] = -slope * at
            side &= np.einsum("ni,ni->n", out[tubes], rays[tubes]) < 0
            cap = tubes[~side]
            out[cap] = np.array([0, 0, 1], np.float32) * np.sign(local[cap, 2:])
        flat = np.flatnonzero(kind == POLYHEDRON)
        if flat.size:
            planes = self._planes[which[flat]]
            _, _, face = self._crossings(origins[which[flat]], rays[flat, :, None], planes)
            out[flat] = planes[np.arange(len(flat)), face[:, 0], :3]
        world = np.einsum("nji,nj->ni", self._local_from_world[which], out)
        return world / np.maximum(np.linalg.norm(world, axis=1, keepdims=True), _TINY)


def _meet_balls(o: np.ndarray, d: np.ndarray, _rows: slice) -> np.ndarray:
    a = np.einsum("kin,kin->kn", d, d)
    b = np.einsum("ki,kin->kn", o, d)
    c = (np.einsum("ki,ki->k", o, o) - 1)[:, None]
    inside = b * b - a * c
    t = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (t > 0), t, _FAR)
