"""PlayCanvas' ``.compressed.ply``: 16 bytes a splat and a byte for each view-dependent coefficient.

Splats stand in the order of a space-filling curve, in chunks of 256 whose bounds are 18 floats. Within a chunk a
position has 11 + 10 + 11 bits, a log scale too, a colour and the opacity 8 bits each; a rotation is the three smaller
components of its quaternion, 10 bits each, and 2 bits that name the largest. Coefficients of degree 1 and above are
bytes of (value / 8 + 1/2) in an element ``sh``. Frame and provenance stand in header comments, as in ``.ply``.
Layout: PlayCanvas splat-transform and SuperSplat (MIT).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.export.assembly import (
    detached,
    empty_splats,
    neighbour_order,
    require_count,
    require_drawable,
    require_storable,
    row_slices,
)
from scene_distill.export.metadata import SplatMetadata, metadata_from_comments
from scene_distill.export.ply_header import PlyElement, PlyHeader, read_ply_header
from scene_distill.export.quantisation import from_smallest_three, logits_of_bytes, smallest_three, unit_quaternions
from scene_distill.representations.splats import Splats

CHUNK_SPLATS = 256
"""Splats that share one set of bounds."""

SH_RANGE = 8.0
"""Coefficients from -4 to 4 are kept; larger ones are cut."""

LOG_SCALE_LIMIT = 20.0
"""Log scales beyond this (flat or boundless splats) are cut, so that they do not cost the chunk its precision."""

_BOUNDS = [f"{end}_{name}" for group in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
           for end in ("min", "max") for name in group]  # fmt: skip
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_ROTATION_SCALE = math.sqrt(0.5)


def is_compressed(header: PlyHeader) -> bool:
    """Whether a PLY file holds packed splats."""
    return any(name == "packed_position" for element in header.elements for name, _ in element.properties)


def write_compressed_ply(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write the splats in spatial order, atomically and in chunks.

    Raises `UserError` when there are none, when one is not finite, or when there is no space.
    """
    require_storable(splats, path)
    order = neighbour_order(detached(splats.means))
    rest = 3 * (splats.sh.shape[1] - 1)
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in metadata.comments())]
    lines += [f"element chunk {-(-len(splats) // CHUNK_SPLATS)}", *(f"property float {name}" for name in _BOUNDS)]
    lines += [f"element vertex {len(splats)}", *(f"property uint {name}" for name in _PACKED)]
    if rest:
        lines += [f"element sh {len(splats)}", *(f"property uchar f_rest_{index}" for index in range(rest))]
    header = ("\n".join([*lines, "end_header"]) + "\n").encode("ascii")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header)
            for rows in row_slices(len(splats)):
                file.write(_chunk_bounds(_values(splats, order[rows])).astype("<f4").tobytes())
            for rows in row_slices(len(splats)):
                file.write(_packed_rows(splats, order[rows]).tobytes())
            for rows in row_slices(len(splats) if rest else 0):
                file.write(_packed_sh(detached(splats.sh[order[rows], 1:])).tobytes())

    write_atomically(path, write)


def _values(splats: Splats, index: Tensor) -> np.ndarray:
    """What chunks bound, [n, 9] float32: position, log scale, colour."""
    scales = detached(splats.log_scales[index]).clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)
    colors = 0.5 + SH_C0 * detached(splats.sh[index, 0])
    return torch.cat([detached(splats.means[index]), scales, colors], dim=1).numpy()


def _chunk_bounds(values: np.ndarray) -> np.ndarray:
    """Bounds [chunks, 18] in the file's order of values [n, 9]; the last chunk may be short."""
    starts = np.arange(0, len(values), CHUNK_SPLATS)
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return np.concatenate([low[:, :3], high[:, :3], low[:, 3:6], high[:, 3:6], low[:, 6:], high[:, 6:]], axis=1)


