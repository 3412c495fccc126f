"""What a file has lost: the scene before and after, drawn from the same cameras.

The PSNR counts the pixels that either scene covers, so that an empty background does not flatter it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.conventions import ALPHA_MIN
from scene_distill.export.assembly import detached
from scene_distill.renderers.splat import render
from scene_distill.representations.splats import Splats
from scene_distill.training.metrics import psnr

VIEWS = 3
WIDTH_PX, HEIGHT_PX = 640, 480
FOCAL_PX = 600.0
ELEVATION_DEG = 25.0
SAMPLE = 100_000
SHOWN_FRACTION = 0.9
"""Part of the splats that lies within the sphere that fills a view's height."""


@dataclass(frozen=True, eq=False)
class Views:
    """Cameras around ``origin`` [3] float64, which the splats are moved by before they are drawn in float32."""

    cameras: tuple[Camera, ...]
    origin: np.ndarray
    antialiased: bool


@dataclass(frozen=True, eq=False)
class Pictures:
    """Renders [H, W, 3] in [0, 1] and what of them is covered [H, W], one of each a view."""

    images: tuple[Tensor, ...]
    covered: tuple[Tensor, ...]


def orbit_views(splats: Splats, up: tuple[float, float, float] | None, antialiased: bool = False) -> Views:
    """Three views around the middle of the scene, a third of a turn apart, from above; -y is up if not known."""
    sample = detached(splats.means)[:: max(1, len(splats) // SAMPLE)].double()
    centre = sample.median(0).values
    radius = float((sample - centre).norm(dim=1).quantile(SHOWN_FRACTION).clamp_min(1e-6))
    axis = np.array(up if up is not None else (0.0, -1.0, 0.0), float)
    axis = axis / np.linalg.norm(axis) if np.linalg.norm(axis) > 0 else np.array([0.0, -1.0, 0.0])
    sideways = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    sideways /= np.linalg.norm(sideways)
    distance = radius * math.hypot(1.0, 2 * FOCAL_PX / HEIGHT_PX)
    cameras = []
    for index in range(VIEWS):
        azimuth, elevation = 2 * math.pi * index / VIEWS, math.radians(ELEVATION_DEG)
        around = math.cos(azimuth) * sideways + math.sin(azimuth) * np.cross(axis, sideways)
        position = distance * (math.cos(elevation) * around + math.sin(elevation) * axis)
        pose = look_at(position, np.zeros(3), axis)
        cameras.append(Camera(WIDTH_PX, HEIGHT_PX, FOCAL_PX, FOCAL_PX, WIDTH_PX / 2, HEIGHT_PX / 2, pose))
    return Views(tuple(cameras), centre.numpy(), antialiased)


@torch.no_grad()
def pictures(splats: Splats, views: Views) -> Pictures:
    """The splats, which are in world coordinates, as the views show them."""
    moved = replace(splats, means=(splats.means.double() - torch.from_numpy(views.origin)).float())
    shown = [render(moved, camera, antialiased=views.antialiased) for camera in views.cameras]
    return Pictures(tuple(one.image.clamp(0, 1) for one in shown), tuple(one.alpha >= ALPHA_MIN for one in shown))


def round_trip_psnr(before: Pictures, after: Pictures) -> list[float]:
    """PSNR in dB of each view, over the pixels that either picture covers."""
    values = []
    for image, again, shown, shown_again in zip(
        before.images, after.images, before.covered, after.covered, strict=True
    ):
        pixels = shown | shown_again
        values.append(psnr(again[pixels], image[pixels]) if bool(pixels.any()) else psnr(again, image))
    return values
