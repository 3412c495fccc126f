"""Pictures as bytes for a browser."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
from torch import Tensor


def eight_bit(image: Tensor) -> np.ndarray:
    """An image [H, W, 3] in [0, 1] (clipped) as uint8."""
    return (image.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu().numpy()


def encoded(image: Tensor, quality: int) -> bytes:
    """The image as JPEG of a quality from 1 to 100, or as PNG for 0."""
    from PIL import Image

    picture, buffer = Image.fromarray(eight_bit(image)), io.BytesIO()
    if quality:
        picture.save(buffer, format="JPEG", quality=quality, subsampling=0 if quality >= 85 else 2)
    else:
        picture.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def framed(header: dict[str, Any], parts: list[bytes]) -> bytes:
    """One binary message: length of the header (uint32, little-endian), the header as JSON with the parts' lengths
    under 'sizes', then the parts."""
    text = json.dumps(header | {"sizes": [len(part) for part in parts]}).encode()
    return b"".join([struct.pack("<I", len(text)), text, *parts])
