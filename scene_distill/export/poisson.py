"""Screened Poisson surface reconstruction (Kazhdan and Hoppe 2013, through Open3D) of an oriented point cloud.

The surface is closed where nothing is trimmed: it invents what no point supports. ``trim_voxels`` drops faces farther
than that many voxels from every point. Memory follows the number of points and the depth of the octree; both are
bounded: points are averaged in voxels, and the voxels grow until at most ``max_points`` are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.export.depth_views import DepthView, DepthViews
from scene_distill.export.open3d_library import from_legacy_mesh, load_open3d
from scene_distill.export.point_cloud import OrientedPoints
from scene_distill.representations.meshes import TriangleMesh

MAX_OCTREE_DEPTH = 11
"""2^11 cells along the longest side; one more needs four times the memory."""

_MARGIN = 1.1


@dataclass(frozen=True)
class PoissonSettings:
    """voxel_m: size that points are averaged in and about that of the octree's cells; trim_voxels: see above, None
    keeps the closed surface; max_points: see above; threads: of the
    solver, -1 for all."""

    voxel_m: float
    trim_voxels: float | None = 3.0
    max_points: int = 4_000_000
    threads: int = -1


def reconstruct(points: OrientedPoints, settings: PoissonSettings) -> TriangleMesh:
    """Coloured mesh through oriented points; `UserError` when there are fewer than 20 or no surface comes out."""
    if len(points) < 20:
        raise UserError(f"Poisson reconstruction needs at least 20 oriented points; there are {len(points)}")
    o3d = load_open3d()
    middle = points.positions.mean(axis=0)
    points = points.moved(-middle)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.positions))
    cloud.normals = o3d.utility.Vector3dVector(points.normals.astype(np.float64))
    cloud.colors = o3d.utility.Vector3dVector(points.colors.astype(np.float64))
    extent = float(np.ptp(points.positions, axis=0).max()) * _MARGIN
    depth = max(4, min(MAX_OCTREE_DEPTH, math.ceil(math.log2(max(extent / settings.voxel_m, 1.0)))))
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        try:
            made, _ = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
                cloud, depth=depth, scale=_MARGIN, linear_fit=True, n_threads=settings.threads
            )
        except RuntimeError as error:
            raise UserError(f"Poisson reconstruction failed ({str(error).splitlines()[0][:120]})") from error
    mesh = from_legacy_mesh(made)
    if settings.trim_voxels is not None and len(mesh):
        mesh = trimmed(mesh, points.positions, settings.trim_voxels * settings.voxel_m)
    if len(mesh) == 0:
        raise UserError("Poisson reconstruction gave no surface near the points; use larger voxels or trim less")
    return mesh.moved(middle)


def trimmed(mesh: TriangleMesh, positions: np.ndarray, distance: float) -> TriangleMesh:
    """The faces whose corners all lie within ``distance`` of one of the positions [P, 3]."""
    from scipy.spatial import cKDTree

    near, _ = cKDTree(positions).query(mesh.vertices, distance_upper_bound=distance, workers=-1)
    return mesh.select_faces(np.isfinite(near)[mesh.faces].all(axis=1))


def points_of_views(
    views: DepthViews, settings: PoissonSettings, report: Callable[[int, int], None] = lambda done, total: None,
    depth_max_m: float = math.inf,
) -> OrientedPoints:  # fmt: skip
    """Points of all views, averaged in voxels, in the frame of the views' cameras.

    Raises `UserError` when no view has usable depth.
    """
    voxel = settings.voxel_m
    sums: dict[str, np.ndarray] = {"key": np.zeros((0, 3), np.int64), "sum": np.zeros((0, 10))}
    for index in range(len(views.cameras)):
        found = oriented_points(views[index], depth_max_m)
        rows = np.concatenate([found.positions, found.normals, found.colors, np.ones((len(found), 1))], axis=1)
        sums = _merged(sums, {"key": np.floor(found.positions / voxel).astype(np.int64), "sum": rows})
        while len(sums["key"]) > settings.max_points:
            voxel *= 2
            sums = _merged({"key": sums["key"] // 2, "sum": sums["sum"]}, None)
        report(index + 1, len(views.cameras))
    if len(sums["key"]) == 0:
        raise UserError("no view shows any depth; the scene is empty or transparent from all of its cameras")
    means = sums["sum"][:, :9] / sums["sum"][:, 9:]
    length = np.linalg.norm(means[:, 3:6], axis=1)
    # Normals that cancel belong to a thin wall seen from both sides or to noise: no direction to be had.
    good = length > 0.3
    normals = means[good, 3:6] / length[good, None]
    return OrientedPoints(means[good, :3], normals, means[good, 6:9].astype(np.float32))


def _merged(sums: dict[str, np.ndarray], more: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """One row a voxel, rows of the same voxel added."""
    key = sums["key"] if more is None else np.concatenate([sums["key"], more["key"]])
    value = sums["sum"] if more is None else np.concatenate([sums["sum"], more["sum"]])
    unique, place = np.unique(key, axis=0, return_inverse=True)
    total = np.stack(
        [np.bincount(place.reshape(-1), value[:, column], len(unique)) for column in range(value.shape[1])], axis=1
    )
    return {"key": unique, "sum": total}


def oriented_points(view: DepthView, depth_max_m: float = math.inf) -> OrientedPoints:
    """A point for every pixel whose four neighbours lie on the same surface, with the normal that they span.

    Neighbours are on one surface when their depth differs from the pixel's by less than 5 % and their second
    difference by less than 2 %.
    """
    depth = view.surface_depth_m(depth_max_m).astype(np.float64)
    points = view.points()
    middle = depth[1:-1, 1:-1]
    good = middle > 0
    for before, after in ((depth[1:-1, :-2], depth[1:-1, 2:]), (depth[:-2, 1:-1], depth[2:, 1:-1])):
        good &= (before > 0) & (after > 0)
        good &= np.maximum(abs(before - middle), abs(after - middle)) < 0.05 * middle
        good &= abs(before + after - 2 * middle) < 0.02 * middle
    right, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    normals = np.cross(down, right)[good]
    positions = points[1:-1, 1:-1][good]
    length = np.linalg.norm(normals, axis=1)
    normals /= np.maximum(length, 1e-300)[:, None]
    towards = view.camera.center - positions
    turned = np.where((normals * towards).sum(1, keepdims=True) < 0, -1.0, 1.0)
    points_found = OrientedPoints(positions, normals * turned, view.color[1:-1, 1:-1][good])
    return points_found.select(length > 0)
