"""How good a mesh is: whether it is closed, and how far it is from known geometry.

    accuracy      mean distance from samples of the mesh to the true surface
    completeness  mean distance from samples of the true surface, those that the cameras could see, to the mesh
    precision, recall  share of these samples closer than a threshold; F-score their harmonic mean (Knapitsch et al.,
                  Tanks and Temples, 2017)

Samples are uniform over the area. Distances are point to triangle, not point to sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import numpy_generator
from scene_distill.export.open3d_library import load_open3d, ray_scene
from scene_distill.representations.meshes import TriangleMesh

_QUERIES_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Topology:
    """faces, vertices after welding; components: pieces connected over edges; boundary_edges: used by one face;
    nonmanifold_edges: used by more than two; flipped_edges: used twice in the same direction; watertight: none of the
    three; euler: V - E + F."""

    faces: int
    vertices: int
    components: int
    boundary_edges: int
    nonmanifold_edges: int
    flipped_edges: int
    watertight: bool
    euler: int


def topology(mesh: TriangleMesh) -> Topology:
    """Counts of the mesh after vertices in one place are merged (a texture seam is no hole)."""
    mesh = mesh.welded()
    directed = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    edges, inverse, uses = np.unique(np.sort(directed, axis=1), axis=0, return_inverse=True, return_counts=True)
    forward = np.bincount(inverse.reshape(-1), directed[:, 0] < directed[:, 1], len(edges))
    boundary, crowded = int((uses == 1).sum()), int((uses > 2).sum())
    flipped = int(((uses == 2) & (forward != 1)).sum())
    used = len(np.unique(mesh.faces))
    return Topology(
        faces=len(mesh),
        vertices=used,
        components=int(face_components(mesh).max(initial=-1)) + 1,
        boundary_edges=boundary,
        nonmanifold_edges=crowded,
        flipped_edges=flipped,
        watertight=len(mesh) > 0 and boundary + crowded + flipped == 0,
        euler=used - len(edges) + len(mesh),
    )


def face_components(mesh: TriangleMesh) -> np.ndarray:
    """Number [F] int of the piece each face belongs to; faces belong together when they share a vertex."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if len(mesh) == 0:
        return np.zeros(0, np.int64)
    count = len(mesh.vertices)
    rows, columns = mesh.faces[:, [0, 1]].reshape(-1), mesh.faces[:, [1, 2]].reshape(-1)
    links = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    _, labels = connected_components(links, directed=False)
    _, pieces = np.unique(labels[mesh.faces[:, 0]], return_inverse=True)
    return pieces.reshape(-1)


@dataclass(frozen=True)
class GeometryError:
    """Distances in world units, shares in [0, 1] at ``threshold``; see the module's first lines."""

    threshold: float
    accuracy: float
    completeness: float
    accuracy_median: float
    completeness_median: float
    precision: float
    recall: float
    f_score: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for JSON."""
        return asdict(self)


Region = Callable[[np.ndarray], np.ndarray]
"""Points [P, 3] -> [P] bool: which of them count."""


@dataclass(frozen=True, eq=False)
class KnownSurface:
    """A true surface, and points [P, 3] on the part of it that a reconstruction should have."""

    mesh: TriangleMesh
    points: np.ndarray

    @staticmethod
    def sampled(
        mesh: TriangleMesh, samples: int = 100_000, *, seed: int = 1, compared: Region | None = None
    ) -> KnownSurface:
        """``samples`` points over the whole mesh, those of them for which ``compared`` is true."""
        points = sample_surface(mesh, samples, seed)
        return KnownSurface(mesh, points if compared is None else points[compared(points)])


def geometry_error(
    mesh: TriangleMesh,
    known: KnownSurface,
    threshold: float,
    *,
    samples: int = 100_000,
    seed: int = 0,
    judged: Region | None = None,
) -> GeometryError:
    """Error of a mesh against a known surface; ``judged`` picks the samples of the mesh that count against it (all).

    Raises `UserError` when either has no face, or none of the samples is to be compared.
    """
    ours = sample_surface(mesh, samples, seed)
    ours = ours if judged is None else ours[judged(ours)]
    if len(ours) == 0 or len(known.points) == 0:
        raise UserError("nothing can be compared: no sample of the mesh or of the known surface lies in the region")
    to_truth, to_mesh = distances(ours, known.mesh), distances(known.points, mesh)
    precision, recall = float((to_truth < threshold).mean()), float((to_mesh < threshold).mean())
    return GeometryError(
        threshold=threshold,
        accuracy=float(to_truth.mean()),
        completeness=float(to_mesh.mean()),
        accuracy_median=float(np.median(to_truth)),
        completeness_median=float(np.median(to_mesh)),
        precision=precision,
        recall=recall,
        f_score=2 * precision * recall / max(precision + recall, 1e-12),
    )


def sample_surface(mesh: TriangleMesh, count: int, seed: int = 0) -> np.ndarray:
    """Points [count, 3] uniform over the area, the same for the same seed."""
    areas = mesh.face_areas()
    total = float(areas.sum())
    if not total > 0:
        raise UserError("a mesh without any area cannot be sampled")
    rng = numpy_generator(seed, "mesh", "samples")
    # Evenly spread over the cumulated area: less noise than independent draws.
    marks = (np.arange(count) + rng.random(count)) * (total / count)
    face = np.minimum(np.searchsorted(np.cumsum(areas), marks), len(areas) - 1)
    a, b = rng.random((2, count, 1))
    over = a + b > 1
    a, b = np.where(over, 1 - a, a), np.where(over, 1 - b, b)
    corners = mesh.vertices[mesh.faces[face]]
    return corners[:, 0] + a * (corners[:, 1] - corners[:, 0]) + b * (corners[:, 2] - corners[:, 0])


def distances(points: np.ndarray, mesh: TriangleMesh) -> np.ndarray:
    """Distances [P] float32 from points [P, 3] to the nearest triangle."""
    o3d = load_open3d()
    middle = points.mean(axis=0)
    scene = ray_scene(mesh.moved(-middle))
    parts = [
        scene.compute_distance(o3d.core.Tensor((points[start : start + _QUERIES_AT_ONCE] - middle).astype(np.float32)))
        for start in range(0, len(points), _QUERIES_AT_ONCE)
    ]
    return np.concatenate([part.numpy() for part in parts])
