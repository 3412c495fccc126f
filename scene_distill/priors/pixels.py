"""Pixel space: images [B, 3, H, W] in [0, 1] to and from x0 in [-1, 1] at the prior's own size."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from scene_distill.core.errors import UserError


@dataclass(frozen=True)
class PixelCodec:
    """x0 = 2 image - 1, resampled where sizes differ: means of k x k pixels where both sides are k times the prior's
    (as the toy world's pictures are made), else bilinear with antialiasing. The gradient flows through both."""

    height: int
    width: int
    channels: int = 3

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of x0."""
        return (self.channels, self.height, self.width)

    def encode(self, images: Tensor) -> Tensor:
        """x0 [B, C, height, width] of images [B, C, H, W] in [0, 1]; raises UserError for other shapes."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise UserError(f"the prior takes images [B, {self.channels}, H, W], got {tuple(images.shape)}")
        size, given = (self.height, self.width), tuple(images.shape[2:])
        factor = given[0] // self.height
        if given != size and given == (factor * self.height, factor * self.width):
            images = functional.avg_pool2d(images, factor)
        elif given != size:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return 2 * images - 1

    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, C, height, width] in [0, 1] of x0."""
        return ((x0 + 1) / 2).clamp(0, 1)
