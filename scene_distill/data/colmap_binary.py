"""The binary layout of COLMAP models, as plain tuples and arrays (little-endian, packed)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

MODELS = (
    ("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8), ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
)  # fmt: skip
"""Name and number of parameters of every camera model, at the index the file stores."""

_KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<i8")])
_POINT = np.dtype([("id", "<i8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
_TRACK = np.dtype([("image", "<i4"), ("keypoint", "<i4")])
_COUNT = struct.Struct("<Q")
_CAMERA_HEAD = struct.Struct("<iiQQ")
_IMAGE_HEAD = struct.Struct("<i4d3di")


def read_cameras(path: Path) -> list[tuple[int, str, int, int, tuple[float, ...]]]:
    """Rows (id, model, width, height, params) of a cameras.bin."""
    data = path.read_bytes()
    (count,), at = _COUNT.unpack_from(data), _COUNT.size
    rows: list[tuple[int, str, int, int, tuple[float, ...]]] = []
    for _ in range(count):
        camera_id, model, width, height = _CAMERA_HEAD.unpack_from(data, at)
        at += _CAMERA_HEAD.size
        if not 0 <= model < len(MODELS):
            rows.append((camera_id, f"number {model}", width, height, ()))
            break  # how many parameters follow is unknown
        name, params = MODELS[model]
        rows.append((camera_id, name, width, height, struct.unpack_from(f"<{params}d", data, at)))
        at += 8 * params
    return rows


def write_cameras(path: Path, cameras: Iterable[tuple[int, str, int, int, tuple[float, ...]]]) -> None:
    """Write a cameras.bin of rows (id, model, width, height, params)."""
    numbers = {name: number for number, (name, _) in enumerate(MODELS)}
    rows = list(cameras)
    parts = [_COUNT.pack(len(rows))]
    for camera_id, model, width, height, params in rows:
        parts.append(_CAMERA_HEAD.pack(camera_id, numbers[model], width, height))
        parts.append(struct.pack(f"<{len(params)}d", *params))
    path.write_bytes(b"".join(parts))


def read_images(path: Path) -> list[tuple]:
    """Rows (id, quat [4], translation [3], camera id, name, points2d [O, 2], point ids [O]) of an images.bin."""
    data = path.read_bytes()
    (count,), at = _COUNT.unpack_from(data), _COUNT.size
    rows = []
    for _ in range(count):
        image_id, *pose, camera_id = _IMAGE_HEAD.unpack_from(data, at)
        at += _IMAGE_HEAD.size
        end = data.index(b"\0", at)
        name = data[at:end].decode("utf-8")
        (keypoints,), at = _COUNT.unpack_from(data, end + 1), end + 1 + _COUNT.size
        table = np.frombuffer(data, _KEYPOINT, keypoints, at)
        at += keypoints * _KEYPOINT.itemsize
        rows.append(
            (
                image_id,
                np.array(pose[:4]),
                np.array(pose[4:]),
                camera_id,
                name,
                table["xy"].copy(),
                table["point"].copy(),
            )
        )
    return rows


def write_images(path: Path, images: Iterable[tuple]) -> None:
    """Write an images.bin of rows as `read_images` returns them."""
    rows = list(images)
    parts = [_COUNT.pack(len(rows))]
    for image_id, quat, translation, camera_id, name, points2d, point_ids in rows:
        table = np.empty(len(point_ids), _KEYPOINT)
        table["xy"], table["point"] = points2d, point_ids
        parts += [_IMAGE_HEAD.pack(image_id, *quat, *translation, camera_id), name.encode() + b"\0"]
        parts += [_COUNT.pack(len(table)), table.tobytes()]
    path.write_bytes(b"".join(parts))


def read_points(path: Path) -> tuple[np.ndarray, ...]:
    """Arrays (ids, xyz, colors, errors, offsets, track images, track keypoints) of a points3D.bin.

    The records are ragged: one pass finds where each begins, then whole columns are gathered at once.
    """
    data = path.read_bytes()
    (count,) = _COUNT.unpack_from(data)
    if count * _POINT.itemsize > len(data):
        raise ValueError(f"{count} points do not fit in {len(data)} bytes")
    starts = np.empty(count, np.int64)
    at, length_at = _COUNT.size, _POINT.fields["track"][1]  # type: ignore[index]
    for row in range(count):
        starts[row] = at
        at += _POINT.itemsize + _TRACK.itemsize * _COUNT.unpack_from(data, at + length_at)[0]
    if at > len(data):
        raise ValueError(f"the file ends {at - len(data)} bytes early")
    table = _gathered(data, starts, _POINT)
    lengths = table["track"].astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    tracks = _gathered(data, np.repeat(starts + _POINT.itemsize, lengths) + within * _TRACK.itemsize, _TRACK)
    columns = [table[name].copy() for name in ("id", "xyz", "rgb", "error")]
    return (*columns, offsets, tracks["image"].copy(), tracks["keypoint"].copy())


def write_points(path: Path, points: tuple[np.ndarray, ...]) -> None:
    """Write a points3D.bin of arrays as `read_points` returns them."""
    ids, xyz, colors, errors, offsets, images, keypoints = points
    table = np.empty(len(ids), _POINT)
    table["id"], table["xyz"], table["rgb"], table["error"] = ids, xyz, colors, errors
    table["track"] = np.diff(offsets)
    tracks = np.empty(len(images), _TRACK)
    tracks["image"], tracks["keypoint"] = images, keypoints
    heads, tails = table.tobytes(), tracks.tobytes()
    parts = [_COUNT.pack(len(ids))]
    for row in range(len(ids)):
        parts.append(heads[row * _POINT.itemsize : (row + 1) * _POINT.itemsize])
        parts.append(tails[int(offsets[row]) * _TRACK.itemsize : int(offsets[row + 1]) * _TRACK.itemsize])
    path.write_bytes(b"".join(parts))


def _gathered(data: bytes, starts: np.ndarray, record: np.dtype) -> np.ndarray:
    """The records [R] of type ``record`` that begin at byte ``starts`` [R]."""
    if len(starts) == 0:
        return np.empty(0, record)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), record.itemsize)
    return np.ascontiguousarray(windows[starts]).reshape(-1).view(record)
