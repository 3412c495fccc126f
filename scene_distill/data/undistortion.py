"""Undistortion: photos from a real lens become photos from a pinhole, once, kept in a cache folder.

The pinhole keeps the lens's focal lengths, so the centre keeps its resolution, and covers the largest upright rectangle
around the principal point in which every pixel comes from inside the photo (COLMAP's blank_pixels = 0).
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.data.images import on_black
from scene_distill.data.lens import Lens
from scene_distill.data.photo_files import PhotoFault

_BORDER_SAMPLES = 200
_JPEG_QUALITY = 95
_LARGEST_GROWTH = 2.0
"""The pinhole image is at most this many times wider or higher than the photo."""


def pinhole_of(lens: Lens) -> Lens:
    """The pinhole that replaces ``lens``; raises `UserError` when the distortion folds the image over itself."""
    along = np.linspace(0.0, 1.0, _BORDER_SAMPLES)
    zeros, ones = np.zeros_like(along), np.ones_like(along)
    sides = []
    for xs, ys in ((zeros, along), (ones, along), (along, zeros), (along, ones)):
        pixels = np.stack([xs * lens.width, ys * lens.height], -1)
        points = (pixels - [lens.cx, lens.cy]) / [lens.fx, lens.fy]
        with np.errstate(all="ignore"):
            rays = lens.undistorted(points)
        if not np.isfinite(rays).all() or np.abs(lens.distorted(rays) - points).max() > 1e-6:
            raise UserError(
                f"the lens {lens} cannot be undistorted: its coefficients fold the image border over; "
                "calibrate it again or crop the photos"
            )
        sides.append(rays * [lens.fx, lens.fy])
    left, right = sides[0][:, 0].max(), sides[1][:, 0].min()
    top, bottom = sides[2][:, 1].max(), sides[3][:, 1].min()
    left, right = max(left, -_LARGEST_GROWTH * lens.cx), min(right, _LARGEST_GROWTH * (lens.width - lens.cx))
    top, bottom = max(top, -_LARGEST_GROWTH * lens.cy), min(bottom, _LARGEST_GROWTH * (lens.height - lens.cy))
    width, height = math.floor(right - left), math.floor(bottom - top)
    if width < 1 or height < 1:
        raise UserError(f"the lens {lens} leaves no pixel after undistortion; calibrate it again")
    return Lens(width, height, lens.fx, lens.fy, float(-left), float(-top))


def undistorted_path(path: Path, lens: Lens, cache: Path) -> Path:
    """Where the undistorted copy of the photo at ``path`` belongs; the name changes with its size, time and lens."""
    stat = path.stat()
    token = repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns, lens))
    return cache / f"{path.stem}-{hashlib.blake2b(token.encode(), digest_size=8).hexdigest()}.jpg"


class Undistorter:
    """Makes undistorted copies of photos in the folder ``cache``; keeps the sampling grid of the last lens.

    Give it photos of one lens after another. A copy appears under its name only when it is complete, and one that is
    there already is not made again, so work that was stopped goes on where it was.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._lens: Lens | None = None
        self._pinhole: Lens | None = None
        self._grid: torch.Tensor | None = None

    def undistort(self, path: Path, lens: Lens) -> tuple[Path, Lens]:
        """The undistorted copy of the photo at ``path``, which ``lens`` took, and the pinhole that fits the copy.

        Sampling is bilinear, transparency is composited on black, JPEG quality 95 without chroma subsampling. Raises
        `PhotoFault` when the photo cannot be decoded and `UserError` when the lens cannot be undone or the cache cannot
        be written.
        """
        if self._pinhole is None or lens != self._lens:
            self._lens, self._pinhole, self._grid = lens, pinhole_of(lens), None
        target = undistorted_path(path, lens, self._cache)
        if target.is_file():
            return target, self._pinhole
        try:
            with Image.open(path) as image:
                pixels = np.array(on_black(image), dtype=np.float32)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise PhotoFault(f"the photo cannot be decoded ({error})") from error
        if self._grid is None:
            self._grid = _sampling_grid(lens, self._pinhole)
        source = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        picture = torch.nn.functional.grid_sample(
            source, self._grid[None], mode="bilinear", padding_mode="border", align_corners=False
        )
        rgb = Image.fromarray(picture[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
        make_folder(self._cache)
        write_atomically(target, lambda partial: rgb.save(partial, "JPEG", quality=_JPEG_QUALITY, subsampling=0))
        return target, self._pinhole


def make_folder(folder: Path) -> None:
    """Make the cache folder ``folder`` and its parents; raises `UserError` when that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder} ({error.strerror}); make its parent writable or copy the data"
        ) from error


def _sampling_grid(lens: Lens, pinhole: Lens) -> torch.Tensor:
    """Where each pixel of the pinhole looks in the photo, [H, W, 2] float32 in grid_sample's [-1, 1]."""
    u = (np.arange(pinhole.width) + 0.5 - pinhole.cx) / pinhole.fx
    v = (np.arange(pinhole.height) + 0.5 - pinhole.cy) / pinhole.fy
    rays = np.stack(np.meshgrid(u, v, indexing="xy"), -1)
    pixels = lens.distorted(rays) * [lens.fx, lens.fy] + [lens.cx, lens.cy]
    return torch.from_numpy((2 * pixels / [lens.width, lens.height] - 1).astype(np.float32))
