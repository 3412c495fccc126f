"""antimatter15's ``.splat``: 32 bytes a splat, what web viewers stream.

Position 3 x float32, standard deviations 3 x float32 (metres), RGBA 4 x uint8, quaternion (w, x, y, z) 4 x uint8 as q
· 128 + 128, all little-endian, without a header. Largest and most opaque first, so that a viewer shows the scene
while it loads. The view-dependent colour and the metadata have no place in this format and are not stored: use
``.ply`` to keep them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from scene_distill.core import spherical_harmonics
from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.export.metadata import SplatMetadata
from scene_distill.representations.splats import Splats

CHUNK_ROWS = 1 << 18
"""Rows in memory beside the splats themselves: 8 MB."""

_ROW = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])

_MIN_SCALE_M = 1e-12
"""Standard deviation that a zero in the file becomes, so that its logarithm is finite."""


def write_splat(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write the splats sorted by size times opacity, atomically and in chunks; ``metadata`` is not stored.

    Raises `UserError` when there are no splats or no space.
    """
    if len(splats) == 0:
        raise UserError(f"There are no splats to write to {path}.")
    # In logarithms, so that the volume of a very large splat does not overflow.
    importance = splats.log_scales.sum(1) + torch.nn.functional.logsigmoid(splats.opacity_logits)
    order = torch.argsort(importance, descending=True, stable=True)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for rows in order.split(CHUNK_ROWS):
                file.write(_rows(splats.select(rows)).tobytes())

    write_atomically(path, write)


def _rows(splats: Splats) -> np.ndarray:
    rows = np.empty(len(splats), _ROW)
    colors = 0.5 + SH_C0 * splats.sh[:, 0]
    rgba = torch.cat([colors, splats.opacity_logits.sigmoid()[:, None]], dim=1)
    quats = torch.nn.functional.normalize(splats.quats, dim=1)
    rows["position"] = splats.means.detach().cpu().numpy()
    rows["scale"] = splats.log_scales.exp().detach().cpu().numpy()
    rows["rgba"] = (rgba * 255).round().clamp(0, 255).byte().detach().cpu().numpy()
    rows["rotation"] = (quats * 128 + 128).round().clamp(0, 255).byte().detach().cpu().numpy()
    return rows


def read_splat(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats of degree 0 (float32, CPU) in file order, and metadata of which nothing is known.

    Raises `UserError` when the file is missing, empty, cut off or holds impossible numbers.
    """
    try:
        size = os.stat(path).st_size
        if size == 0 or size % _ROW.itemsize:
            raise UserError(f"{path} has {size} bytes, not a multiple of 32: it is cut off or not a .splat file.")
        with path.open("rb") as file:
            starts = range(0, size // _ROW.itemsize, CHUNK_ROWS)
            parts = [_splats(np.fromfile(file, _ROW, CHUNK_ROWS), path, start) for start in starts]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    return Splats.cat(parts), SplatMetadata(generator="")


def _splats(rows: np.ndarray, path: Path, start: int) -> Splats:
    good = np.isfinite(rows["position"]).all(1) & np.isfinite(rows["scale"]).all(1) & (rows["scale"] >= 0).all(1)
    if not good.all():
        first = start + int(np.argmin(good))
        raise UserError(f"{path} is damaged: splat {first} has a position or size that is not a usable number.")
    rgba = torch.from_numpy(rows["rgba"].astype(np.float32)) / 255
    opacities = rgba[:, 3].clamp(0.25 / 255, 254.75 / 255)  # within the rounding of 0 and 255, with a finite logit
    return Splats(
        means=torch.from_numpy(rows["position"].copy()),
        log_scales=torch.from_numpy(rows["scale"].copy()).clamp_min(_MIN_SCALE_M).log(),
        quats=(torch.from_numpy(rows["rotation"].astype(np.float32)) - 128) / 128,
        opacity_logits=opacities.logit(),
        sh=spherical_harmonics.constant_coefficients(rgba[:, :3]),
    )
