"""Reader of glTF's ``KHR_gaussian_splatting`` (`export.gltf` describes it) from ``.glb`` and ``.gltf``.

All splat primitives of the scene are read and moved into its frame: node transforms with a uniform scale are applied to
positions, rotations, sizes and harmonics. A file that says how its world was turned to y-up (ours do) is turned back,
so that nothing changes on the way through a file.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scene_distill.core import spherical_harmonics
from scene_distill.core.errors import UserError
from scene_distill.core.geometry import quats_from_rotmats, rotmats_from_quats
from scene_distill.export.assembly import empty_splats, require_count, require_drawable, row_slices
from scene_distill.export.gltf import BIN_CHUNK, EXTENSION, GLB_MAGIC, JSON_CHUNK, sh_names
from scene_distill.export.metadata import SplatMetadata, metadata_from_values
from scene_distill.representations.splats import Splats

MAX_JSON_BYTES = 1 << 24
MAX_PRIMITIVES = 4096

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_COLUMNS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_DATA_URI = "data:"


class _Damaged(Exception):
    """What is wrong with a document, for the sentence that names the file."""


def read_gltf(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats (float32, CPU), primitive after primitive, and metadata, of a .glb or .gltf file.

    Raises `UserError` when the file is missing, not glTF 2, without splats, compressed by a further extension, cut
    off, or damaged; memory stays within a small multiple of the file's size.
    """
    try:
        with ExitStack() as files:
            return _read(files.enter_context(path.open("rb")), path, files)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except _Damaged as error:
        raise UserError(f"{path} is not a splat glTF that can be read: {error}.") from error


def _read(file: BinaryIO, path: Path, files: ExitStack) -> tuple[Splats, SplatMetadata]:
    size = os.fstat(file.fileno()).st_size
    head = file.read(12)
    binary: _Buffer | None = None
    if head[:4] == struct.pack("<I", GLB_MAGIC):
        text, binary = _glb_chunks(file, head, size)
    else:
        text = head + file.read(MAX_JSON_BYTES)
        if len(text) > MAX_JSON_BYTES:
            raise _Damaged(f"its JSON has more than {MAX_JSON_BYTES} bytes")
    document = _Document(text, binary, path, files)
    parts = list(document.splat_primitives())
    if not parts:
        raise _Damaged(f"its scene has no primitive with {EXTENSION}")
    layouts = [_layout(document, primitive) for primitive, _ in parts]
    require_count(sum(layout.count for layout in layouts), path)
    splats = empty_splats(sum(layout.count for layout in layouts), max(layout.bases for layout in layouts))
    own = document.own_values()
    world_from_gltf = _turned_back(own)
    start = 0
    for layout, (_, gltf_from_local) in zip(layouts, parts, strict=True):
        _fill(splats, start, layout, world_from_gltf @ gltf_from_local)
        start += layout.count
    require_drawable(splats, path)
    color_space = parts[0][0]["extensions"][EXTENSION].get("colorSpace")
    values = {"unit": "metre", "up": (0.0, 1.0, 0.0), "generator": document.text_at("asset", "generator")}
    values = own if own else values
    return splats, metadata_from_values({**values, **({"color_space": color_space} if color_space else {})}, path)


def _glb_chunks(file: BinaryIO, head: bytes, size: int) -> tuple[bytes, _Buffer | None]:
    """JSON text, and the binary chunk if there is one."""
    if len(head) < 12 or struct.unpack("<I", head[4:8])[0] != 2:
        raise _Damaged("it is not version 2 of the binary form")
    text, binary = b"", None
    while file.tell() + 8 <= size:
        length, kind = struct.unpack("<II", file.read(8))
        start = file.tell()
        if start + length > size:
            raise _Damaged("it is cut off; copy or export it again")
        if kind == JSON_CHUNK and not text:
            if length > MAX_JSON_BYTES:
                raise _Damaged(f"its JSON has {length} bytes, more than {MAX_JSON_BYTES}")
            text = file.read(length)
        elif kind == BIN_CHUNK and binary is None:
            binary = _Buffer(file, start, length)
        file.seek(start + length)
    return text, binary


