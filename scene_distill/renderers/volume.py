"""Volume rendering of a radiance field on a CPU: ray marching that looks only where there is something to see.

    w_i = T_i (1 - exp(-sigma_i d_i)),    T_i = exp(-sum_{j<i} sigma_j d_j),    sum_i w_i + T_end = 1

Work unit: one sample of one ray, a trilinear blend of a few channels; the blends are the cost, so samples are dropped
before they are looked up. Both rules are bounds that hold, not estimates that age:

    empty    a sample whose voxel cannot reach ``negligible`` density (the most of its eight corners; softplus and the
             trilinear blend are monotone, so the corners bound the inside)
    hidden   a sample in front of which the voxels' least densities alone leave less than ``unseen`` of the light

What is left out changes a pixel by at most negligible * (length of the ray in the cube) + unseen. Samples are d apart
from where the ray enters the cube, each at the middle of its interval, or jittered within it. Everything after the
look-up is a small dense array [rays that see something, samples of the fullest ray].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.renderers.rays import Rays, camera_rays, span_in_cube
from scene_distill.representations.radiance_field import (
    COLORS,
    DENSITY,
    FieldShape,
    density_of,
    look_up,
    raw_of_density,
)


@dataclass(frozen=True)
class March:
    """step: distance of samples in world units; negligible: density per world unit; unseen: share of light."""

    step: float
    negligible: float = 1e-3
    unseen: float = 1e-4

    def __post_init__(self) -> None:
        if self.step <= 0 or self.negligible < 0 or self.unseen < 0:
            raise UserError("ray marching needs a step above 0 and limits of at least 0")


@dataclass(frozen=True, eq=False)
class VolumePicture:
    """What rays saw. colors [P, 3] premultiplied, no background; opacity [P]; depth [P] (distance, opacity-weighted);
    the samples behind it: ray int64 [M], weights [M], channels [M, D] of the table, points [M, 3]."""

    colors: Tensor
    opacity: Tensor
    depth: Tensor
    ray: Tensor
    weights: Tensor
    channels: Tensor
    points: Tensor

    def over(self, background: Tensor) -> Tensor:
        """Colours [P, 3] over a background that broadcasts to [P, 3]."""
        return self.colors + (1 - self.opacity)[:, None] * background


def transmittance_weights(optical: Tensor) -> tuple[Tensor, Tensor]:
    """Weights w [P, S] of samples with optical thickness sigma d [P, S] in order, and the light left at the end [P].

    Differentiable. w sums to 1 - light; splitting a sample in two of half the thickness leaves all others' w alone.
    """
    through = optical.cumsum(dim=1)
    before = torch.exp(-(through - optical))
    return before * -torch.expm1(-optical), torch.exp(-through[:, -1])


def voxel_bounds(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value inside every voxel, [R-1, R-1, R-1] each, of a field blended from raw [R, R, R]."""
    low = high = raw.detach()
    for axis in range(3):
        count = raw.shape[axis] - 1
        low = torch.minimum(low.narrow(axis, 0, count), low.narrow(axis, 1, count))
        high = torch.maximum(high.narrow(axis, 0, count), high.narrow(axis, 1, count))
    return low, high


@torch.no_grad()
def visible_samples(table: Tensor, shape: FieldShape, rays: Rays, march: March, jitter: Tensor | None
                    ) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """Samples worth looking up: ray [M] and distance [M], by ray and distance, and the count of all samples.

    jitter: places in [0, 1) within their intervals, [P] or [P, S]; None: the middle.
    """
    enter, leave = span_in_cube(rays, shape.radius)
    hit = torch.nonzero(leave > enter)[:, 0]
    if len(hit) == 0:
        return hit, enter[:0], 0
    count = int(torch.ceil((leave - enter)[hit].max() / march.step))
    place = 0.5 if jitter is None else jitter.reshape(len(rays), -1)[hit][:, :count]
    numbers = torch.arange(count, dtype=enter.dtype, device=enter.device)
    distance = enter[hit, None] + (numbers + place) * march.step
    points = rays.origins[hit, None] + distance[..., None] * rays.directions[hit, None]
    side = shape.finest
    cell = ((points / shape.radius + 1) * (0.5 * (side - 1))).clamp(0, side - 1.5).long()
    index = (cell[..., 2] * (side - 1) + cell[..., 1]) * (side - 1) + cell[..., 0]
    low, high = voxel_bounds(table[..., DENSITY])
    inside = distance < leave[hit, None]
    keep = inside
    if march.negligible > 0:
        keep = inside & (high > raw_of_density(march.negligible, shape)).reshape(-1)[index]
    if march.unseen > 0:
        least = density_of(low, shape).reshape(-1)[index] * inside * march.step
        keep = keep & (least.cumsum(1) - least < -math.log(march.unseen))
    row, slot = torch.nonzero(keep, as_tuple=True)
    return hit[row], distance[row, slot], int(inside.sum())


def render_rays(table: Tensor, shape: FieldShape, rays: Rays, march: March,
                jitter: Tensor | None = None) -> VolumePicture:  # fmt: skip
    """What the rays see of a fused table [R, R, R, D], D >= 4 (`RadianceField.fused`, `with_normals`).

    Differentiable in the table. Same rays, table and jitter: same bytes.
    """
    ray, distance, _ = visible_samples(table, shape, rays, march, jitter)
    points = rays.origins[ray] + distance[:, None] * rays.directions[ray]
    channels = look_up(table, points, shape.radius)
    density = density_of(channels[:, DENSITY], shape)
    seen, row, counts = torch.unique_consecutive(ray, return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    slot = torch.arange(len(ray), device=ray.device) - starts[row]
    width = int(counts.max()) if len(counts) else 1
    flat = row * width + slot
    optical = density.new_zeros(len(seen) * width).index_put((flat,), density * march.step)
    dense, _ = transmittance_weights(optical.reshape(len(seen), width))
    weights = dense.reshape(-1)[flat]
    values = torch.cat([channels[:, COLORS].sigmoid(), torch.ones_like(distance)[:, None], distance[:, None]], dim=1)
    sums = values.new_zeros(len(rays), values.shape[1]).index_add(0, ray, weights[:, None] * values)
    return VolumePicture(sums[:, :3], sums[:, 3], sums[:, 4], ray, weights, channels, points)


def render_volume(table: Tensor, shape: FieldShape, cameras: Sequence[Camera], march: March,
                  generator: torch.Generator | None = None) -> VolumePicture:  # fmt: skip
    """`render_rays` through every pixel of the cameras; a generator jitters the samples of every ray by one number."""
    rays = camera_rays(cameras, table.dtype, table.device)
    jitter = None if generator is None else torch.rand(len(rays), generator=generator, dtype=table.dtype)
    return render_rays(table, shape, rays, march, jitter)
