"""The seam metric: is the picture worse where blocks meet than elsewhere?

Work: nine look-ups of the owner of H x W surface points a view; no further render.

A pixel shows the surface point X at its rendered depth. It is a seam pixel when one of the eight points around X, at
the same height and at distance r, has another owner than X. r is BAND of the picture's width, seen at the pixel's depth
(r = BAND width depth / fx), so the band is as wide in pixels for near and far ground and the same share of the picture
at any resolution. Pixels without a surface (alpha < 1/2) count nowhere.

Views differ more in error than seams do, so band and rest are compared within views: with e_v the mean absolute error
of view v in the band, f_v elsewhere, and n_v the number of its seam pixels,

    seam ratio = sum_v n_v e_v / sum_v n_v f_v

over the views that have both. 1 means that nobody can tell where the blocks meet. A ground that is harder near borders
than elsewhere moves the ratio too; a single model measured with the same blocks says by how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from scene_distill.blocks.partition import Partition
from scene_distill.core.cameras import Camera
from scene_distill.renderers.splat import Rendering

BAND = 0.04
"""Half width of the band as a share of the picture's width: 8 px of 200."""

LEAST_ALPHA = 0.5
"""Coverage below which a pixel shows no surface."""

DIRECTIONS = tuple((math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8))


def surface_points(camera: Camera, depth: np.ndarray) -> np.ndarray:
    """World points [H * W, 3] that the pixels' centres show at ``depth`` [H, W]."""
    ys, xs = np.mgrid[: camera.height, : camera.width] + 0.5
    rays = np.stack([(xs - camera.cx) / camera.fx, (ys - camera.cy) / camera.fy, np.ones_like(xs)], axis=-1)
    in_cam = (rays * depth[..., None]).reshape(-1, 3)
    rotation = np.asarray(camera.cam_from_world)[:3, :3]
    return in_cam @ rotation + np.asarray(camera.center)


def seam_pixels(partition: Partition, camera: Camera, depth: np.ndarray) -> np.ndarray:
    """Which pixels lie in the band around a border of two cells, [H, W] bool; ``depth`` [H, W] in the scene's unit."""
    points = surface_points(camera, depth)
    owner = partition.owner(points)
    radius = (BAND * camera.width / camera.fx * depth).reshape(-1, 1)
    seam = np.zeros(len(points), dtype=bool)
    for along, across in DIRECTIONS:
        step = along * partition.space.axes[0] + across * partition.space.axes[1]
        seam |= partition.owner(points + radius * step) != owner
    return seam.reshape(depth.shape)


@dataclass
class SeamMeter:
    """Sums over views; `of` makes one for a trained scene that was cut into blocks."""

    partition: Partition
    band_error: float = 0.0
    rest_error: float = 0.0
    band_squared: float = 0.0
    rest_squared: float = 0.0
    band_pixels: int = 0
    rest_pixels: int = 0
    views: int = field(default=0)

    @staticmethod
    def of(metadata: dict[str, Any]) -> SeamMeter | None:
        """A meter for the blocks named in a trained scene's metadata; None for a scene of one block or none."""
        if len(metadata.get("blocks", {}).get("cells", ())) < 2:
            return None
        return SeamMeter(Partition.from_dict(metadata["blocks"]))

    def add(self, camera: Camera, rendering: Rendering, photo: Tensor) -> None:
        """Take in one view: its world camera, its rendering with depth, and its photo [H, W, 3]."""
        assert rendering.depth is not None
        depth = rendering.depth.double().cpu().numpy()
        shown = (rendering.alpha.cpu().numpy() >= LEAST_ALPHA) & (depth > 0)
        difference = (rendering.image.clamp(0, 1) - photo).double().cpu().numpy()
        seam = seam_pixels(self.partition, camera, np.where(shown, depth, 1.0))
        band, rest = seam & shown, ~seam & shown
        if not band.any() or not rest.any():
            return
        count = int(band.sum())
        self.views += 1
        self.band_error += count * float(np.abs(difference[band]).mean())
        self.rest_error += count * float(np.abs(difference[rest]).mean())
        self.band_squared += float((difference[band] ** 2).mean(axis=-1).sum())
        self.rest_squared += float((difference[rest] ** 2).mean(axis=-1).sum())
        self.band_pixels += count
        self.rest_pixels += int(rest.sum())

    def result(self) -> dict[str, float]:
        """seam_ratio, PSNR in dB in the band and elsewhere, and the band's share of the pixels; empty when no view has
        both."""
        if self.views == 0:
            return {}
        return {
            "seam_ratio": self.band_error / max(self.rest_error, 1e-12),
            "seam_psnr": _psnr(self.band_squared / self.band_pixels),
            "elsewhere_psnr": _psnr(self.rest_squared / self.rest_pixels),
            "seam_share": self.band_pixels / (self.band_pixels + self.rest_pixels),
        }


def _psnr(mean_squared: float) -> float:
    return -10 * math.log10(max(mean_squared, 1e-10))
