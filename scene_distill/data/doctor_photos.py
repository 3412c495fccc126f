"""A look at photos: how sharp and bright they are, and which show the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from scene_distill.data.images import read_photo
from scene_distill.data.photo_quality import brightness, sharpness
from scene_distill.data.scene import Frame

QUALITY_WIDTH = 800
"""Pixels in width at which photos are judged, so that figures of large and small ones compare."""

SAME = 0.99
"""Correlation of two thumbnails from which photos show the same."""

_THUMBNAIL = (24, 32)
_FLAT = 2.0
"""Deviation of grey levels below which a thumbnail shows nothing."""


@dataclass(frozen=True, eq=False)
class PhotoLook:
    """What one photo looks like: sharpness (`photo_quality.sharpness`), brightness in [0, 255], and a grey thumbnail
    [24, 32] of mean 0 and deviation 1 (0 where flat)."""

    name: str
    sharpness: float
    brightness: float
    thumbnail: np.ndarray


def look_at_photos(frames: list[Frame]) -> list[PhotoLook]:
    """Decode the photos one after another, at most 800 px wide. Raises `UserError` when one cannot be decoded."""
    return [_look(frame.name, read_photo(frame, min(frame.camera.width, QUALITY_WIDTH))) for frame in frames]


def _look(name: str, photo: Tensor) -> PhotoLook:
    pixels = photo.numpy()
    thumbnail_size = _THUMBNAIL[1], _THUMBNAIL[0]
    small = np.asarray(Image.fromarray(pixels).resize(thumbnail_size, Image.Resampling.BOX)).mean(-1)
    deviation = float(small.std())
    thumbnail = (small - small.mean()) / deviation if deviation > _FLAT else np.zeros_like(small)
    return PhotoLook(name, sharpness(photo), brightness(photo), thumbnail)


def alike(looks: list[PhotoLook]) -> list[list[str]]:
    """Groups of photos whose thumbnails correlate to at least 0.99, directly or through others."""
    if not looks:
        return []
    flat = np.stack([look.thumbnail.ravel() for look in looks])
    same = flat @ flat.T / flat.shape[1] >= SAME
    groups: list[list[str]] = []
    left = set(range(len(looks)))
    while left:
        group, border = set(), {min(left)}
        while border:
            group |= border
            border = {int(j) for i in border for j in np.flatnonzero(same[i])} - group
        left -= group
        if len(group) > 1:
            groups.append([looks[i].name for i in sorted(group)])
    return groups
