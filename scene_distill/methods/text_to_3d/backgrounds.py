"""What is behind an object while it is trained."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from scene_distill.data.captioned_shapes import BACKGROUND
from scene_distill.training.picture_networks import backgrounds as greys

OTHER_SHARE = 0.66
"""Dreamer XL: share of steps whose background is not white; half of them black, half one random colour."""

Background = Literal["plain", "greys", "random"]


def plain() -> Tensor:
    """The toy world's background [3], sRGB."""
    return torch.tensor(BACKGROUND)


def draw_backgrounds(kind: Background, count: int, generator: torch.Generator) -> Tensor:
    """One background for each of ``count`` views, [count, 3] in [0, 1]; the same for a step where it is 'random'."""
    if kind == "plain":
        return plain().expand(count, 3)
    if kind == "greys":
        return greys(count, generator)
    draws = torch.rand(2, generator=generator)
    color = torch.rand(3, generator=generator)
    if float(draws[0]) >= OTHER_SHARE:
        color = torch.ones(3)
    elif float(draws[1]) < 0.5:
        color = torch.zeros(3)
    return color.expand(count, 3)
