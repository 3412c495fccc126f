"""Pictures of toy objects: exact ray casting, soft light from the sky and a window, no shadows, no background.

Light stands still in the object's world and surfaces are matt: a point has one colour, whoever looks, as a scene that
is trained on such pictures must have. Colour and coverage come apart (straight alpha), so that the background is the
caller's. About 10 ms a picture on one core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scene_distill.core.cameras import Camera, look_at
from scene_distill.data.captioned_shapes_primitives import Primitive, Solids

FIELD_OF_VIEW_DEG = 40.0
"""Full angle of the picture: the unit ball just fits at distance 3."""

SKY, GROUND, WINDOW = 0.82, 0.34, 0.62
"""Light from above, from below, and from the window, in units in which 1 shows a surface in its own colour."""

WINDOW_DIRECTION = np.array([0.66, 0.30, 0.69], np.float32)
"""Towards the window: in front of the object, a little to its left, above (unit length within 1 %)."""

WRAP = 0.35
"""How far light from the window reaches around a surface: a large window, not a spot."""

_SAMPLES_PER_LINE = 96
"""Pictures are cast with at least so many rays a line, two to four per pixel side."""


def orbit_camera(size: int, azimuth: float, elevation: float, distance: float = 3.1,
                 field_of_view: float = FIELD_OF_VIEW_DEG) -> Camera:  # fmt: skip
    """A camera on a sphere around the origin, looking at it; world z is up.

    Angles in degrees: azimuth 0 looks at the object's front from +x, 90 at its left side from +y; elevation 90 looks
    down. The picture is ``size`` pixels square.
    """
    a, e = np.radians(azimuth), np.radians(elevation)
    center = distance * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    focal = 0.5 * size / np.tan(np.radians(field_of_view) / 2)
    up = np.array([0.0, 0.0, 1.0])
    return Camera(size, size, focal, focal, size / 2, size / 2, look_at(center, np.zeros(3), up))


def render(primitives: Sequence[Primitive], camera: Camera) -> np.ndarray:
    """The object as sRGB and coverage, [H, W, 4] uint8 (straight alpha); black where nothing is covered."""
    fine = int(np.clip(np.ceil(_SAMPLES_PER_LINE / camera.width), 2, 4))
    columns = (np.arange(camera.width * fine) + 0.5) / fine
    rows = (np.arange(camera.height * fine) + 0.5) / fine
    y, x = np.meshgrid(rows, columns, indexing="ij")
    in_camera = np.stack([(x.ravel() - camera.cx) / camera.fx, (y.ravel() - camera.cy) / camera.fy, np.ones(x.size)])
    directions = (camera.cam_from_world[:3, :3].T @ in_camera).astype(np.float32)
    solids = Solids(primitives)
    which, _, normals = solids.first_hits(camera.center, directions)
    radiance = np.where((which >= 0)[:, None], solids.colors[which] * light(normals)[:, None], 0)
    coverage = (which >= 0).astype(np.float32)
    pixels = np.concatenate([radiance, coverage[:, None]], axis=1)
    pixels = pixels.reshape(camera.height, fine, camera.width, fine, 4).mean(axis=(1, 3))
    alpha = pixels[..., 3:]
    color = encode_srgb(pixels[..., :3] / np.maximum(alpha, 1e-6))
    return np.rint(np.concatenate([color, alpha], axis=2) * 255).astype(np.uint8)


def light(normals: np.ndarray) -> np.ndarray:
    """Light [n] on surfaces with unit normals [n, 3]."""
    up = 0.5 + 0.5 * normals[:, 2]
    window = np.maximum(normals @ WINDOW_DIRECTION + WRAP, 0) / (1 + WRAP)
    return (GROUND + (SKY - GROUND) * up + WINDOW * window * window).astype(np.float32)


def encode_srgb(linear: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] of linear light (IEC 61966-2-1), with a soft shoulder above 0.8."""
    value = np.where(linear > 0.8, 0.8 + 0.2 * (1 - np.exp(-(linear - 0.8) / 0.2)), linear)
    return np.where(value <= 0.0031308, 12.92 * value, 1.055 * np.maximum(value, 1e-8) ** (1 / 2.4) - 0.055)


def over(picture: np.ndarray, background: np.ndarray) -> np.ndarray:
    """A picture [..., H, W, 4] uint8 over a plain background [..., 3] in [0, 1]: [..., H, W, 3] float32 in [0, 1]."""
    values = picture.astype(np.float32) / 255
    alpha = values[..., 3:]
    return values[..., :3] * alpha + np.asarray(background, np.float32)[..., None, None, :] * (1 - alpha)
