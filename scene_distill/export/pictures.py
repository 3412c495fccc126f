"""Pictures for people: PNG files, and sheets of photo, render, difference and depth side by side with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

LABEL_HEIGHT_PX = 22
GAP_PX = 6
_BACKGROUND = (24, 24, 26)
_INK = (235, 235, 235)

_NEAR_TO_FAR = (
    (0.99, 0.91, 0.15), (0.99, 0.65, 0.19), (0.94, 0.38, 0.35), (0.73, 0.21, 0.47), (0.47, 0.11, 0.43),
    (0.23, 0.06, 0.37), (0.05, 0.03, 0.15),
)  # fmt: skip
"""Colours of increasing depth, evenly spaced: lightness falls from near to far, so that it reads in grey too."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a sheet: image [H, W, 3] in [0, 1] (clipped when written) and the label above it."""

    label: str
    image: Tensor


def difference(render: Tensor, photo: Tensor, gain: float = 3.0) -> Tensor:
    """Absolute difference [H, W, 3] of two images, ``gain`` times brighter, clipped to 1."""
    return ((render.clamp(0.0, 1.0) - photo).abs() * gain).clamp_max(1.0)


def colorise_depth(depth_m: Tensor) -> Tensor:
    """Depth [H, W] as colours [H, W, 3], light near and dark far, black where the depth is 0 or not finite.

    The range goes from the 2nd to the 98th percentile of the valid depths, in 1/depth, as near things have more
    detail.
    """
    valid = torch.isfinite(depth_m) & (depth_m > 0)
    if not valid.any():
        return torch.zeros(*depth_m.shape, 3)
    nearness = 1.0 / torch.where(valid, depth_m, torch.ones_like(depth_m)).float()
    ordered = nearness[valid].sort().values
    low, high = ordered[int(0.02 * (len(ordered) - 1))], ordered[int(0.98 * (len(ordered) - 1))]
    farness = ((high - nearness) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
    table = torch.tensor(_NEAR_TO_FAR, device=depth_m.device)
    place = farness * (len(table) - 1)
    index = place.long().clamp_max(len(table) - 2)
    blend = (place - index)[..., None]
    colors = table[index] * (1 - blend) + table[index + 1] * blend
    return torch.where(valid[..., None], colors, torch.zeros_like(colors))


def comparison(
    photo: Tensor, render: Tensor, depth_m: Tensor | None = None, *, name: str = "", gain: float = 3.0
) -> list[Panel]:
    """A row of a sheet: photo (labelled with ``name``), render, their difference and, where there is one, the depth."""
    row = [
        Panel(f"photo {name}".strip(), photo),
        Panel("render", render),
        Panel(f"difference x {gain:g}", difference(render, photo, gain)),
    ]
    return row if depth_m is None else [*row, Panel("depth (light is near)", colorise_depth(depth_m))]


def write_png(image: Tensor, path: Path) -> None:
    """Write an image [H, W, 3] in [0, 1] (clipped, rounded to 8 bits), atomically."""
    picture = _picture(image)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def write_sheet(rows: Sequence[Sequence[Panel]], path: Path, *, panel_width: int | None = None) -> None:
    """Write rows of labelled panels as one PNG, atomically.

    All panels get the same width: ``panel_width``, or that of the widest; heights follow. Raises `UserError` when
    there is no panel.
    """
    from PIL import Image, ImageDraw, ImageFont

    panels = [panel for row in rows for panel in row]
    if not panels:
        raise UserError(f"There are no pictures to put on {path}.")
    width = panel_width or max(panel.image.shape[1] for panel in panels)
    heights = [max(_scaled_height(panel, width) for panel in row) for row in rows if row]
    columns = max(len(row) for row in rows)
    size = (columns * (width + GAP_PX) + GAP_PX, sum(heights) + len(heights) * (LABEL_HEIGHT_PX + GAP_PX) + GAP_PX)
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    top = GAP_PX
    for row, height in zip((row for row in rows if row), heights, strict=True):
        for column, panel in enumerate(row):
            left = GAP_PX + column * (width + GAP_PX)
            draw.text((left + 2, top + 2), panel.label, fill=_INK, font=font)
            picture = _picture(panel.image).resize((width, _scaled_height(panel, width)), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left, top + LABEL_HEIGHT_PX))
        top += height + LABEL_HEIGHT_PX + GAP_PX
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))


def _scaled_height(panel: Panel, width: int) -> int:
    height_px, width_px = panel.image.shape[:2]
    return max(1, round(height_px * width / width_px))


def _picture(image: Tensor) -> Image.Image:
    from PIL import Image

    eight_bit = (image.detach().cpu().float().nan_to_num(0.0).clamp(0.0, 1.0) * 255).round().to(torch.uint8)
    return Image.fromarray(eight_bit.numpy())
