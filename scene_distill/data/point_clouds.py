"""Coloured point clouds in PLY files: read (ascii and binary, either byte order) and written (binary)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from scene_distill.core.errors import UserError, brief

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}


def read_point_cloud(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions [P, 3] float64 and colours [P, 3] uint8 (grey where the file has none) of a PLY's vertices.

    Float colours are taken as [0, 1]. Raises `UserError` when the file is missing, damaged or has no x, y, z.
    """
    if not os.path.isfile(path):
        raise UserError(f"the point cloud {path} is missing; export it again or correct ply_file_path")
    data = path.read_bytes()
    try:
        table = _vertices(data)
        points = np.stack([table[axis].astype(np.float64) for axis in "xyz"], 1)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{path} is damaged or not a PLY point cloud ({brief(error)}); export it again") from error
    names = table.dtype.names or ()
    if not {"red", "green", "blue"} <= set(names):
        return points, np.full((len(points), 3), 128, np.uint8)
    colors = np.stack([table[channel] for channel in ("red", "green", "blue")], 1)
    if colors.dtype.kind == "f":
        colors = np.nan_to_num(colors).clip(0, 1) * 255
    return points, colors.round().astype(np.uint8)


def write_point_cloud(path: Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Write positions [P, 3] (as double) and colours [P, 3] uint8 to a binary little-endian PLY."""
    table = np.empty(len(points), np.dtype([("xyz", "<f8", 3), ("rgb", "u1", 3)]))
    table["xyz"], table["rgb"] = points, colors
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    lines += [f"property double {axis}" for axis in "xyz"]
    lines += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    path.write_bytes("\n".join([*lines, "end_header", ""]).encode() + table.tobytes())


def _vertices(data: bytes) -> np.ndarray:
    """The vertex table of a PLY whose first element is ``vertex``, as a structured array."""
    if not data.startswith(b"ply"):
        raise ValueError("it does not begin with 'ply'")
    end = data.index(b"end_header")
    body = data.index(b"\n", end) + 1
    order, count, fields, element = "", -1, [], ""
    for words in (line.split() for line in data[:end].decode("ascii", "replace").splitlines()):
        if words[:1] == ["format"]:
            order = words[1]
        elif words[:1] == ["element"]:
            element = words[1]
            if count < 0 and element != "vertex":
                raise ValueError(f"its first element is {element}, not vertex")
            count = int(words[2]) if element == "vertex" else count
        elif words[:1] == ["property"] and element == "vertex":
            fields.append((words[-1], _ORDERS[order] + _TYPES[words[1]]))
    dtype = np.dtype(fields)
    if order != "ascii":
        return np.frombuffer(data, dtype, count, body)
    rows = data[body:].decode("ascii").split("\n")[:count]
    if len(rows) < count:
        raise ValueError(f"it promises {count} vertices and holds {len(rows)}")
    return np.array([tuple(row.split()[: len(fields)]) for row in rows], dtype=dtype)
