"""Whether an object is one at all, and whether its colours are burnt out.

diverged      not a number in a picture; nothing there; a picture filled to its border; Gaussians larger than the object
clipped       share of the object's pixels with a channel at (or beyond) the end of the range: within 1/255 of 0 or 1
chroma        mean over the object's pixels of the largest minus the smallest channel; the rendered toy's beside it says
              what is too much
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.gaussians import Gaussians
from scene_distill.training.object_views import ObjectViews

NOTHING = 0.01
"""Mean alpha of a picture below which nothing is there."""

FILLED = 0.5
"""Mean alpha of a picture's border above which the object does not end inside it."""

LARGEST_RADII, LARGE_SHARE, SEEN = 1.0, 0.01, 0.05
"""A scale (one standard deviation) above so many radii is exploded; an object may have this share of such Gaussians
among those whose opacity is above `SEEN`."""


@dataclass(frozen=True)
class Saturation:
    """clipped and chroma in [0, 1]; NaN for an object without a pixel."""

    clipped: float
    chroma: float


def saturation(views: ObjectViews) -> Saturation:
    """Of the object's pixels in all views."""
    inside = views.covered
    if not bool(inside.any()):
        return Saturation(float("nan"), float("nan"))
    colors = views.images.permute(0, 2, 3, 1)[inside]
    ends = (colors <= 1 / 255) | (colors >= 254 / 255)
    return Saturation(float(ends.any(1).double().mean()), float((colors.amax(1) - colors.amin(1)).double().mean()))


def divergence(views: ObjectViews, gaussians: Gaussians | None = None) -> str:
    """Why an object has diverged, in words; empty for one that has not. A reason must hold in most views."""
    finite = torch.isfinite(views.raw).all() and torch.isfinite(views.alpha).all()
    if not bool(finite):
        return "not a number"
    if gaussians is not None and (reason := _explosion(gaussians)):
        return reason
    if _most(views.alpha.mean(dim=(1, 2)) < NOTHING):
        return "nothing there"
    if _most(_border(views.alpha).mean(1) > FILLED):
        return "fills the picture"
    return ""


def _explosion(gaussians: Gaussians) -> str:
    numbers = (gaussians.means, gaussians.scales, gaussians.opacities, gaussians.features)
    if not all(bool(torch.isfinite(value).all()) for value in numbers):
        return "not a number"
    seen = gaussians.opacities.detach() > SEEN
    if not bool(seen.any()):
        return "nothing there"
    large = (gaussians.scales.detach()[seen].amax(1) > LARGEST_RADII).double().mean()
    return "exploded" if float(large) > LARGE_SHARE else ""


def _border(alpha: Tensor) -> Tensor:
    """The outermost pixels of alpha [V, H, W] as [V, 2 H + 2 W]."""
    return torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], 1)


def _most(flags: Tensor) -> bool:
    return bool(flags.double().mean() > 0.5)
