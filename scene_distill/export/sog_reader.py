"""Reader of PlayCanvas' ``.sog`` version 2 (`export.sog` describes it), from an archive or a folder."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scene_distill.core import spherical_harmonics
from scene_distill.core.errors import UserError
from scene_distill.data.photo_files import UNREADABLE
from scene_distill.export.assembly import (
    empty_splats,
    require_count,
    require_drawable,
    require_unpackable,
    row_slices,
    unpacked_limit,
)
from scene_distill.export.metadata import SplatMetadata, metadata_from_values
from scene_distill.export.quantisation import from_smallest_three, logits_of_bytes
from scene_distill.export.sog import MAX_PALETTE, META_NAME, PALETTE_COLUMNS, QUAT_MODE, linear_space
from scene_distill.representations.splats import Splats

MAX_META_BYTES = 1 << 20
SPARE_PIXELS = 1 << 20
"""Pixels that a picture may have beyond twice the splats' number."""

MAX_LOG_MEAN = 80.0
"""Largest position in log space: 5e34, near the end of float32."""

Get = Callable[[str, int], bytes]
"""(name, most bytes) -> content of a file of the set."""


def read_sog(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats (float32, CPU) in file order, and metadata, of an archive.

    Raises `UserError` when the file is missing, not such an archive, of another version, or damaged; memory stays
    within a small multiple of the file's size, or of 16 MB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_set(lambda name, most: _member(archive, name, most, path), os.stat(path).st_size, path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a whole .sog archive ({str(error)[:100]}); copy or export it again.") from error


def read_sog_folder(path: Path) -> tuple[Splats, SplatMetadata]:
    """`read_sog` of the files beside the meta.json at ``path``."""
    if path.name != META_NAME:
        raise UserError(f"{path} is not a SOG folder's meta.json; name that file.")
    try:
        size = sum(entry.stat().st_size for entry in os.scandir(path.parent) if entry.is_file())
        return _read_set(lambda name, most: _beside(path, name, most), size, path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def _member(archive: zipfile.ZipFile, name: str, most: int, path: Path) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise UserError(f"{path} lacks {name}; export the file again.") from error
    if info.file_size > most or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(
            f"{path} is damaged or hostile: {name} promises {info.file_size} bytes, {most} are read at most."
        )
    with archive.open(info) as file:
        return file.read(most)


def _beside(path: Path, name: str, most: int) -> bytes:
    if Path(name).name != name:
        raise UserError(f"{path} names {name[:80]!r}, which is not a file beside it.")
    with path.with_name(name).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise UserError(f"{path.with_name(name)} is larger than the {most} bytes that are read at most.")
    return data


def _read_set(get: Get, size: int, path: Path) -> tuple[Splats, SplatMetadata]:
    meta = _meta(get(META_NAME, MAX_META_BYTES), path)
    count = meta.whole("count", 1 << 40)
    require_count(count, path)
    bases = spherical_harmonics.basis_count(meta.whole("shN.bands", 3, least=1)) if meta.has("shN") else 1
    require_unpackable(count * (20 if bases == 1 else 24), size, path)
    pictures = _Pictures(get, meta, count, unpacked_limit(size), path)
    splats = empty_splats(count, bases)
    _fill_means(splats, pictures, meta)
    _fill_quats(splats, pictures)
    scales, codebook = pictures.of("scales")[0], meta.numbers("scales.codebook", 256)
    for rows in row_slices(count):
        splats.log_scales[rows] = torch.from_numpy(codebook[scales[rows, :3]])
    colors, codebook = pictures.of("sh0")[0], meta.numbers("sh0.codebook", 256)
    for rows in row_slices(count):
        splats.sh[rows, 0] = torch.from_numpy(codebook[colors[rows, :3]])
        splats.opacity_logits[rows] = logits_of_bytes(colors[rows, 3])
    if bases > 1:
        _fill_harmonics(splats, pictures, meta)
    require_drawable(splats, path)
    return splats, _metadata(meta, path)


class _Meta:
    """A parsed meta.json, asked by dotted names; every answer is checked."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self._path = values, path

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:
        value: Any = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def whole(self, name: str, most: int, least: int = 0) -> int:
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.damaged(name, f"a whole number from {least} to {most}")
        return value

    def numbers(self, name: str, count: int) -> np.ndarray:
        try:
            values = np.asarray(self.get(name), np.float64)
        except (TypeError, ValueError, OverflowError):
            values = np.empty(0)
        if values.shape != (count,) or not np.isfinite(values).all() or np.abs(values).max() > 1e6:
            raise self.damaged(name, f"{count} numbers")
        return values.astype(np.float32)

    def files(self, name: str, count: int) -> list[str]:
        value = self.get(f"{name}.files")
        if not isinstance(value, list) or len(value) != count or not all(isinstance(file, str) for file in value):
            raise self.damaged(f"{name}.files", f"{count} file names")
        return value

    def damaged(self, name: str, expected: str) -> UserError:
        return UserError(f"{self._path} is damaged: '{name}' in its meta.json should be {expected}.")


def _meta(data: bytes, path: Path) -> _Meta:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a damaged meta.json; export it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} has a damaged meta.json; export it again.")
    if values.get("version") != 2:
        raise UserError(f"{path} is SOG version {str(values.get('version', 1))[:20]}, which is not read; version 2 is.")
    return _Meta(values, path)


def _metadata(meta: _Meta, path: Path) -> SplatMetadata:
    own = meta.get("scene_distill")
    values = dict(own) if isinstance(own, dict) else {"generator": str(meta.get("asset.generator") or "")}
    return metadata_from_values({**values, "antialiased": meta.get("model") == "antialiased"}, path)


class _Pictures:
    """The pictures of a set, decoded one at a time, each within its limits."""

    def __init__(self, get: Get, meta: _Meta, count: int, most: int, path: Path) -> None:
        self._get, self._meta, self.count, self._most, self._path = get, meta, count, most, path

    def of(self, name: str, files: int = 1) -> list[np.ndarray]:
        """Pixels [count, 4] of each of the files of a property."""
        pictures = (self.pixels(file, self.count) for file in self._meta.files(name, files))
        return [picture.reshape(-1, 4)[: self.count] for picture in pictures]

    def pixels(self, file: str, least: int) -> np.ndarray:
        """Picture [H, W, 4] with at least so many pixels."""
        from PIL import Image

        data = self._get(file, self._most)
        try:
            with Image.open(io.BytesIO(data), formats=("WEBP", "PNG")) as picture:
                pixels = picture.width * picture.height
                if not least <= pixels <= 2 * least + SPARE_PIXELS:
                    raise UserError(
                        f"{self._path} is damaged: {file} has {pixels} pixels and {least} splats or values to show."
                    )
                return np.asarray(picture.convert("RGBA"))
        except UNREADABLE as error:
            raise UserError(f"{self._path} is damaged: {file} is not a whole picture; export it again.") from error


def _fill_means(splats: Splats, pictures: _Pictures, meta: _Meta) -> None:
    low, high = (meta.numbers(f"means.{end}", 3).astype(np.float64) for end in ("mins", "maxs"))
    if max(np.abs(low).max(), np.abs(high).max()) > MAX_LOG_MEAN:
        raise meta.damaged("means", f"within {MAX_LOG_MEAN:.0f}")
    lower, upper = pictures.of("means", 2)
    for rows in row_slices(len(splats)):
        levels = lower[rows, :3].astype(np.float64) + 256.0 * upper[rows, :3]
        splats.means[rows] = torch.from_numpy(linear_space(low + (high - low) * levels / 65535)).float()


def _fill_quats(splats: Splats, pictures: _Pictures) -> None:
    (pixels,) = pictures.of("quats")
    for rows in row_slices(len(splats)):
        largest = pixels[rows, 3].astype(np.int64) - QUAT_MODE
        if largest.min() < 0:
            raise UserError(f"{pictures._path} is damaged: a rotation in quats has no known mode; export it again.")
        components = (pixels[rows, :3].astype(np.float32) / 255 - 0.5) * math.sqrt(2)
        splats.quats[rows] = from_smallest_three(largest, components)


def _fill_harmonics(splats: Splats, pictures: _Pictures, meta: _Meta) -> None:
    coefficients = splats.sh.shape[1] - 1
    size = meta.whole("shN.count", MAX_PALETTE, least=1)
    codebook = meta.numbers("shN.codebook", 256)
    centroids, labels = meta.files("shN", 2)
    picture = pictures.pixels(centroids, size * coefficients)
    if picture.shape[1] != PALETTE_COLUMNS * coefficients:
        raise meta.damaged("shN", f"a picture {PALETTE_COLUMNS * coefficients} pixels wide")
    palette = codebook[picture.reshape(-1, coefficients, 4)[:size, :, :3]]
    pixels = pictures.pixels(labels, len(splats)).reshape(-1, 4)[: len(splats)]
    for rows in row_slices(len(splats)):
        index = pixels[rows, 0].astype(np.int64) + 256 * pixels[rows, 1].astype(np.int64)
        if index.max() >= size:
            raise meta.damaged("shN.count", f"more than {index.max()}, which a splat refers to")
        splats.sh[rows, 1:] = torch.from_numpy(palette[index])
