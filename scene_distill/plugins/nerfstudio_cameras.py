"""Our OpenCV cameras as nerfstudio's OpenGL ones and back. Same world, same pixels (centres at half-integers)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError

OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0])
"""Camera axes x right, y down, z forward → x right, y up, z backward."""


def cameras_for_nerfstudio(cameras: Sequence[Camera], dtype: torch.dtype) -> Cameras:
    """Nerfstudio's batch of C cameras; float64 keeps worlds exact whose origin is far away."""
    poses = np.stack([camera.world_from_cam[:3] for camera in cameras])
    poses[:, :, :3] = poses[:, :, :3] @ OPENGL_FROM_OPENCV

    def column(name: str, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.tensor([[getattr(camera, name)] for camera in cameras], dtype=kind)

    return Cameras(
        torch.from_numpy(poses).to(dtype),
        column("fx"),
        column("fy"),
        column("cx"),
        column("cy"),
        column("width", torch.int64),
        column("height", torch.int64),
        camera_type=CameraType.PERSPECTIVE,
    )


def camera_from_nerfstudio(cameras: Cameras) -> Camera:
    """The one camera of a batch of one; raises `UserError` for panoramas and fisheyes."""
    if int(cameras.camera_type.reshape(-1)[0]) != CameraType.PERSPECTIVE.value:
        raise UserError("only perspective cameras can be rendered; choose camera type Perspective")
    pose = cameras.camera_to_worlds.reshape(3, 4).double().cpu().numpy()
    rotation = pose[:, :3] @ OPENGL_FROM_OPENCV
    cam_from_world = np.eye(4)
    cam_from_world[:3, :3] = rotation.T
    cam_from_world[:3, 3] = -rotation.T @ pose[:, 3]
    width, height = (int(getattr(cameras, name).reshape(-1)[0]) for name in ("width", "height"))
    fx, fy, cx, cy = (float(getattr(cameras, name).reshape(-1)[0]) for name in ("fx", "fy", "cx", "cy"))
    return Camera(width, height, fx, fy, cx, cy, cam_from_world)
