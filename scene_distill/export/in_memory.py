"""Meshes, points and cameras as objects of trimesh, Open3D and PyTorch3D.

What differs from the house conventions is converted here and nowhere else:

    trimesh     colours uint8 RGBA; texture v up; cameras look along -z, y up (OpenGL), pose is world_from_cam
    Open3D      colours float64 in [0, 1]; texture coordinates per face corner, v = 0 at the first row of the image;
                cameras in OpenCV axes with cam_from_world, pixel centres at integers, so cx and cy are 0.5 px less
    PyTorch3D   colours float32 in [0, 1]; texture v up, 0 and 1 at the outer edges of the texels (its default puts them
                at their centres); cameras x left, y up, z forward, points are rows: x_cam = x_world R + T; screen space
                with pixel centres at half-integers, as here (version 0.6 and later); its normalised space has x left
                and y up, and [-1, 1] along the image's shorter side

Quaternions: (w, x, y, z) here and in trimesh, PyTorch3D and Open3D alike; scipy's are (x, y, z, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.export.open3d_library import legacy_mesh, load_open3d
from scene_distill.export.point_cloud import OrientedPoints
from scene_distill.representations.meshes import TriangleMesh

_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenGL camera axes in OpenCV's."""

_PYTORCH3D = np.diag([-1.0, -1.0, 1.0])
"""PyTorch3D camera axes in OpenCV's."""


def to_trimesh(mesh: TriangleMesh) -> Any:
    """A trimesh.Trimesh with vertex colours or with a texture; vertices keep their order."""
    trimesh = _library("trimesh")
    visual = None
    if mesh.texture is not None and mesh.uvs is not None:
        from PIL import Image

        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(mesh.texture), metallicFactor=0.0, roughnessFactor=1.0
        )
        visual = trimesh.visual.TextureVisuals(uv=_v_up(mesh.uvs), material=material)
    elif mesh.colors is not None:
        visual = trimesh.visual.ColorVisuals(vertex_colors=_rgba(mesh.colors))
    return trimesh.Trimesh(mesh.vertices, mesh.faces, visual=visual, process=False, maintain_order=True)


def points_to_trimesh(points: OrientedPoints) -> Any:
    """A trimesh.PointCloud with colours (it has no place for normals)."""
    return _library("trimesh").PointCloud(points.positions, colors=_rgba(points.colors))


def camera_to_trimesh(camera: Camera) -> tuple[Any, np.ndarray]:
    """A trimesh Camera, and its world_from_cam [4, 4] in OpenGL axes for a trimesh Scene.

    trimesh has no principal point: raises `UserError` when it is more than a pixel from the middle.
    """
    if max(abs(camera.cx - camera.width / 2), abs(camera.cy - camera.height / 2)) > 1.0:
        raise UserError(
            f"trimesh cameras look through the middle of the image, this one through {camera.cx, camera.cy}"
        )
    scene = _library("trimesh.scene")
    made = scene.Camera(resolution=(camera.width, camera.height), focal=(camera.fx, camera.fy))
    return made, camera.world_from_cam @ _OPENGL


def to_open3d(mesh: TriangleMesh) -> Any:
    """An Open3D legacy TriangleMesh with vertex colours or with a texture."""
    o3d = load_open3d()
    made = legacy_mesh(mesh)
    if mesh.texture is not None and mesh.uvs is not None:
        # Open3D flips the image, not v, when it reads an .obj: in memory v = 0 is the first row, as it is here.
        made.triangle_uvs = o3d.utility.Vector2dVector(mesh.uvs[mesh.faces].reshape(-1, 2).astype(np.float64))
        made.textures = [o3d.geometry.Image(np.ascontiguousarray(mesh.texture))]
        made.triangle_material_ids = o3d.utility.IntVector(np.zeros(len(mesh), np.int32))
    return made


