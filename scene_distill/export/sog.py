"""PlayCanvas' ``.sog`` version 2: lossless WebP pictures, one pixel a splat, and a ``meta.json``, in a zip or a folder.

Splats stand in the order of a space-filling curve, row by row. means_l and means_u hold the lower and upper bytes of
sign(x) log(1 + |x|), 16 bits between the scene's bounds; quats the three smaller components and, as 252 + index, which
one is missing; scales and sh0 indices into codebooks of 256 log scales and 256 colour coefficients, with the opacity in
the alpha of sh0; shN_labels 16-bit indices into a palette of at most 65,536 sets of coefficients of degree 1 and above,
which shN_centroids shows, 64 sets a row, in a codebook of 256 values. ``model`` tells antialiased splats; frame and
provenance stand under ``scene_distill`` in meta.json. Layout: the SOG specification of PlayCanvas (MIT).
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene_distill.core import spherical_harmonics
from scene_distill.core.files import write_atomically
from scene_distill.export.assembly import detached, neighbour_order, require_storable, row_slices
from scene_distill.export.codebooks import nearest_entries, scalar_codebook, vector_codebook
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.quantisation import smallest_three, unit_quaternions
from scene_distill.representations.splats import Splats

META_NAME = "meta.json"
MAX_PALETTE = 1 << 16
SMALL_SCENE = 1 << 14
"""Scenes up to this many splats keep every set of coefficients."""

PALETTE_COLUMNS = 64
"""Sets of coefficients side by side in shN_centroids."""

QUAT_MODE = 252
"""Alpha of quats: this plus the index (w, x, y, z) of the component that is missing."""

LOG_SCALE_LIMIT = 20.0
_ARCHIVE_DATE = (1980, 1, 1, 0, 0, 0)

Put = Callable[[str, bytes], None]


def write_sog(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write the splats as one archive, atomically.

    Raises `UserError` when there are none, when one is not finite, or when there is no space.
    """
    require_storable(splats, path)

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            _write_files(splats, metadata, lambda name, data: archive.writestr(_member(name), data))

    write_atomically(path, write)


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, _ARCHIVE_DATE)


