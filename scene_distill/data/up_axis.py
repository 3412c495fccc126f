"""The world's up axis, told by the cameras when nothing else does.

1. People and drones hold cameras level, so the cameras' right axes are horizontal: up is the direction most orthogonal
   to all of them (the smallest eigenvector of their second moment), pointing against the image rows on average. This
   works for rings, streets, oblique flights and nadir flights that turn, and is used when the headings vary enough.
2. Cameras that share one heading leave a plane of candidates. When they also look along the normal of the plane they
   lie in (or of the ground points, where they fly one line), over ground wider than a third of the flying height, it
   is a nadir flight and up is that normal, which is also sharper where 1 applies and agrees. A camera moved across a
   facade looks the same to this test.
3. Else up is the mean of the cameras' own up axes (-y).
"""

from __future__ import annotations

import numpy as np

from scene_distill.core.cameras import Camera

_HEADINGS_MIN = 0.05
"""Second-smallest second moment of the right axes: a spread of headings of about 13 degrees."""

_FLAT = 0.3
"""Largest thickness of a plane in units of its narrower side (standard deviations)."""

_WIDE = 0.1
"""Least standard deviation of the narrower side in flying heights: a uniform strip of a third of the height."""

_ALONG = 0.94
"""Cosine of 20 degrees: two directions count as parallel."""


def up_axis(cameras: list[Camera], points: np.ndarray) -> tuple[np.ndarray, str]:
    """The up axis [3] (unit, world) of cameras and points [P, 3], and in words how it was found."""
    rotations = np.stack([camera.cam_from_world[:3, :3] for camera in cameras])
    rights, ups, forwards = rotations[:, 0], -rotations[:, 1], rotations[:, 2]
    mean_up, mean_forward = ups.mean(0), forwards.mean(0)
    normal = _nadir_normal(cameras, points, mean_forward)
    moments, axes = np.linalg.eigh(rights.T @ rights / len(rights))
    if moments[1] > _HEADINGS_MIN and moments[0] < 0.25 * moments[1]:
        axis = axes[:, 0]
        looks_level = abs(mean_up @ axis) > 0.1
        sign = np.sign(mean_up @ axis) if looks_level else -np.sign(mean_forward @ axis)
        axis = axis * (sign or 1.0)
        if normal is None or normal @ axis < _ALONG:
            return axis, "the direction orthogonal to the cameras' right axes"
    if normal is not None:
        return normal, "the normal of a nadir flight over its ground"
    length = float(np.linalg.norm(mean_up))
    if length < 1e-3:
        return np.array([0.0, 0.0, 1.0]), "z, because the cameras agree on no direction"
    return mean_up / length, "the mean of the cameras' up axes"


def _nadir_normal(cameras: list[Camera], points: np.ndarray, mean_forward: np.ndarray) -> np.ndarray | None:
    """The normal, against the view, of the cameras' or ground's plane when all look along it; else None."""
    if np.linalg.norm(mean_forward) < _ALONG or len(points) < 10:
        return None
    view = mean_forward / np.linalg.norm(mean_forward)
    centers = np.stack([camera.center for camera in cameras])
    ground = points[:: max(1, len(points) // 20_000)]
    height = float(np.median((ground - centers.mean(0)) @ view))
    for cloud in (centers, ground):
        spread, axes = _principal_axes(cloud)
        wide = spread[1] > _WIDE * height > 0
        if wide and spread[0] < _FLAT * spread[1] and abs(axes[:, 0] @ view) > _ALONG:
            return -axes[:, 0] * np.sign(axes[:, 0] @ view)
    return None


def _principal_axes(cloud: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Robust standard deviations [3], ascending, and axes [3, 3] (columns); the farthest tenth is left out."""
    middle = np.median(cloud, 0)
    distance = np.linalg.norm(cloud - middle, axis=1)
    kept = cloud[distance <= np.quantile(distance, 0.9)]
    if len(kept) < 3:
        return np.zeros(3), np.eye(3)
    variances, axes = np.linalg.eigh(np.cov(kept.T))
    return np.sqrt(np.maximum(variances, 0)), axes
