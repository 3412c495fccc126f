"""The standard 3DGS ``.ply``: the format every splat program opens.

One vertex a splat: x y z, nx ny nz (zeros, expected by some readers), f_dc_0..2, f_rest_* channel-major (all red
coefficients, then green, then blue), opacity (logit), scale_0..2 (log metres), rot_0..3 (w, x, y, z), as
little-endian float32. The frame and provenance stand in header comments (`SplatMetadata`). Reading accepts any
property order and type, files without normals, degree 0 to 3, big-endian and ASCII.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.export import assembly
from scene_distill.export.assembly import empty_splats, require_count, require_drawable, require_splats
from scene_distill.export.metadata import SplatMetadata, metadata_from_comments
from scene_distill.export.ply_header import PlyElement, PlyHeader, read_ply_header
from scene_distill.representations.splats import Splats

CHUNK_ROWS = assembly.CHUNK_ROWS
"""Rows in memory beside the splats themselves: 16 MB at degree 3."""

_MAX_NUMBER_CHARS = 64
"""Longest ASCII number that is read."""

_POSITION = ("x", "y", "z")
_NORMAL = ("nx", "ny", "nz")
_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
_SCALE = ("scale_0", "scale_1", "scale_2")
_ROTATION = ("rot_0", "rot_1", "rot_2", "rot_3")


def write_ply(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write the splats, in order and bit for bit, atomically, in chunks; `UserError` if there are none or no space."""
    require_splats(splats, path)
    names = [*_POSITION, *_NORMAL, *_DC, *_rest_names(splats.sh.shape[1]), "opacity", *_SCALE, *_ROTATION]
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {comment}" for comment in metadata.comments()]
    lines += [f"element vertex {len(splats)}", *(f"property float {name}" for name in names), "end_header"]
    header = ("\n".join(lines) + "\n").encode("ascii")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(header)
            for start in range(0, len(splats), CHUNK_ROWS):
                file.write(_rows(splats, slice(start, start + CHUNK_ROWS)).tobytes())

    write_atomically(path, write)


def _rest_names(bases: int) -> list[str]:
    return [f"f_rest_{index}" for index in range(3 * (bases - 1))]


def _rows(splats: Splats, rows: slice) -> np.ndarray:
    """File rows [n, P] little-endian float32."""
    means, sh = splats.means[rows], splats.sh[rows]
    columns = [
        means,
        torch.zeros_like(means),
        sh[:, 0],
        sh[:, 1:].transpose(1, 2).flatten(1),
        splats.opacity_logits[rows, None],
        splats.log_scales[rows],
        splats.quats[rows],
    ]
    return torch.cat(columns, dim=1).detach().cpu().numpy().astype("<f4")


