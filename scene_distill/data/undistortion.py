"""Undistortion: photos from a real lens become photos from a pinhole, once, kept in a cache folder.

The pinhole keeps the lens's focal lengths, so the centre keeps its resolution, and covers the largest upright rectangle
around the principal point in which every pixel comes from inside the photo (COLMAP's blank_pixels = 0).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scene_distill.core.errors import UserError, brief
from scene_distill.core.files import write_atomically
from scene_distill.data.images import on_black
from scene_distill.data.lens import Lens
from scene_distill.data.photo_files import UNREADABLE, PhotoFault

_BORDER_SAMPLES = 200
_JPEG_QUALITY = 95
_LARGEST_GROWTH = 2.0
"""The pinhole image is at most this many times wider or higher than the photo."""

_LEAST_KEPT = 0.33


def pinhole_of(lens: Lens) -> Lens:
    """The pinhole that replaces ``lens``.

    Where the distortion polynomial folds the corners over, as it does when it was fitted without features there, the
    rectangle is made smaller until it is free of folds. Raises `UserError` when less than a third of its sides remains.
    """
    focal, center = np.array([lens.fx, lens.fy]), np.array([lens.cx, lens.cy])
    size = np.array([lens.width, lens.height])
    low = np.maximum(_inner_bounds(lens, np.array([0.0, 0.0]), np.max), -_LARGEST_GROWTH * center)
    high = np.minimum(_inner_bounds(lens, size, np.min), _LARGEST_GROWTH * (size - center))
    border = _unit_border()
    for kept in np.linspace(1.0, _LEAST_KEPT, 40):
        if not lens.folds((low + border * (high - low)) * kept / focal).any():
            break
    else:
        raise UserError(f"the lens {lens} cannot be undistorted: it folds the photo over; calibrate it again")
    width, height = np.floor((high - low) * kept).astype(int).tolist()
    if min(width, height) < 1:
        raise UserError(f"the lens {lens} leaves no pixel after undistortion; calibrate it again")
    return Lens(width, height, lens.fx, lens.fy, *(-low * kept).tolist())


def _pinhole_for(path: Path, lens: Lens) -> Lens:
    try:
        return pinhole_of(lens)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _inner_bounds(lens: Lens, sides: np.ndarray, innermost: Callable[[np.ndarray], float]) -> np.ndarray:
    """Offsets [2] in pixels from the principal point to the innermost ray of the sides x = sides[0] and y = sides[1].

    Border pixels that no ray reaches lie beyond a fold, farther out than any other; when that is all of them the
    photo's own side is taken.
    """
    along = np.linspace(0.0, 1.0, _BORDER_SAMPLES)
    focal, center = np.array([lens.fx, lens.fy]), np.array([lens.cx, lens.cy])
    bounds = []
    for axis, other in ((0, 1), (1, 0)):
        pixels = np.empty((_BORDER_SAMPLES, 2))
        pixels[:, axis], pixels[:, other] = sides[axis], along * (lens.width, lens.height)[other]
        points = (pixels - center) / focal
        with np.errstate(all="ignore"):
            rays = lens.undistorted(points)
            reached = np.isfinite(rays).all(1) & (np.abs(lens.distorted(rays) - points).max(1) < 1e-6)
            reached[reached] = ~lens.folds(rays[reached])
        photo_side = float(sides[axis] - center[axis])
        bounds.append(innermost(rays[reached, axis]) * focal[axis] if reached.any() else photo_side)
    return np.array(bounds)


def _unit_border() -> np.ndarray:
    """Points [4 * 50, 2] along the border of the unit square."""
    along = np.linspace(0.0, 1.0, 50)
    zeros, ones = np.zeros_like(along), np.ones_like(along)
    return np.concatenate(
        [np.stack(side, 1) for side in ((zeros, along), (ones, along), (along, zeros), (along, ones))]
    )


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
            self._lens, self._pinhole, self._grid = lens, _pinhole_for(path, lens), None
        target = undistorted_path(path, lens, self._cache)
        if target.is_file():
            return target, self._pinhole
        try:
            with Image.open(path) as image:
                pixels = np.array(on_black(image), dtype=np.float32)
        except UNREADABLE as error:
            raise PhotoFault(f"the photo cannot be decoded ({brief(error)})") from error
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
