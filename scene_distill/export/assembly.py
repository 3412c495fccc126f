"""What readers and writers share: splats filled in place, the order of neighbours, limits against hostile files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.representations.splats import Splats

CHUNK_ROWS = 256 * 256
"""Splats in memory beside the scene itself, in readers and writers; whole chunks of a compressed .ply."""

UNPACKED_FLOOR = 1 << 24
UNPACKED_RATIO = 64
"""A compressed file may unpack to 16 MB or to this many times its size, whichever is more. Real splat files unpack to
2 to 10 times their size; a bomb is refused before it fills the memory."""

MAX_SPLATS = 1 << 28
"""Most splats that are read: 63 GB at degree 3."""

MIN_LOG_SCALE = -30.0
"""Log of the standard deviation in metres that stands for a flat splat where a format has no minus infinity."""


def empty_splats(count: int, bases: int) -> Splats:
    """Splats of unset numbers (float32, CPU) for a reader to fill; pages cost memory only once they are written."""
    return Splats(
        means=torch.empty(count, 3),
        log_scales=torch.empty(count, 3),
        quats=torch.empty(count, 4),
        opacity_logits=torch.empty(count),
        sh=torch.empty(count, bases, 3),
    )


def row_slices(count: int, rows: int = CHUNK_ROWS) -> Iterator[slice]:
    """Consecutive slices of at most ``rows`` that cover ``count`` rows."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def detached(tensor: Tensor) -> Tensor:
    """The tensor's numbers as float32 on the CPU, outside of any graph."""
    return tensor.detach().to("cpu", torch.float32)


def require_splats(splats: Splats, path: Path) -> None:
    """`UserError` for a scene without splats, which no format can say."""
    if len(splats) == 0:
        raise UserError(f"There are no splats to write to {path}.")


def require_storable(splats: Splats, path: Path) -> None:
    """`UserError` when there are no splats, or when one that is to be packed holds a number that is not finite.

    An infinite opacity logit (opaque or unseen) and a log scale of minus infinity (flat) can be packed.
    """
    require_splats(splats, path)
    bad = _undrawable(splats)
    if bad:
        raise UserError(f"{bad} of {len(splats)} splats hold numbers that are not finite; {path} was not written.")


def require_drawable(splats: Splats, path: Path) -> None:
    """`UserError` when what was read cannot be drawn; flat and opaque splats can (`require_storable`)."""
    bad = _undrawable(splats)
    if bad:
        raise UserError(f"{path} is damaged: {bad} of {len(splats)} splats hold numbers that are not finite.")


def _undrawable(splats: Splats) -> int:
    bad = 0
    for rows in row_slices(len(splats)):
        good = torch.isfinite(splats.means[rows]).all(1) & torch.isfinite(splats.quats[rows]).all(1)
        good &= torch.isfinite(splats.sh[rows]).flatten(1).all(1) & ~torch.isnan(splats.opacity_logits[rows])
        good &= (splats.log_scales[rows] < torch.inf).all(1)
        bad += int((~good).sum())
    return bad


def require_count(count: int, path: Path) -> None:
    """`UserError` for a header that promises no splats or more than any machine holds."""
    if not 1 <= count <= MAX_SPLATS:
        raise UserError(f"{path} is damaged: its header promises {count} splats; 1 to {MAX_SPLATS} can be read.")


def unpacked_limit(file_bytes: int) -> int:
    """Most bytes that a compressed file of this size may unpack to."""
    return max(UNPACKED_FLOOR, UNPACKED_RATIO * file_bytes)


def require_unpackable(unpacked: int, file_bytes: int, path: Path) -> None:
    """`UserError` when a file would unpack to more than `unpacked_limit` allows."""
    if unpacked > unpacked_limit(file_bytes):
        raise UserError(
            f"{path} is damaged or hostile: its {file_bytes} bytes promise {unpacked} when unpacked, more than "
            f"{UNPACKED_RATIO} times as many; get the file again from where it comes from."
        )


def neighbour_order(means: Tensor) -> Tensor:
    """Order [N] int64 along a space-filling (Morton) curve of means [N, 3], 21 bits an axis: near rows are near in
    space."""
    low, high = means.amin(0), means.amax(0)
    extent = (high - low).double().clamp_min(1e-30)
    codes = torch.empty(len(means), dtype=torch.int64)
    for rows in row_slices(len(means)):
        cells = ((means[rows] - low).double() / extent * (2**21 - 1)).long()
        codes[rows] = _spread(cells[:, 0]) | _spread(cells[:, 1]) << 1 | _spread(cells[:, 2]) << 2
    return torch.argsort(codes, stable=True)


def _spread(cells: Tensor) -> Tensor:
    """Bits of 21-bit numbers, each moved to three times its place."""
    for shift, mask in (
        (32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F), (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):  # fmt: skip
        cells = (cells | cells << shift) & mask
    return cells
