"""Charts of a mesh: parts that lie flat on one of six planes without covering themselves.

Every face belongs to the side of a box that it looks at most. Sides are smoothed, so that a noisy wall is one chart
and not a hundred: a face takes the side of its neighbours as long as it is not seen too slantwise from there. Connected
faces of one side are a chart; where a chart would cover itself, as floors of a spiral ramp do, what lies below becomes
a chart of its own. Projection along an axis keeps the shape of charts and takes no solving, which on noisy surfaces is
what general charts spend minutes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_distill.export.open3d_library import load_open3d, ray_scene
from scene_distill.representations.meshes import TriangleMesh

SMALLEST_COSINE = 0.2
"""A face is not laid on a plane to which its normal leans more than this."""

NEIGHBOUR_WEIGHT = 1.0
"""What a neighbour's side counts, in cosines of one's own."""

SWEEPS = 20
LAYERS = 16
"""Most charts above one another that one chart is taken apart into."""

_RAYS_AT_ONCE = 1 << 20
_GAP = 2.0
"""Texels between charts laid out to look for covered ones."""

_APART = 1e-2
"""Texels between a face and one above it; on a common edge a ray meets both at once."""


@dataclass(frozen=True, eq=False)
class Charts:
    """chart [F]: number of each face's chart; side [C]: the side of the box that it lies on, axes x y z seen from plus,
    then from minus."""

    chart: np.ndarray
    side: np.ndarray

    def __len__(self) -> int:
        return len(self.side)


@dataclass(frozen=True, eq=False)
class FlatMesh:
    """A mesh cut along its charts: origin [V]: vertices of the mesh; faces [F, 3]; chart [V]; place [V, 2]: where they
    lie in their chart, from (0, 0) on, in the mesh's units; height [V] towards the one who looks at the side."""

    origin: np.ndarray
    faces: np.ndarray
    chart: np.ndarray
    place: np.ndarray
    height: np.ndarray


def find_charts(mesh: TriangleMesh, texel: float) -> Charts:
    """The charts of a mesh; no two faces of one cover the same point of a grid of ``texel`` (in the mesh's units).

    Covers that `LAYERS` rounds do not resolve stay; there, texels belong to the face on top.
    """
    neighbours = _neighbours(mesh)
    side = _sides(mesh, neighbours)
    layer = np.zeros(len(mesh), np.int64)
    for number in range(LAYERS):
        charts = _connected(side, layer, neighbours)
        if number == LAYERS - 1:
            break
        covered = _covered(flattened(mesh, charts), texel)
        if len(covered) == 0:
            break
        layer[covered] += 1
    return charts


def flattened(mesh: TriangleMesh, charts: Charts) -> FlatMesh:
    """The mesh cut along its charts, each laid on its side."""
    corner = charts.chart[:, None] * len(mesh.vertices) + mesh.faces
    corners, faces = np.unique(corner, return_inverse=True)
    origin, chart = corners % len(mesh.vertices), corners // len(mesh.vertices)
    axis, minus = charts.side[chart] % 3, charts.side[chart] >= 3
    points, rows = mesh.vertices[origin], np.arange(len(origin))
    place = np.stack([points[rows, (axis + 1) % 3], points[rows, (axis + 2) % 3]], axis=1)
    place[minus, 0] *= -1
    lowest = np.full((len(charts), 2), np.inf)
    np.minimum.at(lowest, chart, place)
    height = np.where(minus, -points[rows, axis], points[rows, axis])
    return FlatMesh(origin, faces.reshape(-1, 3), chart, place - lowest[chart], height)


def _neighbours(mesh: TriangleMesh) -> np.ndarray:
    """Pairs [P, 2] of faces with a common edge."""
    edges = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    key = edges[:, 0] * len(mesh.vertices) + edges[:, 1]
    order = np.argsort(key, kind="stable")
    same = np.flatnonzero(key[order][1:] == key[order][:-1])
    return np.stack([order[same], order[same + 1]], axis=1) // 3


