"""The text layout of COLMAP models, as plain tuples and arrays; numbers are written so that they read back exactly."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def read_cameras(path: Path) -> list[tuple[int, str, int, int, tuple[float, ...]]]:
    """Rows (id, model, width, height, params) of a cameras.txt."""
    rows = []
    for line in _lines(path):
        if line.strip():
            camera_id, model, width, height, *params = line.split()
            rows.append((int(camera_id), model, int(width), int(height), tuple(float(p) for p in params)))
    return rows


def write_cameras(path: Path, cameras: Iterable[tuple[int, str, int, int, tuple[float, ...]]]) -> None:
    """Write a cameras.txt of rows (id, model, width, height, params)."""
    lines = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    lines += [f"{i} {model} {w} {h} {_joined(params)}" for i, model, w, h, params in cameras]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_images(path: Path) -> list[tuple]:
    """Rows (id, quat [4], translation [3], camera id, name, points2d [O, 2], point ids [O]) of an images.txt.

    Every image takes two lines; the second, its keypoints, may be empty.
    """
    lines = _lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for at in range(0, len(lines), 2):
        image_id, *numbers, camera_id, name = lines[at].rstrip().split(maxsplit=9)
        if len(numbers) != 7:
            raise ValueError(f"'{lines[at][:60]}' is not 'id qw qx qy qz tx ty tz camera name'")
        pose = np.array(numbers, dtype=float)
        table = np.array(lines[at + 1].split() if at + 1 < len(lines) else [], dtype=float).reshape(-1, 3)
        points2d, point_ids = table[:, :2].copy(), table[:, 2].astype(np.int64)
        rows.append((int(image_id), pose[:4], pose[4:], int(camera_id), name, points2d, point_ids))
    return rows


def write_images(path: Path, images: Iterable[tuple]) -> None:
    """Write an images.txt of rows as `read_images` returns them."""
    lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID)"]
    for image_id, quat, translation, camera_id, name, points2d, point_ids in images:
        lines.append(f"{image_id} {_joined(quat)} {_joined(translation)} {camera_id} {name}")
        keypoints = zip(points2d.tolist(), point_ids.tolist(), strict=True)
        lines.append(" ".join(f"{x!r} {y!r} {point}" for (x, y), point in keypoints))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_points(path: Path) -> tuple[np.ndarray, ...]:
    """Arrays (ids, xyz, colors, errors, offsets, track images, track keypoints) of a points3D.txt."""
    lines = [tokens for line in _lines(path) if (tokens := line.split())]
    heads = np.array([tokens[:8] for tokens in lines], dtype=float).reshape(-1, 8)
    lengths = np.array([len(tokens) - 8 for tokens in lines], dtype=np.int64)
    if (lengths % 2).any():
        raise ValueError(f"point {lines[int(np.argmax(lengths % 2))][0]} has half a track entry")
    tracks = np.array([token for tokens in lines for token in tokens[8:]], dtype=np.int64).reshape(-1, 2)
    ids, colors = heads[:, 0].astype(np.int64), heads[:, 4:7].astype(np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths // 2)])
    images, keypoints = tracks[:, 0].astype(np.int32), tracks[:, 1].astype(np.int32)
    return ids, heads[:, 1:4].copy(), colors, heads[:, 7].copy(), offsets, images, keypoints


def write_points(path: Path, points: tuple[np.ndarray, ...]) -> None:
    """Write a points3D.txt of arrays as `read_points` returns them."""
    ids, xyz, colors, errors, offsets, images, keypoints = points
    lines = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"]
    for row, point_id in enumerate(ids.tolist()):
        track = slice(int(offsets[row]), int(offsets[row + 1]))
        pairs = np.stack([images[track], keypoints[track]], 1).ravel().tolist()
        rgb = " ".join(map(str, colors[row].tolist()))
        lines.append(" ".join([f"{point_id} {_joined(xyz[row])} {rgb} {float(errors[row])!r}", *map(str, pairs)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lines(path: Path) -> list[str]:
    """The lines of a file without its comments; empty lines stay, they mean something in images.txt."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if not line.startswith("#")]


def _joined(numbers: Iterable[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)
