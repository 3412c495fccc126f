"""A radiance field as a pyramid of dense grids: density and colour at the corners of voxels, summed over levels.

The cube [-radius, radius]^3 (world axes) carries, on every level, values at R x R x R lattice points, corners of the
cube included. A level moves everything below its own resolution at once, so coarse levels give a prior's noisy
gradient something smooth to act on, and fine ones detail. The levels are added before anything is looked up, each
sum resampled to the next finer lattice: `fused` is one table, and a look-up costs one trilinear blend whatever the
number of levels.

    density(x) = density_scale softplus(b(x) + raw(x))      raw: trilinear blend of the table's first channel
    colour(x)  = sigmoid(blend of channels 1 to 3)          radiance, the same from everywhere

b is the bias of Magic3D's start, a soft ball: blob_scale (1 - |x| / blob_std), zero for blob_scale 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from scene_distill.core.errors import UserError

DENSITY, COLORS = 0, slice(1, 4)
"""Channels of a table."""


@dataclass(frozen=True)
class FieldShape:
    """What a field is made of, beside its numbers.

    resolutions: lattice points along an axis, coarse to fine, at least 2 each; radius: half the cube's side in world
    units; density_scale: density, per world unit, of softplus = 1; blob_scale and blob_std (world units): see above.
    """

    resolutions: tuple[int, ...] = (8, 16, 32, 64)
    radius: float = 1.15
    density_scale: float = 25.0
    blob_scale: float = 10.0
    blob_std: float = 0.5

    def __post_init__(self) -> None:
        if not self.resolutions or list(self.resolutions) != sorted(set(self.resolutions)) or self.resolutions[0] < 2:
            raise UserError(f"resolutions of a radiance field rise from at least 2, got {list(self.resolutions)}")
        if min(self.radius, self.density_scale, self.blob_std) <= 0:
            raise UserError("radius, density_scale and blob_std of a radiance field must be above 0")

    @property
    def finest(self) -> int:
        """Lattice points along an axis of the fused table."""
        return self.resolutions[-1]

    @property
    def voxel(self) -> float:
        """Side of a voxel of the fused table, in world units."""
        return 2 * self.radius / (self.finest - 1)


@dataclass(frozen=True, eq=False)
class RadianceField:
    """Levels [R, R, R, 4] each, indexed (z, y, x, channel), raw: before softplus and sigmoid."""

    shape: FieldShape
    levels: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        expected = [(r, r, r, 4) for r in self.shape.resolutions]
        found = [tuple(level.shape) for level in self.levels]
        if found != expected:
            raise ValueError(f"levels of a radiance field have shapes {found}, expected {expected}")

    @staticmethod
    def empty(shape: FieldShape, dtype: torch.dtype = torch.float32) -> RadianceField:
        """The field that is only its bias, mid grey."""
        return RadianceField(shape, tuple(torch.zeros(r, r, r, 4, dtype=dtype) for r in shape.resolutions))

    def trainable(self) -> RadianceField:
        """A copy whose levels take gradient."""
        return replace(self, levels=tuple(level.detach().clone().requires_grad_() for level in self.levels))

    def fused(self, levels: int | None = None) -> Tensor:
        """The table [R, R, R, 4] of the finest resolution: the first ``levels`` levels (default all), and the bias."""
        used = len(self.levels) if levels is None else max(levels, 1)
        table = self.levels[0]
        for number, level in enumerate(self.levels[1:], start=1):
            volume = table.permute(3, 0, 1, 2)[None]
            finer = functional.interpolate(volume, [level.shape[0]] * 3, mode="trilinear", align_corners=True)
            table = finer[0].permute(1, 2, 3, 0)
            if number < used:
                table = table + level
        if self.shape.blob_scale != 0:
            table = table + _bias_table(self.shape).to(table)
        return table.contiguous()


@lru_cache(maxsize=4)
def _bias_table(shape: FieldShape) -> Tensor:
    """The bias on the finest lattice, [R, R, R, 4], zero for colours."""
    line = torch.linspace(-shape.radius, shape.radius, shape.finest, dtype=torch.float64)
    squares = line.square()
    distance = (squares[:, None, None] + squares[None, :, None] + squares[None, None, :]).sqrt()
    return functional.pad((shape.blob_scale * (1 - distance / shape.blob_std))[..., None], (0, 3))


def density_of(raw: Tensor, shape: FieldShape) -> Tensor:
    """Density per world unit of raw values, any shape."""
    return shape.density_scale * functional.softplus(raw)


def raw_of_density(density: float, shape: FieldShape) -> float:
    """The raw value that has this density (> 0): the inverse of `density_of`."""
    share = torch.tensor(density / shape.density_scale, dtype=torch.float64)
    return float(share + torch.log(-torch.expm1(-share)))


def with_normals(table: Tensor, shape: FieldShape) -> Tensor:
    """The table [R, R, R, 4] with three more channels: minus the gradient (x, y, z) of raw density, per world unit.

    Central differences inside, one-sided at the cube's faces. It points out of the object; not normalised.
    """
    raw = table[..., DENSITY]
    gradient = torch.gradient(raw, spacing=shape.voxel)
    return torch.cat([table, -torch.stack([gradient[2], gradient[1], gradient[0]], dim=-1)], dim=-1)


class _Blend(torch.autograd.Function):
    """sum_k weights[p, k] rows[index[p, k]], with a backward that adds where embedding_bag's would sort."""

    @staticmethod
    def forward(ctx, rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(rows, index, weights)
        return functional.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:  # type: ignore[no-untyped-def]
        rows, index, weights = ctx.saved_tensors
        (gradient,) = gradients
        to_rows = to_weights = None
        if ctx.needs_input_grad[0]:
            shares = (weights[:, :, None] * gradient[:, None, :]).reshape(-1, rows.shape[1])
            to_rows = torch.zeros_like(rows).index_add_(0, index.reshape(-1), shares)
        if ctx.needs_input_grad[2]:
            to_weights = torch.einsum("pkd,pd->pk", rows[index], gradient)
        return to_rows, None, to_weights


def look_up(table: Tensor, points: Tensor, radius: float) -> Tensor:
    """Trilinear blend [P, D] of a table [R, R, R, D] over the cube of half side ``radius`` at world points [P, 3].

    Differentiable in table and points. Points outside the cube get the value of the nearest place on its faces.
    """
    side, channels = table.shape[0], table.shape[-1]
    place = ((points / radius + 1) * (0.5 * (side - 1))).clamp(0, side - 1)
    cell = place.detach().floor().clamp(max=side - 2)
    f = place - cell
    i = cell.long()
    corner = (i[:, 2] * side + i[:, 1]) * side + i[:, 0]
    steps = torch.tensor([0, 1, side, side + 1], device=table.device)
    index = corner[:, None] + torch.cat([steps, steps + side * side])
    sides = torch.stack([1 - f, f], dim=1)
    weights = sides[:, :, None, None, 2] * sides[:, None, :, None, 1] * sides[:, None, None, :, 0]
    return _Blend.apply(table.reshape(-1, channels), index, weights.reshape(len(points), 8))