@dataclass(frozen=True)
class _Buffer:
    """``length`` bytes of an open file from ``start`` on."""

    file: BinaryIO
    start: int
    length: int


@dataclass(frozen=True)
class _Column:
    """One attribute's rows in a buffer: ``stride`` bytes apart from ``start`` on, each ``columns`` numbers."""

    buffer: _Buffer
    start: int
    stride: int
    kind: np.dtype
    columns: int
    divisor: float

    def rows(self, rows: slice) -> np.ndarray:
        """Values [n, columns] float32 of some rows."""
        count, width = rows.stop - rows.start, self.columns * self.kind.itemsize
        self.buffer.file.seek(self.buffer.start + self.start + rows.start * self.stride)
        data = self.buffer.file.read((count - 1) * self.stride + width)
        if len(data) < (count - 1) * self.stride + width:
            raise _Damaged("it is cut off; copy or export it again")
        table: np.ndarray = np.ndarray(
            (count, self.columns), self.kind, data, strides=(self.stride, self.kind.itemsize)
        )
        if self.divisor == 1:
            return table.astype(np.float32)
        return np.maximum(table.astype(np.float32) / np.float32(self.divisor), np.float32(-1))


@dataclass(frozen=True)
class _Layout:
    """Where the parts of one primitive are."""

    count: int
    means: _Column
    quats: _Column
    scales: _Column
    opacities: _Column
    sh: list[_Column]

    @property
    def bases(self) -> int:
        return len(self.sh)


class _Document:
    """Parsed JSON whose every reference is checked."""

    def __init__(self, text: bytes, binary: _Buffer | None, path: Path, files: ExitStack) -> None:
        try:
            self.values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _Damaged("its JSON is damaged") from error
        if not isinstance(self.values, dict) or self.text_at("asset", "version")[:2] != "2.":
            raise _Damaged("it does not say that it is glTF 2")
        required = self.values.get("extensionsRequired", [])
        unknown = [name for name in required if name != EXTENSION] if isinstance(required, list) else ["?"]
        if unknown:
            raise _Damaged(f"it needs {str(unknown[0])[:80]}, which is not read; export it without compression")
        self._binary, self._path, self._files = binary, path, files
        self._buffers: dict[int, _Buffer] = {}

    def text_at(self, *names: str) -> str:
        value: Any = self.values
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, str) else ""

    def own_values(self) -> dict[str, Any]:
        """What our writer said about the scene; empty for other programs' files."""
        value: Any = self.values
        for name in ("asset", "extras", "scene_distill"):
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def item(self, kind: str, index: Any) -> dict[str, Any]:
        """Entry ``index`` of the top-level list ``kind``."""
        items = self.values.get(kind)
        if (
            isinstance(items, list)
            and type(index) is int
            and 0 <= index < len(items)
            and isinstance(items[index], dict)
        ):
            return items[index]
        raise _Damaged(f"it refers to {kind} {str(index)[:20]}, which is not there")

    def splat_primitives(self) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Splat primitives of the scene in order, each with the transform [4, 4] from its frame to the scene's."""
        scene = self.item("scenes", self.values.get("scene", 0))
        waiting = [(index, np.eye(4)) for index in reversed(_list(scene, "nodes"))]
        seen: set[int] = set()
        found = 0
        while waiting:
            index, parent = waiting.pop()
            node = self.item("nodes", index)
            if index in seen:
                raise _Damaged(f"node {index} has two parents, or its nodes form a circle")
            seen.add(index)
            transform = parent @ _node_transform(node)
            waiting += [(child, transform) for child in reversed(_list(node, "children"))]
            if "mesh" not in node:
                continue
            for primitive in _list(self.item("meshes", node["mesh"]), "primitives"):
                extensions = primitive.get("extensions") if isinstance(primitive, dict) else None
                if isinstance(extensions, dict) and isinstance(extensions.get(EXTENSION), dict):
                    found += 1
                    if found > MAX_PRIMITIVES:
                        raise _Damaged(f"it has more than {MAX_PRIMITIVES} splat primitives")
                    yield primitive, transform

    def column(self, index: Any, types: tuple[str, ...]) -> tuple[int, _Column]:
        """Count and place of an accessor, which must lie within its buffer."""
        accessor = self.item("accessors", index)
        kind, component = accessor.get("type"), accessor.get("componentType")
        count, columns = accessor.get("count"), _COLUMNS.get(str(kind))
        known = type(component) is int and component in _COMPONENTS
        if kind not in types or columns is None or not (known and isinstance(component, int)) or "sparse" in accessor:
            raise _Damaged(f"accessor {index} has type {str(kind)[:20]} of {str(component)[:20]}, which is not read")
        view = self.item("bufferViews", accessor.get("bufferView"))
        buffer = self._buffer(view.get("buffer"))
        dtype = np.dtype(_COMPONENTS[component])
        width = columns * dtype.itemsize
        stride = view.get("byteStride", width)
        start, inside, length = (_whole(place.get(name, 0)) for place, name in (
            (view, "byteOffset"), (accessor, "byteOffset"), (view, "byteLength")))  # fmt: skip
        if type(count) is not int or count < 1 or type(stride) is not int or not width <= stride <= 4096:
            raise _Damaged(f"accessor {index} has an impossible count or stride")
        if inside + (count - 1) * stride + width > length or start + length > buffer.length:
            raise _Damaged(f"accessor {index} reaches beyond the end of its buffer")
        normalized = accessor.get("normalized") is True and dtype.kind in "iu"
        divisor = float(np.iinfo(dtype).max) if normalized else 1.0
        return count, _Column(buffer, start + inside, stride, dtype, columns, divisor)

    def _buffer(self, index: Any) -> _Buffer:
        entry = self.item("buffers", index)
        if index not in self._buffers:
            uri = entry.get("uri")
            if uri is None and self._binary is not None and index == 0:
                self._buffers[index] = self._binary
            elif isinstance(uri, str):
                self._buffers[index] = self._opened(uri)
            else:
                raise _Damaged(f"buffer {index} has no data")
        return self._buffers[index]

    def _opened(self, uri: str) -> _Buffer:
        """Buffer of a data URI or of a file in the same folder."""
        if uri.startswith(_DATA_URI):
            try:
                data = base64.b64decode(uri.partition(",")[2], validate=True)
            except (binascii.Error, ValueError) as error:
                raise _Damaged("a data URI is damaged") from error
            return _Buffer(io.BytesIO(data), 0, len(data))
        if Path(uri).name != uri or uri in ("", ".", "..") or "\\" in uri or "\0" in uri:
            raise _Damaged(f"it refers to {uri[:80]!r}, which is not a file beside it")
        file = self._files.enter_context(self._path.with_name(uri).open("rb"))
        return _Buffer(file, 0, os.fstat(file.fileno()).st_size)


