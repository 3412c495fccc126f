"""An object seen from all around: what every figure about a text-to-3D result is measured on.

Frame of the toy world: z up, the front faces +x, azimuth 0 looks at it; the object is about the unit ball.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes import view_word
from scene_distill.data.captioned_shapes_renderer import orbit_camera

COVERED = 0.5
"""Alpha from which a pixel belongs to the object."""


class Drawn(Protocol):
    """A picture of an object; `renderers.splat.Rendering` is one."""

    @property
    def image(self) -> Tensor:
        """[H, W, 3] over the background, nominally in [0, 1]."""
        ...

    @property
    def alpha(self) -> Tensor:
        """[H, W] coverage in [0, 1]."""
        ...

    @property
    def depth(self) -> Tensor | None:
        """[H, W] depth along the camera's z axis in radii; anything where alpha is 0."""
        ...


Draw = Callable[[Camera], Drawn]
"""Draws an object over the toy world's background (`data.captioned_shapes.BACKGROUND`)."""


@dataclass(frozen=True)
class Orbit:
    """Cameras on a circle, azimuth 0 first, counter-clockwise seen from above; angles in degrees."""

    views: int = 24
    size: int = 64
    elevation: float = 15.0
    distance: float = 3.2
    field_of_view: float = 40.0

    def __post_init__(self) -> None:
        """Raise UserError for a circle without cameras."""
        if self.views < 2 or self.size < 8:
            raise UserError(f"an orbit needs at least 2 views of 8 pixels, not {self.views} of {self.size}")

    @property
    def azimuths(self) -> tuple[float, ...]:
        """Degrees in [0, 360)."""
        return tuple(360 * place / self.views for place in range(self.views))

    @property
    def words(self) -> tuple[str, ...]:
        """front, side or back (overhead from high above) of every view."""
        return tuple(view_word(azimuth, self.elevation) for azimuth in self.azimuths)

    def cameras(self) -> tuple[Camera, ...]:
        """The cameras."""
        return tuple(
            orbit_camera(self.size, azimuth, self.elevation, self.distance, self.field_of_view)
            for azimuth in self.azimuths
        )


@dataclass(frozen=True, eq=False)
class ObjectViews:
    """Pictures from an orbit: raw [V, 3, H, W] as drawn (possibly outside [0, 1], possibly not finite), alpha
    [V, H, W], depth [V, H, W] or None."""

    orbit: Orbit
    raw: Tensor
    alpha: Tensor
    depth: Tensor | None

    @property
    def images(self) -> Tensor:
        """[V, 3, H, W] as a screen shows them: finite, in [0, 1]."""
        return torch.nan_to_num(self.raw, nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)

    @property
    def covered(self) -> Tensor:
        """Pixels of the object, bool [V, H, W]."""
        return self.alpha > COVERED

    def of(self, word: str) -> Tensor:
        """Indices int64 [N] of the views that a view word stands for."""
        return torch.tensor([i for i, name in enumerate(self.orbit.words) if name == word], dtype=torch.int64)


@torch.no_grad()
def object_views(draw: Draw, orbit: Orbit) -> ObjectViews:
    """The object from every camera of the orbit, on the CPU, float32."""
    raw, alpha, depth = [], [], []
    for camera in orbit.cameras():
        drawn = draw(camera)
        raw.append(drawn.image.detach().cpu().float().permute(2, 0, 1))
        alpha.append(drawn.alpha.detach().cpu().float())
        depth.append(None if drawn.depth is None else drawn.depth.detach().cpu().float())
    known = [one for one in depth if one is not None]
    return ObjectViews(orbit, torch.stack(raw), torch.stack(alpha), torch.stack(known) if known else None)