def points_to_open3d(points: OrientedPoints) -> Any:
    """An Open3D legacy PointCloud with colours and normals."""
    o3d = load_open3d()
    made = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.positions))
    made.normals = o3d.utility.Vector3dVector(points.normals.astype(np.float64))
    made.colors = o3d.utility.Vector3dVector(points.colors.astype(np.float64))
    return made


def camera_to_open3d(camera: Camera) -> Any:
    """An Open3D PinholeCameraParameters."""
    o3d = load_open3d()
    made = o3d.camera.PinholeCameraParameters()
    made.intrinsic = o3d.camera.PinholeCameraIntrinsic(
        camera.width, camera.height, camera.fx, camera.fy, camera.cx - 0.5, camera.cy - 0.5
    )
    made.extrinsic = camera.cam_from_world
    return made


def to_pytorch3d(mesh: TriangleMesh) -> Any:
    """A pytorch3d.structures.Meshes of one mesh, float32, with TexturesVertex or TexturesUV."""
    import torch

    structures, renderer = _library("pytorch3d.structures"), _library("pytorch3d.renderer")
    vertices, faces = torch.from_numpy(mesh.vertices).float(), torch.from_numpy(mesh.faces)
    textures = None
    if mesh.texture is not None and mesh.uvs is not None:
        image = torch.from_numpy(mesh.texture).float()[None] / 255
        uvs = torch.from_numpy(np.ascontiguousarray(_v_up(mesh.uvs))).float()
        textures = renderer.TexturesUV(maps=image, faces_uvs=[faces], verts_uvs=[uvs], align_corners=False)
    elif mesh.colors is not None:
        textures = renderer.TexturesVertex([torch.from_numpy(mesh.colors).float()])
    return structures.Meshes([vertices], [faces], textures)


def points_to_pytorch3d(points: OrientedPoints) -> Any:
    """A pytorch3d.structures.Pointclouds of one cloud, float32, with normals and colours as features."""
    import torch

    parts = [torch.from_numpy(np.ascontiguousarray(p, np.float32)) for p in
             (points.positions, points.normals, points.colors)]  # fmt: skip
    return _library("pytorch3d.structures").Pointclouds([parts[0]], normals=[parts[1]], features=[parts[2]])


def pytorch3d_camera_arguments(cameras: Sequence[Camera]) -> dict[str, np.ndarray]:
    """Arguments of pytorch3d.renderer.PerspectiveCameras as float32 arrays, for screen space: R [C, 3, 3], T [C, 3],
    focal_length [C, 2], principal_point [C, 2], image_size [C, 2] as (height, width)."""
    poses = np.stack([camera.cam_from_world for camera in cameras])
    return {
        "R": np.ascontiguousarray((_PYTORCH3D @ poses[:, :3, :3]).transpose(0, 2, 1), np.float32),
        "T": (poses[:, :3, 3] @ _PYTORCH3D).astype(np.float32),
        "focal_length": np.array([[camera.fx, camera.fy] for camera in cameras], np.float32),
        "principal_point": np.array([[camera.cx, camera.cy] for camera in cameras], np.float32),
        "image_size": np.array([[camera.height, camera.width] for camera in cameras], np.int64),
    }


def cameras_to_pytorch3d(cameras: Sequence[Camera]) -> Any:
    """A batch of pytorch3d.renderer.PerspectiveCameras in screen space."""
    import torch

    arguments = {name: torch.from_numpy(value) for name, value in pytorch3d_camera_arguments(cameras).items()}
    return _library("pytorch3d.renderer").PerspectiveCameras(**arguments, in_ndc=False)


def _rgba(colors: np.ndarray) -> np.ndarray:
    """Bytes [n, 4], opaque."""
    levels = np.rint(np.clip(colors, 0.0, 1.0) * 255).astype(np.uint8)
    return np.concatenate([levels, np.full((len(levels), 1), 255, np.uint8)], axis=1)


def _v_up(uvs: np.ndarray) -> np.ndarray:
    return np.stack([uvs[:, 0], 1 - uvs[:, 1]], axis=1)


def _library(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        raise UserError(f"this conversion needs {name.partition('.')[0]} ({error}); install it first") from error
