"""Clips of a gradient [B, C, H, W]: per pixel, per element, per tensor. On x0, or inside the backward of a render.

    pixel    k_p = min_c min(1, c / |G_pc|),  G_p <- k_p G_p       keeps each pixel's direction (PGC, ICLR 2024)
    element  G <- clamp(G, -c, c)                                  (Consistent3D, on latents)
    tensor   k = min over everything of min(1, c / |G|), G <- k G  keeps the direction (Dreamer XL's depth, in code)

The backward of a large VAE has spikes; clipping before the rasterizer also keeps them out of the densification
statistics, which would split healthy Gaussians. Published limits: 0.05 on colour (Dreamer XL), 0.1 (PGC).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score_teacher import Progress, Scheduled, at

ClipMode = Literal["none", "pixel", "element", "tensor"]
Limit = Scheduled | Tensor


class GradientTransform(Protocol):
    """Something done to a gradient after the weight."""

    def __call__(self, gradient: Tensor, progress: Progress) -> Tensor:
        """The changed gradient, of the same shape."""
        ...


def clipped(gradient: Tensor, mode: ClipMode, limit: float | Tensor, channel_axis: int = 1) -> Tensor:
    """The gradient with every value's size at most ``limit`` (a number or a scalar tensor > 0); zeros stay zeros."""
    if mode == "none":
        return gradient
    c = torch.as_tensor(limit, dtype=gradient.dtype, device=gradient.device)
    if not bool(c > 0):
        raise UserError(f"a gradient clip needs a limit above 0, got {float(c)}")
    if mode == "element":
        return torch.minimum(torch.maximum(gradient, -c), c)
    if mode not in ("pixel", "tensor"):
        raise UserError(f"gradient clips are none, pixel, element and tensor, got {mode!r}")
    size = gradient.abs()
    largest = size.amax(channel_axis, keepdim=True) if mode == "pixel" else size.amax()
    return torch.where(largest > c, gradient * (c / largest.clamp(min=c)), gradient)


@dataclass(frozen=True)
class Clip:
    """A `GradientTransform`: `clipped` with a limit that may follow training (Consistent3D: 2 to 8) or be a tensor."""

    mode: ClipMode
    limit: Limit
    channel_axis: int = 1

    def __call__(self, gradient: Tensor, progress: Progress) -> Tensor:
        """The clipped gradient."""
        limit = self.limit if isinstance(self.limit, Tensor) else at(self.limit, progress)
        return clipped(gradient, self.mode, limit, self.channel_axis)


class _ClipBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, mode: ClipMode, limit: Tensor | float, channel_axis: int) -> Tensor:
        ctx.rule = (mode, limit, channel_axis)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return clipped(gradients[0], *ctx.rule), None, None, None


def clip_backward(values: Tensor, mode: ClipMode, limit: float | Tensor, channel_axis: int = 1) -> Tensor:
    """``values`` unchanged; the gradient that comes back through them is clipped, after all losses that touch them.

    For depth maps Dreamer XL takes limit = 0.01 mean(scales).detach(). With a loss scale, multiply the limit by it.
    """
    return _ClipBackward.apply(values, mode, limit, channel_axis)