def _sides(mesh: TriangleMesh, neighbours: np.ndarray) -> np.ndarray:
    """The side [F] of every face."""
    normals = mesh.face_normals()
    cosines = np.concatenate([normals, -normals], axis=1)
    side = cosines.argmax(axis=1)
    allowed = cosines >= np.minimum(SMALLEST_COSINE, cosines.max(axis=1, keepdims=True))
    pairs = np.concatenate([neighbours, neighbours[:, ::-1]])
    halves = [pairs[pairs[:, 0] % 2 == half] for half in (0, 1)]  # in turn, or faces side by side would swap for ever
    for _ in range(SWEEPS):
        before = side.copy()
        for half, found in enumerate(halves):
            votes = np.bincount(6 * found[:, 0] + side[found[:, 1]], minlength=6 * len(side)).reshape(-1, 6)
            score = np.where(allowed, cosines + NEIGHBOUR_WEIGHT * votes, -np.inf)
            side[half::2] = score.argmax(axis=1)[half::2]
        if np.array_equal(before, side):
            break
    return side


def _connected(side: np.ndarray, layer: np.ndarray, neighbours: np.ndarray) -> Charts:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    kind = 6 * layer + side
    joined = neighbours[kind[neighbours[:, 0]] == kind[neighbours[:, 1]]]
    graph = coo_matrix((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(len(side), len(side)))
    count, chart = connected_components(graph, directed=False)
    sides = np.zeros(count, np.int64)
    sides[chart] = side
    return Charts(chart.astype(np.int64), sides)


def _covered(flat: FlatMesh, texel: float) -> np.ndarray:
    """Faces that have another one of their chart above them, seen from their side at the points of a grid."""
    o3d = load_open3d()
    places = flat.place / texel
    places = (places + _shelves(places, flat.chart)[flat.chart]).astype(np.float32)
    heights = ((flat.height - flat.height.min()) / texel).astype(np.float32)
    scene = ray_scene(TriangleMesh(np.column_stack([places, heights]).astype(np.float64), flat.faces))
    width, depth = (int(np.ceil(extent)) for extent in places.max(axis=0))
    above, found = float(heights.max()) + 1.0, []
    for start in range(0, width * depth, _RAYS_AT_ONCE):
        number = np.arange(start, min(start + _RAYS_AT_ONCE, width * depth))
        rays = np.zeros((len(number), 6), np.float32)
        rays[:, 0], rays[:, 1], rays[:, 2], rays[:, 5] = number % width + 0.5, number // width + 0.5, above, -1.0
        counts = scene.count_intersections(o3d.core.Tensor(rays)).numpy()
        several = rays[counts > 1]
        if len(several) == 0:
            continue
        hits = scene.list_intersections(o3d.core.Tensor(several))
        ray, face, distance = (hits[name].numpy() for name in ("ray_ids", "primitive_ids", "t_hit"))
        order = np.lexsort((distance, ray))
        ray, distance = ray[order], distance[order]
        below = (ray[1:] == ray[:-1]) & (distance[1:] - distance[:-1] > _APART)
        found.append(face[order[1:][below]])
    return np.unique(np.concatenate(found)).astype(np.int64) if found else np.zeros(0, np.int64)


def _shelves(places: np.ndarray, chart: np.ndarray) -> np.ndarray:
    """Corners [C, 2] of charts in a layout where none covers another: rows of charts of like height."""
    sizes = np.zeros((chart.max() + 1, 2))
    np.maximum.at(sizes, chart, places)
    sizes = np.ceil(sizes) + _GAP
    order = np.argsort(-sizes[:, 1], kind="stable")
    widths, heights = sizes[order, 0], sizes[order, 1]
    row = np.floor((np.cumsum(widths) - widths) / max(np.sqrt((widths * heights).sum()), widths.max())).astype(np.int64)
    starts = np.searchsorted(row, np.arange(row[-1] + 1))
    starts = starts[np.append(True, np.diff(starts) > 0)]
    corners = np.zeros_like(sizes)
    y = 0.0
    for begin, end in zip(starts, np.append(starts[1:], len(order)), strict=True):
        inside = slice(begin, end)
        corners[order[inside], 0] = np.cumsum(widths[inside]) - widths[inside]
        corners[order[inside], 1] = y
        y += heights[begin]
    return corners