def _packed_rows(splats: Splats, index: Tensor) -> np.ndarray:
    """Vertex rows [n, 4] uint32 of whole chunks."""
    values = _values(splats, index)
    bounds = np.repeat(_chunk_bounds(values), CHUNK_SPLATS, axis=0)[: len(values)]
    low, high = bounds[:, [0, 1, 2, 6, 7, 8, 12, 13, 14]], bounds[:, [3, 4, 5, 9, 10, 11, 15, 16, 17]]
    extent = high - low
    units = np.divide(values - low, extent, out=np.zeros_like(values), where=extent > 0)
    opacity = detached(splats.opacity_logits[index]).sigmoid().numpy()
    columns = [
        _bits(units[:, :3], (11, 10, 11)),
        _packed_rotations(detached(splats.quats[index])),
        _bits(units[:, 3:6], (11, 10, 11)),
        _bits(np.concatenate([units[:, 6:], opacity[:, None]], axis=1), (8, 8, 8, 8)),
    ]
    return np.stack(columns, axis=1).astype("<u4")


def _bits(units: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """Numbers [n, k] in [0, 1] side by side in a word [n], the first one highest."""
    word = np.zeros(len(units), np.uint32)
    for column, width in enumerate(widths):
        most = (1 << width) - 1
        word = word << np.uint32(width) | np.floor(units[:, column] * most + 0.5).clip(0, most).astype(np.uint32)
    return word


def _packed_rotations(quats: Tensor) -> np.ndarray:
    largest, rest = smallest_three(unit_quaternions(quats))
    return _bits(rest * _ROTATION_SCALE + 0.5, (10, 10, 10)) | largest.astype(np.uint32) << np.uint32(30)


def _packed_sh(sh: Tensor) -> np.ndarray:
    """Bytes [n, 3 (K - 1)], channel after channel, of coefficients [n, K - 1, 3]."""
    units = sh.transpose(1, 2).flatten(1).numpy() / SH_RANGE + 0.5
    return np.trunc(units * 256).clip(0, 255).astype(np.uint8)


def read_compressed_ply(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats (float32, CPU) in file order, and metadata.

    Raises `UserError` when the file is missing, not of this layout, cut off, or holds numbers that are not finite;
    memory stays within a small multiple of the file's size.
    """
    try:
        with path.open("rb") as file:
            header = read_ply_header(file, path)
            chunk, vertex, sh = _elements(header, path)
            _check_size(file, header, path)
            bases = 1 if sh is None else len(sh.properties) // 3 + 1
            splats = empty_splats(vertex.count, bases)
            bounds = _read_bounds(file, chunk, path)
            for rows, data in _blocks(file, vertex, path):
                _fill(splats, rows, data, bounds)
            for rows, data in _blocks(file, sh, path) if sh is not None else ():
                splats.sh[rows, 1:] = _unpacked_sh(data)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    require_drawable(splats, path)
    return splats, metadata_from_comments(header.comments, path)


def _elements(header: PlyHeader, path: Path) -> tuple[PlyElement, PlyElement, PlyElement | None]:
    """chunk, vertex and, if there is view-dependent colour, sh."""
    elements = {element.name: element for element in header.elements}
    names = [element.name for element in header.elements]
    rows_are_bytes = not header.is_ascii and not any(element.has_lists for element in header.elements)
    if names not in (["chunk", "vertex"], ["chunk", "vertex", "sh"]) or not rows_are_bytes:
        raise UserError(f"{path} is not a compressed splat file: it should hold 'chunk', 'vertex' and perhaps 'sh'.")
    chunk, vertex, sh = elements["chunk"], elements["vertex"], elements.get("sh")
    require_count(vertex.count, path)
    missing = {*_PACKED} - {name for name, kind in vertex.properties if kind[1:] == "u4"}
    missing |= {*_BOUNDS[:12]} - {name for name, kind in chunk.properties if kind[1:] == "f4"}
    rest = [name for name, kind in sh.properties if kind[1:] == "u1"] if sh is not None else []
    if missing:
        raise UserError(f"{path} is a damaged compressed splat file: it lacks {', '.join(sorted(missing)[:4])}.")
    if sh is not None and (len(rest) not in (9, 24, 45) or rest != [f"f_rest_{i}" for i in range(len(rest))]):
        raise UserError(f"{path} has {len(rest)} bytes of view-dependent colour a splat; degree 1 to 3 has 9, 24, 45.")
    if chunk.count != -(-vertex.count // CHUNK_SPLATS) or (sh is not None and sh.count != vertex.count):
        raise UserError(f"{path} is damaged: its {vertex.count} splats do not fit its {chunk.count} chunks.")
    return chunk, vertex, sh


def _check_size(file: BinaryIO, header: PlyHeader, path: Path) -> None:
    needed = sum(element.count * element.dtype.itemsize for element in header.elements)
    available = os.fstat(file.fileno()).st_size - header.data_offset
    if needed > available:
        raise UserError(f"{path} is cut off: its header promises {needed} bytes and {available} follow; copy it again.")


def _blocks(file: BinaryIO, element: PlyElement, path: Path) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of the next element of the file, block by block."""
    for rows in row_slices(element.count):
        size = (rows.stop - rows.start) * element.dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise UserError(f"{path} ended while it was read; copy or export it again.")
        yield rows, np.frombuffer(data, element.dtype)


def _read_bounds(file: BinaryIO, chunk: PlyElement, path: Path) -> np.ndarray:
    """Bounds [chunks, 2, 9]; old files have no colour bounds, which are then 0 and 1."""
    bounds = np.empty((chunk.count, 18), np.float32)
    present = {name for name, _ in chunk.properties}
    for rows, data in _blocks(file, chunk, path):
        for column, name in enumerate(_BOUNDS):
            bounds[rows, column] = data[name] if name in present else float(name.startswith("max"))
    if not np.isfinite(bounds).all():
        raise UserError(f"{path} is damaged: a chunk's bounds are not finite numbers.")
    return bounds.reshape(chunk.count, 3, 2, 3).transpose(0, 2, 1, 3).reshape(chunk.count, 2, 9)


def _fill(splats: Splats, rows: slice, data: np.ndarray, bounds: np.ndarray) -> None:
    """Unpack vertex rows into the splats."""
    chunk_of = np.arange(rows.start, rows.stop) // CHUNK_SPLATS
    low, high = bounds[chunk_of, 0], bounds[chunk_of, 1]
    units = np.concatenate(
        [
            _units(data["packed_position"], (11, 10, 11)),
            _units(data["packed_scale"], (11, 10, 11)),
            _units(data["packed_color"], (8, 8, 8, 8)),
        ],
        axis=1,
    )
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused at the end
        values = torch.from_numpy(low * (1 - units[:, :9]) + high * units[:, :9])
    splats.means[rows] = values[:, :3]
    splats.log_scales[rows] = values[:, 3:6]
    splats.sh[rows, 0] = (values[:, 6:] - 0.5) / SH_C0
    splats.opacity_logits[rows] = logits_of_bytes(units[:, 9] * 255)
    rotation = data["packed_rotation"].astype(np.uint32)
    smaller = (_units(rotation, (10, 10, 10)) - 0.5) / _ROTATION_SCALE
    splats.quats[rows] = from_smallest_three(rotation >> np.uint32(30), smaller)


def _units(words: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """Inverse of `_bits`: [n, k] float32 in [0, 1]."""
    words = words.astype(np.uint32)
    columns, shift = [], 0
    for width in reversed(widths):
        most = (1 << width) - 1
        columns.append((words >> np.uint32(shift) & np.uint32(most)).astype(np.float32) / np.float32(most))
        shift += width
    return np.stack(columns[::-1], axis=1)


def _unpacked_sh(data: np.ndarray) -> Tensor:
    """Coefficients [n, K - 1, 3] of the rows of the element ``sh``."""
    table = data.view(np.uint8).reshape(len(data), 3, -1).astype(np.float32)
    units = np.where(table == 0, np.float32(0), np.where(table == 255, np.float32(1), (table + 0.5) / 256))
    return torch.from_numpy((units - np.float32(0.5)) * np.float32(SH_RANGE)).transpose(1, 2)
