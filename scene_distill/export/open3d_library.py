"""The one door to Open3D, which is large and optional."""

from __future__ import annotations

from typing import Any

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.representations.meshes import TriangleMesh


def load_open3d() -> Any:
    """The module `open3d`; `UserError` with what to install when it is not there."""
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise UserError(f"meshes need Open3D ({error}); install it with pip install 'scene-distill[meshes]'") from error
    return open3d


def ray_scene(mesh: TriangleMesh) -> Any:
    """An Open3D RaycastingScene of the mesh, in float32: rays and distances are to be given in the mesh's frame."""
    o3d = load_open3d()
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor(np.ascontiguousarray(mesh.vertices, np.float32)),
        o3d.core.Tensor(np.ascontiguousarray(mesh.faces, np.uint32)),
    )
    return scene


def legacy_mesh(mesh: TriangleMesh) -> Any:
    """An Open3D legacy TriangleMesh with the vertices, faces and vertex colours."""
    o3d = load_open3d()
    made = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(np.ascontiguousarray(mesh.vertices, np.float64)),
        o3d.utility.Vector3iVector(np.ascontiguousarray(mesh.faces, np.int32)),
    )
    if mesh.colors is not None:
        made.vertex_colors = o3d.utility.Vector3dVector(mesh.colors.astype(np.float64))
    return made


def from_legacy_mesh(made: Any) -> TriangleMesh:
    """Vertices, faces and vertex colours of an Open3D legacy TriangleMesh."""
    return TriangleMesh(
        np.asarray(made.vertices).astype(np.float64),
        np.asarray(made.triangles).astype(np.int64),
        np.asarray(made.vertex_colors).astype(np.float32) if made.has_vertex_colors() else None,
    )
