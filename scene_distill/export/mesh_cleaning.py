"""From a raw surface to one worth keeping: no crumbs, nothing that no camera ever saw, and not more faces than asked
for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.export.mesh_quality import face_components
from scene_distill.export.open3d_library import from_legacy_mesh, legacy_mesh, load_open3d, ray_scene
from scene_distill.representations.meshes import TriangleMesh

_RAYS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class CleaningSettings:
    """min_component: smallest piece kept, as a share of the whole area; unseen: whether faces that no camera sees are
    dropped (this opens closed surfaces); max_faces: budget, None keeps all."""

    min_component: float = 1e-4
    unseen: bool = False
    max_faces: int | None = None


def clean(mesh: TriangleMesh, cameras: Sequence[Camera], settings: CleaningSettings) -> TriangleMesh:
    """The mesh after `without_small_components`, `without_unseen_faces` and `decimate`, as the settings ask.

    Raises `UserError` when nothing is left.
    """
    cleaned = without_small_components(mesh, settings.min_component)
    if settings.unseen:
        cleaned = without_unseen_faces(cleaned, cameras)
        cleaned = without_small_components(cleaned, settings.min_component)
    if settings.max_faces is not None:
        cleaned = decimate(cleaned, settings.max_faces)
    if len(cleaned) == 0:
        raise UserError(f"cleaning left nothing of a mesh of {len(mesh)} faces; lower the smallest component")
    return cleaned


def without_small_components(mesh: TriangleMesh, min_share: float) -> TriangleMesh:
    """The pieces whose area is at least ``min_share`` of the whole; the largest one always stays."""
    pieces = face_components(mesh)
    if len(pieces) == 0:
        return mesh
    areas = np.bincount(pieces, mesh.face_areas())
    keep = areas >= min(min_share * areas.sum(), areas.max())
    return mesh.select_faces(keep[pieces])


def without_unseen_faces(mesh: TriangleMesh, cameras: Sequence[Camera]) -> TriangleMesh:
    """The faces whose middle or a point near a corner at least one camera sees from outside, nothing in front of it."""
    return mesh.select_faces(seen_faces(mesh, cameras))


def seen_faces(mesh: TriangleMesh, cameras: Sequence[Camera]) -> np.ndarray:
    """True [F] for faces that show their front to a camera with nothing before their middle or 3 points around it."""
    o3d = load_open3d()
    middle = mesh.vertices.mean(axis=0)
    mesh = mesh.moved(-middle)
    scene, corners, vectors = ray_scene(mesh), mesh.corners, mesh.face_vectors()
    weights = np.array([[1, 1, 1], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / np.array([[3.0], [6.0], [6.0], [6.0]])
    seen = np.zeros(len(mesh), bool)
    for weight in weights:
        targets = np.einsum("c,fcd->fd", weight, corners)
        for camera in (camera.moved(middle) for camera in cameras):
            open_faces = np.flatnonzero(~seen)
            towards = targets[open_faces] - camera.center
            facing = np.einsum("fd,fd->f", towards, vectors[open_faces]) < 0
            pixels, depth = camera.project(targets[open_faces])
            inside = (depth > 0) & (pixels >= 0).all(1) & (pixels < [camera.width, camera.height]).all(1)
            rows, towards = open_faces[facing & inside], towards[facing & inside]
            for start in range(0, len(rows), _RAYS_AT_ONCE):
                part = slice(start, start + _RAYS_AT_ONCE)
                origins = np.broadcast_to(camera.center, towards[part].shape)
                rays = np.concatenate([origins, towards[part]], axis=1).astype(np.float32)
                blocked = scene.test_occlusions(o3d.core.Tensor(rays), tnear=0.0, tfar=1 - 1e-3).numpy()
                seen[rows[part][~blocked]] = True
    return seen


def decimate(mesh: TriangleMesh, max_faces: int) -> TriangleMesh:
    """At most ``max_faces`` faces by quadric error (Garland and Heckbert 1997), colours carried along.

    Texture coordinates do not survive: texture afterwards. Raises `UserError` for a budget below 4.
    """
    if max_faces < 4:
        raise UserError(f"a mesh of {max_faces} faces cannot be made; allow at least 4")
    if len(mesh) <= max_faces:
        return mesh
    middle = mesh.vertices.mean(axis=0)
    made = legacy_mesh(mesh.without_texture().moved(-middle)).simplify_quadric_decimation(max_faces)
    made.remove_degenerate_triangles()
    made.remove_unreferenced_vertices()
    return from_legacy_mesh(made).moved(middle)
