"""Pinhole cameras in the OpenCV frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Camera:
    """One pinhole view without distortion.

    Shapes and units: ``cam_from_world`` [4, 4] float64 maps world to OpenCV camera coordinates (x right, y down,
    z forward); ``fx, fy, cx, cy`` in pixels, with pixel centres at half-integers.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    cam_from_world: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """Camera centre in world coordinates, [3] float64."""
        rotation, translation = self.cam_from_world[:3, :3], self.cam_from_world[:3, 3]
        return -rotation.T @ translation

    @property
    def world_from_cam(self) -> np.ndarray:
        """Inverse pose, [4, 4] float64."""
        inverse = np.eye(4)
        inverse[:3, :3] = self.cam_from_world[:3, :3].T
        inverse[:3, 3] = self.center
        return inverse

    def intrinsics(self, device: torch.device | str = "cpu") -> Tensor:
        """(fx, fy, cx, cy) as a float32 tensor [4]."""
        return torch.tensor([self.fx, self.fy, self.cx, self.cy], dtype=torch.float32, device=device)

    def pose(self, device: torch.device | str = "cpu") -> Tensor:
        """``cam_from_world`` as a float32 tensor [4, 4]."""
        return torch.as_tensor(self.cam_from_world, dtype=torch.float32, device=device)

    def resized(self, width: int) -> Camera:
        """The same view on an image ``width`` pixels wide; the height is rounded, each axis scaled by its own ratio."""
        height = max(1, round(self.height * width / self.width))
        sx, sy = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy
        )

    def moved(self, origin: np.ndarray) -> Camera:
        """The same camera in a world whose origin lies at ``origin`` [3] of this one."""
        pose = self.cam_from_world.copy()
        pose[:3, 3] += pose[:3, :3] @ origin
        return replace(self, cam_from_world=pose)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel positions [P, 2] and depths [P] (metres along z) of world points [P, 3]; depth <= 0 is behind."""
        in_cam = points @ self.cam_from_world[:3, :3].T + self.cam_from_world[:3, 3]
        depth = in_cam[:, 2]
        safe = np.where(np.abs(depth) < 1e-12, 1e-12, depth)
        pixels = np.stack([self.fx * in_cam[:, 0] / safe + self.cx, self.fy * in_cam[:, 1] / safe + self.cy], axis=1)
        return pixels, depth

    def may_see(self, centers: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
        """True [P] for balls (centers [P, 3], radii [P], world) that reach into the image's pyramid; near its edges
        also for some that do not."""
        in_cam = centers @ self.cam_from_world[:3, :3].T + self.cam_from_world[:3, 3]
        depth = in_cam[:, 2]
        seen = depth > -radii
        for axis, size, focal, middle in ((0, self.width, self.fx, self.cx), (1, self.height, self.fy, self.cy)):
            for edge, sign in ((0.0, 1.0), (float(size), -1.0)):
                # Signed distance to the plane through the centre and this image edge, positive inside.
                slope = (edge - middle) / focal
                seen &= sign * (in_cam[:, axis] - slope * depth) / np.hypot(1.0, slope) > -radii
        return seen


def look_at(center: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """``cam_from_world`` [4, 4] of an OpenCV camera at ``center`` looking at ``target`` with world ``up``.

    Falls back to another up vector when ``up`` is parallel to the viewing direction (a nadir view).
    """
    forward = np.asarray(target, float) - np.asarray(center, float)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(forward, [0.0, 1.0, 0.0] if abs(forward[1]) < 0.9 else [1.0, 0.0, 0.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, down, forward])
    pose[:3, 3] = -pose[:3, :3] @ np.asarray(center, float)
    return pose