def read_ply(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats (float32, CPU) and metadata of a 3DGS file.

    Raises `UserError` when the file is missing, not a splat file, cut off, or holds numbers that are not finite;
    memory stays within a small multiple of the file's size whatever its header claims.
    """
    try:
        with path.open("rb") as file:
            header = read_ply_header(file, path)
            vertex = _vertex_element(header, path)
            names, bases = _splat_properties(vertex, path)
            _check_size(file, header, vertex, path)
            require_count(vertex.count, path)
            rows = _ascii_rows if header.is_ascii else _binary_rows
            splats = empty_splats(vertex.count, bases)
            start = 0
            for chunk in rows(file, header, vertex, path):
                _fill(splats, slice(start, start + len(chunk)), chunk, names)
                start += len(chunk)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    require_drawable(splats, path)
    return splats, metadata_from_comments(header.comments, path)


def vertex_properties(path: Path) -> tuple[list[str], tuple[str, ...]]:
    """Names of the vertices' properties in a .ply, and its comments. Errors as `read_ply`."""
    try:
        with path.open("rb") as file:
            header = read_ply_header(file, path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    return [name for name, _ in _vertex_element(header, path).properties], header.comments


def read_vertex_columns(path: Path, names: list[str], dtype: np.dtype) -> np.ndarray:
    """Properties of the vertices by name, [N, len(names)], whatever else the file holds. Errors as `read_ply`."""
    try:
        with path.open("rb") as file:
            header = read_ply_header(file, path)
            vertex = _vertex_element(header, path)
            _check_size(file, header, vertex, path)
            found = np.empty((vertex.count, len(names)), dtype)
            start = 0
            for chunk in (_ascii_rows if header.is_ascii else _binary_rows)(file, header, vertex, path):
                with np.errstate(over="ignore", invalid="ignore"):
                    for column, name in enumerate(names):
                        found[start : start + len(chunk), column] = chunk[name]
                start += len(chunk)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    return found


def _vertex_element(header: PlyHeader, path: Path) -> PlyElement:
    names = [element.name for element in header.elements]
    if "vertex" not in names:
        raise UserError(f"{path} has no 'vertex' element; it is not a splat file.")
    position = names.index("vertex")
    if any(element.has_lists for element in header.elements[: position + 1]):
        raise UserError(f"{path} has list properties at or before its vertices; it is a mesh, not a splat file.")
    return header.elements[position]


def _splat_properties(vertex: PlyElement, path: Path) -> tuple[list[str], int]:
    """Names of the columns that are read, in the order `_splats` expects, and the number K of SH bases."""
    present = {name for name, _ in vertex.properties}
    required = [*_POSITION, *_DC, "opacity", *_SCALE, *_ROTATION]
    missing = [name for name in required if name not in present]
    if "packed_position" in present:
        raise UserError(f"{path} is a compressed splat .ply; convert it to a plain 3DGS .ply first.")
    if missing:
        kind = "a point cloud or mesh" if missing[0] == "f_dc_0" else "an incomplete splat file"
        raise UserError(f"{path} is {kind}: its vertices lack {', '.join(missing[:4])}; export it as a 3DGS .ply.")
    rest = sum(name.startswith("f_rest_") for name in present)
    bases = rest // 3 + 1
    if rest % 3 or bases not in (1, 4, 9, 16) or any(name not in present for name in _rest_names(bases)):
        raise UserError(f"{path} has {rest} f_rest properties; degree 0 to 3 has 0, 9, 24 or 45, numbered from 0.")
    return [*_POSITION, *_DC, *_rest_names(bases), "opacity", *_SCALE, *_ROTATION], bases


def _check_size(file: BinaryIO, header: PlyHeader, vertex: PlyElement, path: Path) -> None:
    """Refuse a file too short for the counts in its header, before anything of that size is allocated."""
    available = os.fstat(file.fileno()).st_size - header.data_offset
    needed = 0
    for element in header.elements[: header.elements.index(vertex) + 1]:
        row = 2 * len(element.properties) - 1 if header.is_ascii else element.dtype.itemsize
        needed += element.count * max(row, 0)
    if needed > available:
        raise UserError(
            f"{path} is cut off: its header promises {vertex.count} splats, which need at least {needed} bytes, "
            f"and {available} follow; copy or export it again."
        )


def _binary_rows(file: BinaryIO, header: PlyHeader, vertex: PlyElement, path: Path) -> Iterator[np.ndarray]:
    before = header.elements[: header.elements.index(vertex)]
    file.seek(sum(element.count * element.dtype.itemsize for element in before), os.SEEK_CUR)
    dtype = vertex.dtype
    for start in range(0, vertex.count, CHUNK_ROWS):
        count = min(CHUNK_ROWS, vertex.count - start)
        data = file.read(count * dtype.itemsize)
        if len(data) < count * dtype.itemsize:
            raise UserError(f"{path} ended while it was read; copy or export it again.")
        yield np.frombuffer(data, dtype)


def _ascii_rows(file: BinaryIO, header: PlyHeader, vertex: PlyElement, path: Path) -> Iterator[np.ndarray]:
    before = header.elements[: header.elements.index(vertex)]
    longest = _MAX_NUMBER_CHARS * max(1, *(len(element.properties) for element in (*before, vertex)))
    for _ in range(sum(element.count for element in before)):
        _ascii_line(file, longest, path)
    names = [name for name, _ in vertex.properties]
    dtype = np.dtype([(name, "<f8") for name in names])
    for start in range(0, vertex.count, CHUNK_ROWS):
        rows = np.empty(min(CHUNK_ROWS, vertex.count - start), dtype)
        for index in range(len(rows)):
            words = _ascii_line(file, longest, path).split()
            try:
                rows[index] = tuple(map(float, words))
            except ValueError as error:
                raise UserError(f"{path}, splat {start + index}: expected {len(names)} numbers.") from error
        yield rows


def _ascii_line(file: BinaryIO, longest: int, path: Path) -> bytes:
    line = file.readline(longest + 1)
    if not line or len(line) > longest:
        raise UserError(f"{path} is cut off or damaged: a line of numbers is missing or too long.")
    return line


def _fill(splats: Splats, target: slice, rows: np.ndarray, names: list[str]) -> None:
    """Copy the named columns of the file rows [n] into the ``target`` rows of the splats, as float32."""
    table = torch.empty(len(rows), len(names))
    columns = table.numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        for column, name in enumerate(names):
            columns[:, column] = rows[name]
    bases = splats.sh.shape[1]
    means, dc, rest, opacity, scales, quats = table.split([3, 3, 3 * (bases - 1), 1, 3, 4], dim=1)
    splats.means[target] = means
    splats.log_scales[target] = scales
    splats.quats[target] = quats
    splats.opacity_logits[target] = opacity.squeeze(1)
    splats.sh[target, 0] = dc
    splats.sh[target, 1:] = rest.reshape(len(rows), 3, bases - 1).transpose(1, 2)