def _list(item: dict[str, Any], name: str) -> list[Any]:
    value = item.get(name, [])
    if not isinstance(value, list):
        raise _Damaged(f"'{name}' is not a list")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise _Damaged("an offset or length is not a whole number")
    return value


def _floats(node: dict[str, Any], name: str, default: list[float]) -> np.ndarray:
    try:
        values = np.asarray(node.get(name, default), np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise _Damaged(f"a node's {name} is not made of numbers") from error
    if values.shape != (len(default),) or not np.isfinite(values).all():
        raise _Damaged(f"a node's {name} should be {len(default)} numbers")
    return values


def _node_transform(node: dict[str, Any]) -> np.ndarray:
    """parent_from_node [4, 4]."""
    if "matrix" in node:
        return _floats(node, "matrix", [0.0] * 16).reshape(4, 4).T
    transform = np.eye(4)
    x, y, z, w = _floats(node, "rotation", [0.0, 0.0, 0.0, 1.0])
    rotation = rotmats_from_quats(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
    transform[:3, :3] = rotation * _floats(node, "scale", [1.0, 1.0, 1.0])
    transform[:3, 3] = _floats(node, "translation", [0.0, 0.0, 0.0])
    return transform


def _turned_back(own: dict[str, Any]) -> np.ndarray:
    """world_from_gltf [4, 4] of a file of ours, the identity of others."""
    transform = np.eye(4)
    if "gltf_from_world" in own:
        x, y, z, w = _floats(own, "gltf_from_world", [0.0, 0.0, 0.0, 1.0])
        transform[:3, :3] = rotmats_from_quats(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy().T
    return transform


def _layout(document: _Document, primitive: dict[str, Any]) -> _Layout:
    splatting, attributes = primitive["extensions"][EXTENSION], primitive.get("attributes")
    if splatting.get("extensions"):
        raise _Damaged(f"its splats are compressed with {str(next(iter(splatting['extensions'])))[:80]}")
    if splatting.get("kernel", "ellipse") != "ellipse" or not isinstance(attributes, dict):
        raise _Damaged(f"its splats have the kernel {str(splatting.get('kernel'))[:40]}, and only 'ellipse' is read")
    degree = max((d for d in range(4) if f"{EXTENSION}:SH_DEGREE_{d}_COEF_0" in attributes), default=0)
    wanted = [("POSITION", ("VEC3",)), (f"{EXTENSION}:ROTATION", ("VEC4",)), (f"{EXTENSION}:SCALE", ("VEC3",)),
              (f"{EXTENSION}:OPACITY", ("SCALAR",)), *((name, ("VEC3",)) for name in sh_names(degree))]  # fmt: skip
    missing = [name for name, _ in wanted if name not in attributes]
    if missing:
        raise _Damaged(f"its splats lack the attribute {missing[0]}")
    found = [document.column(attributes[name], types) for name, types in wanted]
    counts = {count for count, _ in found}
    if len(counts) > 1:
        raise _Damaged("its attributes differ in length")
    means, quats, scales, opacities, *sh = (column for _, column in found)
    return _Layout(counts.pop(), means, quats, scales, opacities, sh)


def _fill(splats: Splats, start: int, layout: _Layout, world_from_local: np.ndarray) -> None:
    """Read one primitive into the splats from row ``start`` on, moved by a similarity."""
    scale, rotation, translation = _similarity(world_from_local)
    turn = None if np.allclose(rotation, np.eye(3), atol=1e-6) else torch.from_numpy(rotation)
    for rows in row_slices(layout.count):
        target = slice(start + rows.start, start + rows.stop)
        means = torch.from_numpy(layout.means.rows(rows))
        quats = torch.from_numpy(layout.quats.rows(rows))[:, [3, 0, 1, 2]]
        sh = torch.stack([torch.from_numpy(column.rows(rows)) for column in layout.sh], dim=1)
        if turn is not None:
            means = (means.double() @ turn.T).float()
            quats = _turned(quats, turn)
            sh = spherical_harmonics.rotated(sh, turn)
        if scale != 1 or translation.any():
            means = (means.double() * scale + torch.from_numpy(translation)).float()
        scales = torch.from_numpy(layout.scales.rows(rows))
        if not bool((scales >= 0).all()):
            raise _Damaged("a splat's size is negative or not a number")
        splats.means[target] = means
        splats.quats[target] = quats
        splats.log_scales[target] = scales.log() + math.log(scale)
        splats.opacity_logits[target] = torch.from_numpy(layout.opacities.rows(rows)[:, 0]).logit()
        splats.sh[target, : layout.bases] = sh
        splats.sh[target, layout.bases :] = 0


def _similarity(transform: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Scale, rotation [3, 3] and translation [3] of a transform without shear or mirror."""
    linear = transform[:3, :3]
    determinant = float(np.linalg.det(linear)) if np.isfinite(transform).all() else -1.0
    scale = determinant ** (1 / 3) if determinant > 0 else 0.0
    if scale < 1e-12 or not np.allclose(linear @ linear.T, scale**2 * np.eye(3), atol=1e-4 * scale**2):
        raise _Damaged("a node mirrors, shears or stretches its splats; apply its transform first")
    near_one = abs(scale - 1) < 1e-9
    return 1.0 if near_one else scale, linear / scale, transform[:3, 3]


def _turned(quats: Tensor, rotation: Tensor) -> Tensor:
    """Quaternions [n, 4] (w, x, y, z) after a turn."""
    a, b, c, d = quats_from_rotmats(rotation).float()
    matrix = torch.stack([
        torch.stack([a, -b, -c, -d]), torch.stack([b, a, -d, c]), torch.stack([c, d, a, -b]),
        torch.stack([d, -c, b, a]),
    ])  # fmt: skip
    return quats @ matrix.T
