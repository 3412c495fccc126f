"""Rays of pinhole cameras, and where they cross a cube around the origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.cameras import Camera


@dataclass(frozen=True, eq=False)
class Rays:
    """P rays in world space: origins [P, 3], directions [P, 3] of unit length."""

    origins: Tensor
    directions: Tensor

    def __len__(self) -> int:
        return len(self.origins)


def camera_rays(cameras: Sequence[Camera], dtype: torch.dtype = torch.float32,
                device: torch.device | str = "cpu") -> Rays:  # fmt: skip
    """A ray through every pixel's centre, cameras after each other, rows after rows."""
    origins, directions = [], []
    for camera in cameras:
        x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
        y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
        in_camera = np.stack([*np.meshgrid(x, y), np.ones((camera.height, camera.width))], axis=-1).reshape(-1, 3)
        in_camera /= np.linalg.norm(in_camera, axis=1, keepdims=True)
        directions.append(in_camera @ camera.cam_from_world[:3, :3])
        origins.append(np.broadcast_to(camera.center, (len(in_camera), 3)))
    both = (torch.as_tensor(np.concatenate(part), dtype=dtype, device=device) for part in (origins, directions))
    return Rays(*both)


def span_in_cube(rays: Rays, radius: float) -> tuple[Tensor, Tensor]:
    """Distances [P], [P] along the rays where they enter and leave [-radius, radius]^3; leave <= enter for a miss.

    Behind the origin nothing is entered: a ray that starts inside enters at 0.
    """
    tiny = torch.finfo(rays.directions.dtype).tiny ** 0.5
    safe = torch.where(rays.directions.abs() < tiny, tiny, rays.directions)
    first, second = (-radius - rays.origins) / safe, (radius - rays.origins) / safe
    enter = torch.minimum(first, second).amax(dim=1).clamp(min=0)
    return enter, torch.maximum(first, second).amin(dim=1)
