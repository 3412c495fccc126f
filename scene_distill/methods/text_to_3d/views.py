"""Where an object is looked at from while it is trained, and on a turntable: cameras on a sphere around the origin.

Angles in degrees: azimuth 0 sees the front (+x), 90 the left side (+y), elevation is above the horizon. One batch has
one field of view. Draws of an interval [low, high] follow Dreamer XL: middle + sign u^gamma half, gamma 1 is uniform.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.cameras import Camera, look_at
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.objectives.score_teacher import Progress

Interval = tuple[float, float]

CELL_DEG = 10.0
"""Side of the cells of azimuth and elevation that number views (noise per view)."""


@dataclass(frozen=True)
class Zoom:
    """Changes of the range after every ``every`` of training (Dreamer XL section 7: 0.2); 0: never.

    ``distance`` factor of both bounds, not below ``nearest``; ``narrow`` factor of the smallest and ``wide`` of the
    largest field of view, within ``fields``; ``spread`` factor of the elevations' half width, within ``elevations``.
    """

    every: float = 0.0
    distance: float = 0.95
    nearest: Interval = (3.5, 5.0)
    narrow: float = 0.75
    wide: float = 1.1
    fields: Interval = (9.2, 34.4)
    spread: float = 1.5
    elevations: Interval = (-60.0, 80.0)


@dataclass(frozen=True)
class ViewRange:
    """What views of a training step are drawn from.

    ``count`` views of ``size`` pixels square; intervals in degrees and radii of the object. ``overhead``: share of
    views taken from ``overhead_elevation`` instead. ``quarters``: views of a batch share the circle evenly, from a
    random start, instead of being drawn one by one. Jitters are standard deviations in radii.
    """

    size: int = 64
    count: int = 4
    distance: Interval = (3.0, 3.4)
    elevation: Interval = (-5.0, 50.0)
    azimuth: Interval = (-180.0, 180.0)
    field_of_view: Interval = (40.0, 40.0)
    overhead: float = 0.1
    overhead_elevation: Interval = (62.0, 85.0)
    quarters: bool = True
    gamma: float = 1.0
    center_jitter: float = 0.0
    target_jitter: float = 0.0
    up_jitter: float = 0.0
    zoom: Zoom = field(default_factory=Zoom)

    def at(self, progress: Progress) -> ViewRange:
        """The range at a step, after the zooms before it."""
        zoom, changed = self.zoom, self
        for _ in range(int(progress.fraction / zoom.every + 1e-9) if zoom.every > 0 else 0):
            changed = changed._zoomed()
        return changed

    def _zoomed(self) -> ViewRange:
        zoom, (low, high) = self.zoom, self.elevation
        near, far = (
            min(bound, max(bound * zoom.distance, floor))
            for bound, floor in zip(self.distance, zoom.nearest, strict=True)
        )
        narrow, wide = self.field_of_view
        middle, half = (low + high) / 2, (high - low) / 2 * zoom.spread
        return replace(
            self,
            distance=(near, far),
            field_of_view=(
                min(narrow, max(narrow * zoom.narrow, zoom.fields[0])),
                max(wide, min(wide * zoom.wide, zoom.fields[1])),
            ),
            elevation=(
                min(low, max(middle - half, zoom.elevations[0])),
                max(high, min(middle + half, zoom.elevations[1])),
            ),
        )


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """C cameras and where they stand: azimuth and elevation [C] float64 degrees."""

    cameras: tuple[Camera, ...]
    azimuth: Tensor
    elevation: Tensor

    @property
    def ids(self) -> Tensor:
        """A number per view, int64 [C]: its cell of azimuth and elevation, equal for views from nearly the same
        place."""
        around = torch.remainder(torch.round(self.azimuth / CELL_DEG), 360 / CELL_DEG)
        return (around + 1000 * torch.round((self.elevation + 90) / CELL_DEG)).long()

    @property
    def matrices(self) -> Tensor:
        """world_from_cam, flattened: float32 [C, 16]."""
        return torch.stack([torch.as_tensor(c.world_from_cam, dtype=torch.float32).flatten() for c in self.cameras])


def view_range(config: TextTo3DConfig) -> ViewRange:
    """The views of a config."""
    center, target, up = config.camera_jitter
    return ViewRange(
        config.image_size, config.views, config.distance, config.elevation, field_of_view=config.field_of_view,
        overhead=config.overhead, quarters=config.quarters, center_jitter=center, target_jitter=target, up_jitter=up,
        zoom=Zoom(every=config.zoom_every),
    )  # fmt: skip


def draw_views(views: ViewRange, progress: Progress, generator: torch.Generator) -> ViewBatch:
    """The views of a training step."""
    now, count = views.at(progress), views.count
    fov = float(_drawn(now.field_of_view, 1, now.gamma, generator))
    distance = _drawn(now.distance, count, now.gamma, generator)
    elevation = _drawn(now.elevation, count, now.gamma, generator)
    above = _drawn(now.overhead_elevation, count, 1.0, generator)
    is_above = torch.rand(count, generator=generator, dtype=torch.float64) < now.overhead
    elevation = torch.where(is_above, above, elevation)
    low, high = now.azimuth
    if now.quarters:
        start = torch.rand(1, generator=generator, dtype=torch.float64)
        share = torch.rand(count, generator=generator, dtype=torch.float64)
        azimuth = low + (high - low) * ((start + (torch.arange(count) + share) / count) % 1.0)
    else:
        azimuth = _drawn(now.azimuth, count, now.gamma, generator)
    shake = torch.randn(count, 3, 3, generator=generator, dtype=torch.float64).numpy()
    shake = shake * np.array([now.center_jitter, now.target_jitter, now.up_jitter])[:, None]
    cameras = tuple(
        orbit_camera(now.size, float(azimuth[i]), float(elevation[i]), float(distance[i]), fov, shake[i])
        for i in range(count)
    )
    return ViewBatch(cameras, azimuth, elevation)


def orbit_views(count: int, size: int, elevation: float = 15.0, distance: float = 3.2, fov: float = 40.0,
                start: float = 0.0, ends: Literal["circle", "open"] = "circle") -> ViewBatch:  # fmt: skip
    """A turntable: ``count`` views around the object from azimuth ``start``; 'open' ends with the first again."""
    steps = torch.arange(count, dtype=torch.float64) / max(count if ends == "circle" else count - 1, 1)
    azimuth = start + 360.0 * steps
    cameras = tuple(orbit_camera(size, float(a), elevation, distance, fov) for a in azimuth)
    return ViewBatch(cameras, azimuth, torch.full_like(azimuth, elevation))


def orbit_camera(size: int, azimuth: float, elevation: float, distance: float, fov: float,
                 shake: np.ndarray | None = None) -> Camera:  # fmt: skip
    """A camera on the sphere that looks at the origin, ``size`` pixels square; ``shake`` [3, 3] is added to its centre,
    its target and its up vector."""
    a, e = np.radians(azimuth), np.radians(elevation)
    moved = np.zeros((3, 3)) if shake is None else shake
    center = distance * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]) + moved[0]
    focal = 0.5 * size / np.tan(np.radians(fov) / 2)
    up = np.array([0.0, 0.0, 1.0]) + moved[2]
    return Camera(size, size, focal, focal, size / 2, size / 2, look_at(center, moved[1], up))


def _drawn(interval: Interval, count: int, gamma: float, generator: torch.Generator) -> Tensor:
    """float64 [count] of middle + sign u^gamma half."""
    signed = 2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1
    return (interval[0] + interval[1]) / 2 + signed.sign() * signed.abs() ** gamma * (interval[1] - interval[0]) / 2