def write_sog_folder(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write ``path``, a meta.json, and the pictures beside it; each file atomically, meta.json last."""
    require_storable(splats, path)

    def put(name: str, data: bytes) -> None:
        target = path if name == META_NAME else path.with_name(name)
        write_atomically(target, lambda temporary: _store(temporary, data))

    _write_files(splats, metadata, put)


def _store(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _write_files(splats: Splats, metadata: SplatMetadata, put: Put) -> None:
    order = neighbour_order(detached(splats.means))
    planes = _Planes(splats, order, put)
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": metadata.generator},
        "count": len(splats),
        "scene_distill": metadata.values(),
        "means": _put_means(planes),
        "scales": _put_scales(planes),
        "quats": _put_quats(planes),
        "sh0": _put_colors(planes),
    }
    if metadata.antialiased:
        meta["model"] = "antialiased"
    if splats.sh_degree > 0:
        meta["shN"] = _put_harmonics(planes)
    put(META_NAME, json.dumps(meta).encode())


class _Planes:
    """Pictures that are filled splat after splat in the file's order."""

    def __init__(self, splats: Splats, order: Tensor, put: Put) -> None:
        self.splats, self.order, self._put = splats, order, put
        self.width = max(4, 4 * math.ceil(math.sqrt(len(order)) / 4))
        self.height = 4 * math.ceil(len(order) / self.width / 4)

    def put(self, name: str, values: Callable[[Tensor], np.ndarray]) -> str:
        """Write the picture ``name`` of what ``values(index)`` [n, channels] uint8 says of the splats at index."""
        pixels = np.zeros((self.width * self.height, 4), np.uint8)
        pixels[:, 3] = 255
        for rows in row_slices(len(self.order)):
            data = values(self.order[rows])
            pixels[rows, : data.shape[1]] = data
        return self.put_picture(name, pixels.reshape(self.height, self.width, 4))

    def put_picture(self, name: str, pixels: np.ndarray) -> str:
        from PIL import Image

        file = io.BytesIO()
        # exact: without it the colour of pixels with alpha 0 is not kept.
        Image.fromarray(pixels, "RGBA").save(file, "WEBP", lossless=True, exact=True, quality=75, method=4)
        self._put(name, file.getvalue())
        return name


def log_space(means: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|): fine near the origin, coarse far away."""
    return np.sign(means) * np.log1p(np.abs(means))


def linear_space(values: np.ndarray) -> np.ndarray:
    """Inverse of `log_space`."""
    return np.sign(values) * np.expm1(np.abs(values))


def _put_means(planes: _Planes) -> dict[str, Any]:
    means = detached(planes.splats.means)
    bounds = torch.stack([means.amin(0), means.amax(0)]).double().numpy()
    low, high = log_space(bounds)
    extent = np.where(high > low, high - low, 1.0)

    def levels(index: Tensor) -> np.ndarray:
        units = (log_space(means[index].double().numpy()) - low) / extent
        return np.rint(units * 65535).clip(0, 65535).astype(np.uint16)

    lower = planes.put("means_l.webp", lambda index: (levels(index) & 255).astype(np.uint8))
    upper = planes.put("means_u.webp", lambda index: (levels(index) >> 8).astype(np.uint8))
    return {"mins": low.tolist(), "maxs": high.tolist(), "files": [lower, upper]}


def _put_quats(planes: _Planes) -> dict[str, Any]:
    def values(index: Tensor) -> np.ndarray:
        largest, rest = smallest_three(unit_quaternions(detached(planes.splats.quats[index])))
        components = np.rint((rest * math.sqrt(0.5) + 0.5) * 255).clip(0, 255)
        return np.concatenate([components, largest[:, None] + QUAT_MODE], axis=1).astype(np.uint8)

    return {"files": [planes.put("quats.webp", values)]}


def _put_scales(planes: _Planes) -> dict[str, Any]:
    scales = planes.splats.log_scales

    def clamped(index: Any) -> np.ndarray:
        return detached(scales[index]).clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT).numpy()

    codebook = scalar_codebook(clamped(_sampled(len(scales))).ravel())
    name = planes.put("scales.webp", lambda index: nearest_entries(clamped(index), codebook))
    return {"codebook": codebook.tolist(), "files": [name]}


def _sampled(count: int) -> slice:
    """Rows that codebooks are fitted to: about a million."""
    return slice(None, None, max(1, count // 1_000_000))


def _put_colors(planes: _Planes) -> dict[str, Any]:
    splats = planes.splats
    codebook = scalar_codebook(detached(splats.sh[_sampled(len(splats)), 0]).numpy().ravel())

    def values(index: Tensor) -> np.ndarray:
        colors = nearest_entries(detached(splats.sh[index, 0]).numpy(), codebook)
        opacities = (detached(splats.opacity_logits[index]).sigmoid() * 255).round().to(torch.uint8).numpy()
        return np.concatenate([colors, opacities[:, None]], axis=1)

    return {"codebook": codebook.tolist(), "files": [planes.put("sh0.webp", values)]}


def palette_size(count: int) -> int:
    """Sets of coefficients in the palette of so many splats: all of a small scene's, half or more of a larger one's, up
    to 65,536."""
    return count if count <= SMALL_SCENE else min(MAX_PALETTE, 1 << int(math.log2(count)))


def _put_harmonics(planes: _Planes) -> dict[str, Any]:
    splats = planes.splats
    coefficients = spherical_harmonics.basis_count(splats.sh_degree) - 1
    palette, labels = vector_codebook(
        lambda index: detached(splats.sh[index, 1:]).flatten(1), len(splats), palette_size(len(splats))
    )
    codebook = scalar_codebook(palette[:: max(1, len(palette) // 32768)].numpy().ravel())
    rows = math.ceil(len(palette) / PALETTE_COLUMNS)
    pixels = np.zeros((rows * PALETTE_COLUMNS, coefficients, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[: len(palette), :, :3] = nearest_entries(palette.numpy(), codebook).reshape(len(palette), coefficients, 3)
    centroids = planes.put_picture("shN_centroids.webp", pixels.reshape(rows, PALETTE_COLUMNS * coefficients, 4))

    def values(index: Tensor) -> np.ndarray:
        own = labels[index.numpy()]
        return np.stack([own & 255, own >> 8], axis=1).astype(np.uint8)

    return {
        "count": len(palette),
        "bands": splats.sh_degree,
        "codebook": codebook.tolist(),
        "files": [centroids, planes.put("shN_labels.webp", values)],
    }
