"""glTF 2.0 with ``KHR_gaussian_splatting``, as one ``.glb`` or as ``.gltf`` and ``.bin``: float32, nothing is lost.

A point primitive whose attributes are the splats, each in a place of its own in the buffer: POSITION, ROTATION (x, y,
z, w), SCALE (standard deviations, linear), OPACITY (in [0, 1]), SH_DEGREE_l_COEF_n, and COLOR_0 for programs that only
know points. The splats keep the world's coordinates; glTF is y-up, so a node turns the world's up axis to +y. A scene
whose up is not known counts as a 3DGS file's, where -y is up. Frame and provenance stand in ``asset.extras``.
Layout: the ratified extension of the Khronos Group (CC BY 4.0).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.export.assembly import CHUNK_ROWS, detached, require_storable, row_slices
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.quantisation import unit_quaternions
from scene_distill.representations.splats import Splats

EXTENSION = "KHR_gaussian_splatting"
GLB_MAGIC, JSON_CHUNK, BIN_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
FLOAT, UNSIGNED_BYTE = 5126, 5121
MAX_GLB_BYTES = (1 << 32) - 1
LARGEST_LOG_SCALE = 88.0

_ARRAY_BUFFER, _POINTS = 34962, 0


@dataclass(frozen=True)
class _Attribute:
    """One attribute: semantic, glTF type, numpy type, and its rows [n, columns]."""

    name: str
    type: str
    kind: str
    columns: int
    rows: Callable[[slice], Any]

    @property
    def width(self) -> int:
        return self.columns * np.dtype(self.kind).itemsize


def write_glb(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write the splats in order as one binary file, atomically and in chunks.

    Raises `UserError` when there are none, when one is not finite, when they do not fit the format's 4 GB, or when
    there is no space.
    """
    require_storable(splats, path)
    attributes = _attributes(splats)
    size = len(splats) * sum(attribute.width for attribute in attributes)
    text = json.dumps(_document(splats, attributes, metadata, {"byteLength": size})).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + size
    if total > MAX_GLB_BYTES:
        raise UserError(f"{len(splats)} splats need {total} bytes, more than a .glb can have; write .ply or .spz.")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(struct.pack("<III", GLB_MAGIC, 2, total) + struct.pack("<II", len(text), JSON_CHUNK) + text)
            file.write(struct.pack("<II", size, BIN_CHUNK))
            for data in _data(splats, attributes):
                file.write(data)

    write_atomically(path, write)


def write_gltf(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write ``path`` as JSON, and its buffer beside it as ``<stem>.bin``, first; errors as `write_glb`."""
    require_storable(splats, path)
    attributes = _attributes(splats)
    size = len(splats) * sum(attribute.width for attribute in attributes)
    buffer = path.with_suffix(".bin")

    def write_buffer(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for data in _data(splats, attributes):
                file.write(data)

    def write_text(temporary: Path) -> None:
        document = _document(splats, attributes, metadata, {"byteLength": size, "uri": buffer.name})
        temporary.write_text(json.dumps(document, indent=1) + "\n")

    write_atomically(buffer, write_buffer)
    write_atomically(path, write_text)


def sh_names(degree: int) -> list[str]:
    """Semantics of the coefficients up to ``degree``, in our order."""
    return [f"{EXTENSION}:SH_DEGREE_{band}_COEF_{index}" for band in range(degree + 1) for index in range(2 * band + 1)]


def _attributes(splats: Splats) -> list[_Attribute]:
    def harmonic(index: int) -> Callable[[slice], Any]:
        return lambda rows: detached(splats.sh[rows, index])

    return [
        _Attribute("POSITION", "VEC3", "<f4", 3, lambda rows: detached(splats.means[rows])),
        _Attribute(f"{EXTENSION}:ROTATION", "VEC4", "<f4", 4,
                   lambda rows: unit_quaternions(detached(splats.quats[rows]))[:, [1, 2, 3, 0]]),
        _Attribute(f"{EXTENSION}:SCALE", "VEC3", "<f4", 3,
                   lambda rows: detached(splats.log_scales[rows]).clamp_max(LARGEST_LOG_SCALE).exp()),
        _Attribute(f"{EXTENSION}:OPACITY", "SCALAR", "<f4", 1,
                   lambda rows: detached(splats.opacity_logits[rows]).sigmoid()[:, None]),
        _Attribute("COLOR_0", "VEC4", "u1", 4, lambda rows: _point_colors(splats, rows)),
        *(_Attribute(name, "VEC3", "<f4", 3, harmonic(index)) for index, name in enumerate(sh_names(splats.sh_degree))),
    ]  # fmt: skip


def _point_colors(splats: Splats, rows: slice) -> torch.Tensor:
    colors = 0.5 + SH_C0 * detached(splats.sh[rows, 0])
    opacities = detached(splats.opacity_logits[rows]).sigmoid()[:, None]
    return (torch.cat([colors, opacities], dim=1) * 255).round().clamp(0, 255)


def _data(splats: Splats, attributes: list[_Attribute]) -> Iterator[bytes]:
    for attribute in attributes:
        for rows in row_slices(len(splats), CHUNK_ROWS):
            yield attribute.rows(rows).numpy().astype(attribute.kind).tobytes()


def _document(
    splats: Splats, attributes: list[_Attribute], metadata: SplatMetadata, buffer: dict[str, Any]
) -> dict[str, Any]:
    """The whole JSON of a file with this buffer."""
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    offset = 0
    for attribute in attributes:
        length = len(splats) * attribute.width
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": length, "target": _ARRAY_BUFFER})
        accessor: dict[str, Any] = {"bufferView": len(accessors), "count": len(splats), "type": attribute.type,
                    "componentType": FLOAT if attribute.kind == "<f4" else UNSIGNED_BYTE}  # fmt: skip
        if attribute.kind == "u1":
            accessor["normalized"] = True
        if attribute.name == "POSITION":
            means = detached(splats.means)
            accessor |= {"min": means.amin(0).tolist(), "max": means.amax(0).tolist()}
        accessors.append(accessor)
        offset += length
    rotation = gltf_from_world(metadata.up)
    splatting = {"kernel": "ellipse", "colorSpace": metadata.color_space, "projection": "perspective",
                 "sortingMethod": "cameraDistance"}  # fmt: skip
    primitive = {
        "mode": _POINTS,
        "attributes": {attribute.name: index for index, attribute in enumerate(attributes)},
        "extensions": {EXTENSION: splatting},
    }
    own = {**metadata.values(), "gltf_from_world": rotation}
    return {
        "asset": {"version": "2.0", "generator": metadata.generator, "extras": {"scene_distill": own}},
        "extensionsUsed": [EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "splats", "mesh": 0, "rotation": rotation}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [buffer],
    }


def gltf_from_world(up: tuple[float, float, float] | None) -> list[float]:
    """Quaternion (x, y, z, w) of the shortest turn that takes ``up`` to +y; half a turn about z when up is -y or not
    known."""
    x, y, z = up if up is not None else (0.0, -1.0, 0.0)
    level = math.hypot(x, z)
    half = math.atan2(level, y if (x, y, z) != (0.0, 0.0, 0.0) else -1.0) / 2
    axis = (-z / level, x / level) if level > 0 else (0.0, 1.0)
    return [axis[0] * math.sin(half), 0.0, axis[1] * math.sin(half), math.cos(half)]
