"""Point clouds as .ply, .pcd and .las, written in chunks.

.ply  binary little-endian: x y z as double, nx ny nz as float, red green blue as bytes; metadata in comments.
.pcd  PCL's binary form, version 0.7: x y z and normals as float around no offset, so positions far from the origin
      lose precision; rgb packed into one float. Metadata in comments.
.las  ASPRS LAS 1.2, point format 2: positions as integers of a tenth of a millimetre from the cloud's middle, colours
      with 16 bits; no normals, and metadata only as the source's name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.point_cloud import OrientedPoints

LAS_SCALE = 1e-4
"""World units per integer step of a .las file: 2^31 steps reach 214 km from the middle."""

_ROWS_AT_ONCE = 1 << 18


def write_points(points: OrientedPoints, path: Path, metadata: SplatMetadata) -> None:
    """Write the points in the format that the file's extension names, atomically.

    Raises `UserError` for another extension, for no points, or when there is no space.
    """
    writers: dict[str, tuple[np.dtype, Callable[[OrientedPoints, SplatMetadata], bytes], Rows]]
    writers = {
        ".ply": (_PLY, _ply_header, _ply_rows),
        ".pcd": (_PCD, _pcd_header, _pcd_rows),
        ".las": (_LAS, _las_header, _las_rows),
    }
    if path.suffix.lower() not in writers:
        raise UserError(f"{path} has no known point cloud format; name the file {', '.join(writers)}.")
    if len(points) == 0:
        raise UserError(f"There are no points to write to {path}.")
    dtype, header, fill = writers[path.suffix.lower()]
    head = header(points, metadata)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(head)
            for rows in _slices(len(points)):
                table = np.zeros(rows.stop - rows.start, dtype)
                fill(table, points, rows)
                file.write(table.tobytes())

    write_atomically(path, write)


Rows = Callable[[np.ndarray, OrientedPoints, slice], None]
"""Fills a table with some rows of the points."""

_PLY = np.dtype([("position", "<f8", 3), ("normal", "<f4", 3), ("color", "u1", 3)])
_PCD = np.dtype([("position", "<f4", 3), ("normal", "<f4", 3), ("bgr", "u1", 4)])
_LAS = np.dtype([("position", "<i4", 3), ("rest", "u1", 8), ("color", "<u2", 3)])


def _ply_header(points: OrientedPoints, metadata: SplatMetadata) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in metadata.comments())]
    lines += [f"element vertex {len(points)}", *(f"property double {axis}" for axis in "xyz")]
    lines += [f"property float n{axis}" for axis in "xyz"]
    lines += [f"property uchar {channel}" for channel in ("red", "green", "blue")]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def _ply_rows(table: np.ndarray, points: OrientedPoints, rows: slice) -> None:
    table["position"], table["normal"] = points.positions[rows], points.normals[rows]
    table["color"] = _bytes(points, rows)


def _pcd_header(points: OrientedPoints, metadata: SplatMetadata) -> bytes:
    lines = ["# .PCD v0.7 - Point Cloud Data file format", *(f"# {comment}" for comment in metadata.comments())]
    lines += ["VERSION 0.7", "FIELDS x y z normal_x normal_y normal_z rgb", "SIZE 4 4 4 4 4 4 4", "TYPE F F F F F F F",
              "COUNT 1 1 1 1 1 1 1", f"WIDTH {len(points)}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0",
              f"POINTS {len(points)}", "DATA binary", ""]  # fmt: skip
    return "\n".join(lines).encode("ascii")


def _pcd_rows(table: np.ndarray, points: OrientedPoints, rows: slice) -> None:
    table["position"], table["normal"] = points.positions[rows], points.normals[rows]
    table["bgr"][:, :3] = _bytes(points, rows)[:, ::-1]


def _las_header(points: OrientedPoints, metadata: SplatMetadata) -> bytes:
    low, high, offset = points.positions.min(axis=0), points.positions.max(axis=0), _las_offset(points)
    if np.abs(np.stack([low, high]) - offset).max() / LAS_SCALE >= 2**31:
        raise UserError("the points reach farther than 214 km from their middle, which .las cannot hold; write .ply")
    if len(points) >= 2**32:
        raise UserError(f"{len(points)} points are more than .las 1.2 can hold; write .ply")
    generator, source = (text.encode("ascii", "replace")[:31] for text in (metadata.generator, metadata.source))
    head = struct.pack("<4sHHIHH8sBB32s32sHHHIIBHI", b"LASF", 0, 0, 0, 0, 0, b"", 1, 2, source, generator, 1, 2026, 227,
                       227, 0, 2, _LAS.itemsize, len(points))  # fmt: skip
    head += struct.pack("<5I", len(points), 0, 0, 0, 0)
    head += struct.pack("<6d", *[LAS_SCALE] * 3, *offset)
    return head + struct.pack("<6d", *(value for pair in zip(high, low, strict=True) for value in pair))


def _las_rows(table: np.ndarray, points: OrientedPoints, rows: slice) -> None:
    table["position"] = np.rint((points.positions[rows] - _las_offset(points)) / LAS_SCALE)
    table["rest"][:, 2] = 0b00001001  # return 1 of 1
    table["color"] = np.rint(np.clip(points.colors[rows], 0.0, 1.0) * 65535)


def _las_offset(points: OrientedPoints) -> np.ndarray:
    return np.round((points.positions.min(axis=0) + points.positions.max(axis=0)) / 2)


def _bytes(points: OrientedPoints, rows: slice) -> np.ndarray:
    return np.rint(np.clip(points.colors[rows], 0.0, 1.0) * 255).astype(np.uint8)


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS_AT_ONCE, count)) for start in range(0, count, _ROWS_AT_ONCE))
