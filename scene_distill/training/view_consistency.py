"""Whether neighbouring views show the same thing, and whether there is anything to see: two figures, always together.

consistency   every pixel of a view is moved to its neighbour by its depth; where the neighbour sees the same place
              (inside the picture, solid in both, depths within `SAME_PLACE`), the colours are compared:
              inconsistency = mean |colour - colour there|, over both directions of all pairs of neighbours; 0 is best.
              A fog has no place of its own and fails; so does what is painted on the camera rather than on the object.
sharpness     mean of |dI/dx|^2 + |dI/dy|^2 over pairs of neighbouring pixels inside the object (the outline does not
              count). A flat grey object is perfectly consistent and has sharpness 0: a blur must not pass for 3D.

Resampling costs a sharp picture some consistency: read both beside the figures of the rendered toy
(`toy_objects.toy_object`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scene_distill.core.cameras import Camera
from scene_distill.training.object_views import ObjectViews

SAME_PLACE = 0.08
"""Depths that differ by less, in radii of the object, are the same place."""

SOLID = 0.9
"""Alpha from which a pixel shows the object alone, so that the background is not compared with the object."""


@dataclass(frozen=True)
class Consistency:
    """inconsistency (mean absolute difference of colours in [0, 1]; NaN where no pixel could be compared), overlap
    (share of the object's pixels that could), sharpness (gradient energy; NaN for an object without a pixel)."""

    inconsistency: float
    overlap: float
    sharpness: float


def consistency(views: ObjectViews) -> Consistency:
    """Of an object seen from an orbit. Without depth nothing can be compared: inconsistency NaN, overlap 0."""
    sharp = sharpness(views)
    if views.depth is None:
        return Consistency(float("nan"), 0.0, sharp)
    cameras, count = views.orbit.cameras(), views.orbit.views
    differences, compared, pixels = 0.0, 0, 0
    for a in range(count):
        for b in ((a + 1) % count, (a - 1) % count):
            there, kept = moved(views, a, b, cameras)
            difference = (views.images[a] - there).abs().mean(0)
            differences += float(difference[kept].sum())
            compared += int(kept.sum())
            pixels += int(views.covered[a].sum())
    nothing = float("nan")
    return Consistency(differences / compared if compared else nothing, compared / pixels if pixels else 0.0, sharp)


def moved(views: ObjectViews, a: int, b: int, cameras: tuple[Camera, ...]) -> tuple[Tensor, Tensor]:
    """Colours [3, H, W] that view ``b`` shows where the pixels of view ``a`` lie, and where that is the same place
    (bool [H, W])."""
    assert views.depth is not None
    pixel, z = _seen_from(cameras[a], cameras[b], views.depth[a])
    size = torch.tensor([cameras[b].width, cameras[b].height], dtype=torch.float32)
    grid = (2 * pixel / size - 1)[None]
    solid = views.alpha > SOLID
    stack = torch.cat([views.images[b], solid[b][None].float(), views.depth[b][None]])[None]
    there = functional.grid_sample(torch.nan_to_num(stack), grid, mode="bilinear", align_corners=False)[0]
    nearest = functional.grid_sample(
        torch.nan_to_num(views.depth[b])[None, None], grid, mode="nearest", align_corners=False
    )[0, 0]
    inside = ((pixel > 0) & (pixel < size)).all(-1) & (z > 0)
    same = ((there[4] - z).abs() < SAME_PLACE) & ((nearest - z).abs() < SAME_PLACE)
    return there[:3], solid[a] & inside & (there[3] > 0.999) & same


def _seen_from(a: Camera, b: Camera, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [H, W, 2] and depths [H, W] in camera b of what camera a sees at depth [H, W]."""
    y, x = np.meshgrid(np.arange(a.height) + 0.5, np.arange(a.width) + 0.5, indexing="ij")
    d = torch.nan_to_num(depth).double().numpy()
    in_a = np.stack([(x - a.cx) / a.fx * d, (y - a.cy) / a.fy * d, d, np.ones_like(d)], -1)
    in_b = in_a @ (b.cam_from_world @ a.world_from_cam).T
    z = np.where(np.abs(in_b[..., 2]) < 1e-9, 1e-9, in_b[..., 2])
    pixel = np.stack([b.fx * in_b[..., 0] / z + b.cx, b.fy * in_b[..., 1] / z + b.cy], -1)
    return torch.from_numpy(pixel).float(), torch.from_numpy(in_b[..., 2]).float()


def sharpness(views: ObjectViews) -> float:
    """Gradient energy inside the object; pixels count from 0 to 1 in colour and by one in place."""
    images, inside = views.images, views.covered
    right, down = images[:, :, :, 1:] - images[:, :, :, :-1], images[:, :, 1:] - images[:, :, :-1]
    both_x, both_y = inside[:, :, 1:] & inside[:, :, :-1], inside[:, 1:] & inside[:, :-1]
    if not bool(both_x.any()) or not bool(both_y.any()):
        return float("nan")
    across, along = right.square().mean(1)[both_x].mean(), down.square().mean(1)[both_y].mean()
    return float(across + along)
