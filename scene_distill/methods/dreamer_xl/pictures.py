"""What happens to renders of Gaussians before the prior sees them, and what is asked of them beside (Dreamer XL).

    disparity = f / (alpha depth + 10 (1 - alpha)),  f = 1 / (2 tan(fov / 2)),  stretched over the object to 0..1

The object's smallest disparity becomes 0, and so does everything behind it. (The published code names its 10 * alpha
after the transmittance.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera

BEHIND_M = 10.0
"""Depth that counts where nothing is."""

SOLID = 0.9
"""Coverage from which on a pixel belongs to the object, whose smallest disparity becomes 0."""


class _Inward(torch.autograd.Function):
    """Clamped to 0..1; the gradient of what lies outside passes where its descent leads back inside."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,), (gradient,) = ctx.saved_tensors, gradients
        outward = ((values > 1) & (gradient < 0)) | ((values < 0) & (gradient > 0))
        return gradient.masked_fill(outward, 0.0)


def clamped(image: Tensor, inward: bool) -> Tensor:
    """The image in [0, 1]."""
    return _Inward.apply(image) if inward else image.clamp(0, 1)


def disparity(depth_m: Tensor, alpha: Tensor, camera: Camera) -> Tensor:
    """Disparity [H, W] in [0, 1] of expected depth and alpha [H, W]; 1 is nearest. Zero where no pixel is solid."""
    focal = camera.fx / camera.width
    raw = focal / (alpha * depth_m + BEHIND_M * (1 - alpha) + 1e-5)
    solid = alpha.detach() >= SOLID
    if not bool(solid.any()):
        return torch.zeros_like(raw)
    low, high = raw.detach()[solid].min(), raw.detach().max()
    return ((raw - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
