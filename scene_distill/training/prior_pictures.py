"""Sheets of samples and loss curves as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from scene_distill.core.files import write_atomically

GAP, ENLARGED_TO = 2, 96
_SIZE, _MARGIN = (640, 320), 44


def picture_grid(images: Tensor, columns: int) -> np.ndarray:
    """Pictures [N, 3, S, S] in [0, 1] in rows of ``columns``, each enlarged by whole factors to about 96 pixels."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    factor = max(1, ENLARGED_TO // pixels.shape[1])
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    side = pixels.shape[1] + GAP
    rows = -(-len(pixels) // columns)
    sheet = np.full((rows * side - GAP, columns * side - GAP, 3), 255, np.uint8)
    for i, picture in enumerate(pixels):
        y, x = divmod(i, columns)
        sheet[y * side : y * side + side - GAP, x * side : x * side + side - GAP] = picture
    return sheet


def loss_chart(steps: Sequence[float], losses: Sequence[float]) -> np.ndarray:
    """A curve of losses by step, the loss on a logarithmic axis: [320, 640, 3] uint8."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(image)
    width, height = _SIZE
    values = np.log10(np.maximum(np.asarray(losses, float), 1e-6))
    low, high = float(values.min()), float(max(values.max(), values.min() + 0.1))
    last = max(float(max(steps)), 1.0)
    across = [_MARGIN + (width - 2 * _MARGIN) * s / last for s in steps]
    down = [height - _MARGIN - (height - 2 * _MARGIN) * (v - low) / (high - low) for v in values]
    draw.rectangle((_MARGIN, _MARGIN, width - _MARGIN, height - _MARGIN), outline=(170, 170, 170))
    if len(steps) > 1:
        draw.line(list(zip(across, down, strict=True)), fill=(30, 90, 200), width=2)
    for level in (low, (low + high) / 2, high):
        y = height - _MARGIN - (height - 2 * _MARGIN) * (level - low) / (high - low)
        draw.text((4, y - 6), f"{10**level:.3f}", fill="black")
    draw.text((width / 2 - 60, height - 24), f"loss by step, to {last:.0f}", fill="black")
    return np.asarray(image)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write [H, W, 3] uint8 as PNG, atomically."""
    from PIL import Image

    write_atomically(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="PNG"))
