"""Numbers as colours: a map for depth, one for errors, and a tint for every block."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

Name = Literal["dusk", "heat", "grey"]

TABLES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "dusk": (
        (0.98, 0.93, 0.70), (0.97, 0.74, 0.36), (0.90, 0.49, 0.32), (0.72, 0.30, 0.43), (0.48, 0.20, 0.49),
        (0.26, 0.16, 0.42), (0.11, 0.10, 0.26),
    ),
    "heat": (
        (0.02, 0.02, 0.05), (0.16, 0.07, 0.32), (0.45, 0.10, 0.42), (0.76, 0.20, 0.30), (0.95, 0.46, 0.13),
        (0.99, 0.78, 0.30), (1.00, 0.98, 0.85),
    ),
    "grey": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}  # fmt: skip
"""Evenly spaced colours from 0 to 1; lightness is monotonous in each, so that they read in grey too."""


def colorised(values: Tensor, name: str) -> Tensor:
    """Values [...] in [0, 1] (clipped) as colours [..., 3], in 1024 shades."""
    shades = _shades(name).to(values.device)
    return shades[(values.clamp(0, 1) * (len(shades) - 1)).round().long()]


@cache
def _shades(name: str) -> Tensor:
    table = torch.tensor(TABLES[name])
    place = torch.linspace(0, len(table) - 1, 1024)
    index = place.long().clamp_max(len(table) - 2)
    return torch.lerp(table[index], table[index + 1], (place - index)[:, None])


def block_colors(count: int) -> Tensor:
    """Tints [K, 3] in [0, 1] of K blocks: hues a golden section apart, pastel enough to lie over a picture."""
    hue = (torch.arange(count).float() * 0.618034 + 0.05) % 1.0
    thirds = torch.tensor([0.0, 2.0 / 3.0, 1.0 / 3.0])
    distance = ((hue[:, None] - thirds + 0.5) % 1.0 - 0.5).abs()
    return 0.36 + 0.56 * (2.0 - 6.0 * distance).clamp(0.0, 1.0)


def class_colors(count: int) -> Tensor:
    """Colours [C + 1, 3] in [0, 1] of C classes, further apart than blocks' tints; the last one is grey, of no class.

    Hues a golden section apart, in three lightnesses and two saturations by turns.
    """
    index = torch.arange(count)
    tints = block_colors(count)
    light = torch.tensor([0.85, 1.0, 0.62])[index % 3]
    strong = torch.tensor([0.9, 0.6])[index % 2]
    grey = tints.mean(1, keepdim=True)
    colors = (grey + (tints - grey) * (0.9 + strong[:, None])).clamp(0, 1) * light[:, None]
    return torch.cat([colors, torch.full((1, 3), 0.35)])
