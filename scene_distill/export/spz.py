"""Niantic's ``.spz``, versions 2, 3 and 4: 20 to 65 bytes a splat before compression.

Attribute after attribute: positions (24-bit fixed point), opacities, colours and log scales (bytes), rotations (three
bytes in version 2, the three smaller components in four bytes since), then the coefficients of degree 1 and above
(bytes, of which the lowest bits are rounded away). Versions 2 and 3 are one gzip stream; version 4 is a plain header
("NGSP"), a table of contents and one zstd stream an attribute.

Axes: SPZ is right-up-back. A splat file of the 3DGS kind counts as right-down-front, so that y and z change sign, as
all programs that turn .ply into .spz do it; reading turns them back. Frame and provenance: version 4 has extension
records, and we write one; in versions 2 and 3 they stand in the comment of the gzip header, where nobody stumbles over
them. Layout: the documentation of nianticlabs/spz (MIT).
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scene_distill.core import spherical_harmonics
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.export.assembly import (
    detached,
    empty_splats,
    require_count,
    require_drawable,
    require_storable,
    require_unpackable,
    row_slices,
)
from scene_distill.export.gzip_stream import GzipReader, GzipWriter
from scene_distill.export.metadata import SplatMetadata, metadata_from_values
from scene_distill.export.quantisation import from_smallest_three, logits_of_bytes, smallest_three, unit_quaternions
from scene_distill.export.zstd_streams import compress_stream, decompress_stream
from scene_distill.representations.splats import Splats

MAGIC = 0x5053474E
VERSIONS = (2, 3, 4)
DEFAULT_VERSION = 3
"""What most programs read today."""

EXTENSION_TYPE = 0x53440001
"""Our extension record ("SD", 1): `SplatMetadata.values` as JSON."""

MIN_FRACTIONAL_BITS, DEFAULT_FRACTIONAL_BITS, MAX_FRACTIONAL_BITS = 4, 12, 23
MAX_EXTENSION_BYTES = 1 << 20

SH_BITS = (6, 5)
"""Bits kept of coefficients of degree 1, and of higher ones: one more than by Niantic's default."""

COLOR_SCALE = 0.15
"""Bytes of colour hold dc * 0.15 + 1/2, so that colours outside of [0, 1] survive."""

_HEADER = struct.Struct("<IIIBBBB")
_NGSP_TAIL = struct.Struct("<I12s")
_STREAM = struct.Struct("<QQ")
_ANTIALIASED, _EXTENSIONS = 1, 2
_FLIP = np.array([1, -1, -1], np.float32)
_QUAT_FLIP = torch.tensor([1.0, 1.0, -1.0, -1.0])


@dataclass(frozen=True)
class _Layout:
    """What the header says about the bytes that follow."""

    version: int
    count: int
    degree: int
    fractional_bits: int
    antialiased: bool

    @property
    def bases(self) -> int:
        return spherical_harmonics.basis_count(self.degree)


@dataclass(frozen=True)
class _Attribute:
    """One attribute: bytes a splat, and how the rows of a scene become bytes [n, width] and come back."""

    width: int
    pack: Callable[[Splats, Any], np.ndarray]
    unpack: Callable[[Splats, slice, np.ndarray], None]


def _attributes(layout: _Layout) -> list[_Attribute]:
    """The attributes in the order of the file; without view-dependent colour the last one has no bytes."""
    rotations = (3, _pack_first_three, _unpack_first_three) if layout.version == 2 else (
        4, _pack_smallest_three, _unpack_smallest_three)  # fmt: skip
    bits = layout.fractional_bits
    kinds = [
        _Attribute(9, lambda splats, rows: _pack_positions(splats, rows, bits),
                   lambda splats, rows, data: _unpack_positions(splats, rows, data, bits)),
        _Attribute(1, _pack_opacities, _unpack_opacities),
        _Attribute(3, _pack_colors, _unpack_colors),
        _Attribute(3, _pack_scales, _unpack_scales),
        _Attribute(*rotations),
        _Attribute(3 * (layout.bases - 1), _pack_sh, _unpack_sh),
    ]  # fmt: skip
    return [kind for kind in kinds if kind.width]


def check_version(version: int) -> None:
    """Raise `UserError` for a version that is not written."""
    if version not in VERSIONS:
        raise UserError(f"There is no .spz version {version}; versions {', '.join(map(str, VERSIONS))} are written.")


def write_spz(splats: Splats, path: Path, metadata: SplatMetadata, version: int = DEFAULT_VERSION) -> None:
    """Write the splats in order, atomically and in chunks.

    Raises `UserError` when there are none, when one is not finite, when the scene lies too far from its origin for 24
    bits, or when there is no space.
    """
    require_storable(splats, path)
    check_version(version)
    layout = _Layout(version, len(splats), splats.sh_degree, _fractional_bits(splats, path), metadata.antialiased)
    text = json.dumps(metadata.values())

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            if version == 4:
                _write_streams(file, splats, layout, text)
                return
            with GzipWriter(file, comment=text) as stream:
                stream.write(_header(layout, flags=0, last=0))
                for data in (d for attribute in _attributes(layout) for d in _packed(attribute, splats)):
                    stream.write(data)

    write_atomically(path, write)


def _fractional_bits(splats: Splats, path: Path) -> int:
    """As many as the positions leave room for, up to what keeps an eighth of a small splat's size apart."""
    extent = float(detached(splats.means).abs().max())
    room = MAX_FRACTIONAL_BITS if extent == 0 else math.floor(math.log2((2**23 - 1) / extent))
    if room < MIN_FRACTIONAL_BITS:
        raise UserError(
            f"{path} cannot hold positions up to {extent:.0f} from the origin in 24 bits; move the scene to its origin "
            "or write .ply."
        )
    sample = detached(splats.log_scales)[:: max(1, len(splats) // 100_000)].mean(1)
    small = float(sample.clamp(-20, 20).sort().values[len(sample) // 20])
    wanted = max(DEFAULT_FRACTIONAL_BITS, math.ceil(3 - small / math.log(2)))
    return min(room, wanted, MAX_FRACTIONAL_BITS)


def _header(layout: _Layout, flags: int, last: int) -> bytes:
    flags |= _ANTIALIASED if layout.antialiased else 0
    return _HEADER.pack(MAGIC, layout.version, layout.count, layout.degree, layout.fractional_bits, flags, last)


def _packed(attribute: _Attribute, splats: Splats) -> Iterator[bytes]:
    for rows in row_slices(len(splats)):
        yield attribute.pack(splats, rows).astype(np.uint8, copy=False).tobytes()


def _write_streams(file: BinaryIO, splats: Splats, layout: _Layout, text: str) -> None:
    """Header, extension record, table of contents, streams; the table is filled in at the end."""
    payload = text.encode()
    record = struct.pack("<II", EXTENSION_TYPE, len(payload)) + payload
    attributes = _attributes(layout)
    start = _HEADER.size + _NGSP_TAIL.size + len(record)
    file.write(_header(layout, _EXTENSIONS, len(attributes)) + _NGSP_TAIL.pack(start, b"") + record)
    file.write(bytes(_STREAM.size * len(attributes)))
    table = []
    for attribute in attributes:
        size = layout.count * attribute.width
        table.append((compress_stream(file, _packed(attribute, splats), size), size))
    file.seek(start)
    file.write(b"".join(_STREAM.pack(*sizes) for sizes in table))


def read_spz(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats (float32, CPU) in file order, and metadata, of a file of version 2, 3 or 4.

    Raises `UserError` when the file is missing, of another version, cut off, or damaged; memory stays within a small
    multiple of the file's size, or of 16 MB.
    """
    try:
        with path.open("rb") as file:
            return read_spz_stream(file, os.fstat(file.fileno()).st_size, path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def read_spz_stream(file: BinaryIO, size: int, path: Path) -> tuple[Splats, SplatMetadata]:
    """`read_spz` of an open file of ``size`` bytes, named ``path`` in errors."""
    start = file.read(2)
    file.seek(-len(start), os.SEEK_CUR)
    if start == b"\x1f\x8b":
        return _read_gzip(file, size, path)
    head = file.read(_HEADER.size)
    if head[:4] != struct.pack("<I", MAGIC):
        raise UserError(f"{path} is not an .spz file: it begins neither with a gzip stream nor with 'NGSP'.")
    if len(head) == _HEADER.size and _HEADER.unpack(head)[1] in (1, 2, 3):
        raise UserError(f"{path} lacks the gzip layer of its version {_HEADER.unpack(head)[1]}; export it again.")
    return _read_streams(file, head, size, path)


def _layout(head: bytes, versions: tuple[int, ...], size: int, path: Path) -> tuple[_Layout, int, int]:
    """Layout, flags and last byte of a header, checked against the file's size."""
    if len(head) < _HEADER.size:
        raise UserError(f"{path} is cut off within its header; copy or export it again.")
    magic, version, count, degree, bits, flags, last = _HEADER.unpack(head)
    if magic != MAGIC:
        raise UserError(f"{path} is not an .spz file: its header does not begin with 'NGSP'.")
    if version not in versions:
        raise UserError(f"{path} is .spz version {version}, which is not read; versions 2, 3 and 4 are.")
    if degree > spherical_harmonics.MAX_DEGREE:
        raise UserError(f"{path} has view-dependent colour of degree {degree}; degree 0 to 3 is read.")
    if bits > MAX_FRACTIONAL_BITS:
        raise UserError(
            f"{path} is damaged: its header promises {bits} fractional bits, more than 24-bit numbers have."
        )
    require_count(count, path)
    layout = _Layout(version, count, degree, bits, bool(flags & _ANTIALIASED))
    require_unpackable(count * sum(kind.width for kind in _attributes(layout)), size, path)
    return layout, flags, last


def _read_gzip(file: BinaryIO, size: int, path: Path) -> tuple[Splats, SplatMetadata]:
    try:
        stream = GzipReader(file)
        layout, _, _ = _layout(stream.read(_HEADER.size), (2, 3), size, path)
        splats = empty_splats(layout.count, layout.bases)
        for attribute in _attributes(layout):
            for rows in row_slices(layout.count):
                _unpack(attribute, splats, rows, stream.read((rows.stop - rows.start) * attribute.width), path)
        stream.drain(MAX_EXTENSION_BYTES)
    except (zlib.error, EOFError) as error:
        raise UserError(
            f"{path} is cut off or damaged: its gzip stream does not end ({error}); copy it again."
        ) from error
    return _finished(splats, layout, stream.comment, path)


def _read_streams(file: BinaryIO, head: bytes, size: int, path: Path) -> tuple[Splats, SplatMetadata]:
    layout, flags, stream_count = _layout(head, (4,), size, path)
    attributes = _attributes(layout)
    tail = file.read(_NGSP_TAIL.size)
    start = _NGSP_TAIL.unpack(tail)[0] if len(tail) == _NGSP_TAIL.size else 0
    if not _HEADER.size + _NGSP_TAIL.size <= start <= min(size, MAX_EXTENSION_BYTES) or stream_count != len(attributes):
        raise UserError(f"{path} is damaged: its header does not lead to {len(attributes)} streams; export it again.")
    extensions = file.read(start - _HEADER.size - _NGSP_TAIL.size)
    table = file.read(_STREAM.size * stream_count)
    if len(table) < _STREAM.size * stream_count:
        raise UserError(f"{path} is cut off within its table of contents; copy or export it again.")
    splats = empty_splats(layout.count, layout.bases)
    for attribute, (packed, unpacked) in zip(attributes, _STREAM.iter_unpack(table), strict=True):
        if unpacked != layout.count * attribute.width or packed > size:
            raise UserError(f"{path} is damaged: a stream's size does not fit {layout.count} splats; export it again.")
        chunks = [(rows, (rows.stop - rows.start) * attribute.width) for rows in row_slices(layout.count)]
        stream = decompress_stream(file, packed, [length for _, length in chunks], path)
        for (rows, _), data in zip(chunks, stream, strict=True):
            _unpack(attribute, splats, rows, data, path)
    text = _extension_text(extensions) if flags & _EXTENSIONS else ""
    return _finished(splats, layout, text, path)


def _extension_text(data: bytes) -> str:
    """Payload of our record among the records ``[type, length, payload]``; others are passed over."""
    position = 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, position)
        if kind == EXTENSION_TYPE:
            return data[position + 8 : position + 8 + length].decode("utf-8", errors="replace")
        position += 8 + length
    return ""


def _unpack(attribute: _Attribute, splats: Splats, rows: slice, data: bytes, path: Path) -> None:
    count = rows.stop - rows.start
    if len(data) < count * attribute.width:
        raise UserError(f"{path} is cut off: its header promises {len(splats)} splats; copy or export it again.")
    attribute.unpack(splats, rows, np.frombuffer(data, np.uint8).reshape(count, attribute.width))


def _finished(splats: Splats, layout: _Layout, text: str, path: Path) -> tuple[Splats, SplatMetadata]:
    require_drawable(splats, path)
    try:
        values = json.loads(text) if text.startswith("{") else {}
    except (ValueError, RecursionError):
        values = {}  # another program's comment
    return splats, metadata_from_values({**values, "antialiased": layout.antialiased}, path)


def _pack_positions(splats: Splats, rows: Any, bits: int) -> np.ndarray:
    fixed = np.rint(detached(splats.means[rows]).numpy().astype(np.float64) * _FLIP * 2.0**bits).astype("<i4")
    return fixed.view(np.uint8).reshape(len(fixed), 3, 4)[..., :3].reshape(len(fixed), 9)


def _unpack_positions(splats: Splats, rows: slice, data: np.ndarray, bits: int) -> None:
    words = np.zeros((len(data), 3, 4), np.uint8)
    words[..., 1:] = data.reshape(len(data), 3, 3)  # in the upper bytes, so that the sign is in its place
    fixed = words.reshape(len(data), 12).view("<i4") >> 8
    splats.means[rows] = torch.from_numpy(fixed.astype(np.float32) * _FLIP * np.float32(2.0**-bits))


def _bytes(values: Tensor) -> np.ndarray:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()


def _pack_opacities(splats: Splats, rows: Any) -> np.ndarray:
    return _bytes(detached(splats.opacity_logits[rows]).sigmoid() * 255)[:, None]


def _unpack_opacities(splats: Splats, rows: slice, data: np.ndarray) -> None:
    splats.opacity_logits[rows] = logits_of_bytes(data[:, 0])


def _pack_colors(splats: Splats, rows: Any) -> np.ndarray:
    return _bytes(detached(splats.sh[rows, 0]) * (COLOR_SCALE * 255) + 127.5)


def _unpack_colors(splats: Splats, rows: slice, data: np.ndarray) -> None:
    splats.sh[rows, 0] = (torch.from_numpy(data.astype(np.float32)) / 255 - 0.5) / COLOR_SCALE


def _pack_scales(splats: Splats, rows: Any) -> np.ndarray:
    return _bytes((detached(splats.log_scales[rows]).clamp(-20, 20) + 10) * 16)


def _unpack_scales(splats: Splats, rows: slice, data: np.ndarray) -> None:
    splats.log_scales[rows] = torch.from_numpy(data.astype(np.float32)) / 16 - 10


def _flipped_xyzw(splats: Splats, rows: Any) -> Tensor:
    return (unit_quaternions(detached(splats.quats[rows])) * _QUAT_FLIP)[:, [1, 2, 3, 0]].contiguous()


def _set_quats(splats: Splats, rows: slice, xyzw: Tensor) -> None:
    splats.quats[rows] = xyzw[:, [3, 0, 1, 2]] * _QUAT_FLIP


def _pack_first_three(splats: Splats, rows: Any) -> np.ndarray:
    xyzw = _flipped_xyzw(splats, rows)
    return _bytes(xyzw[:, :3] * torch.where(xyzw[:, 3:] < 0, -127.5, 127.5) + 127.5)


def _unpack_first_three(splats: Splats, rows: slice, data: np.ndarray) -> None:
    xyz = torch.from_numpy(data.astype(np.float32)) / 127.5 - 1
    _set_quats(splats, rows, torch.cat([xyz, (1 - (xyz * xyz).sum(1, keepdim=True)).clamp_min(0).sqrt()], dim=1))


def _pack_smallest_three(splats: Splats, rows: Any) -> np.ndarray:
    largest, rest = smallest_three(_flipped_xyzw(splats, rows))
    words = largest.astype("<u4")
    for column in rest.T:  # a sign bit and nine bits of size
        size = np.floor(np.abs(column) * (511 * math.sqrt(2)) + 0.5).clip(0, 511).astype("<u4")
        words = words << np.uint32(10) | (column < 0).astype("<u4") << np.uint32(9) | size
    return words.astype("<u4").view(np.uint8).reshape(len(words), 4)


def _unpack_smallest_three(splats: Splats, rows: slice, data: np.ndarray) -> None:
    words = np.ascontiguousarray(data).view("<u4")[:, 0]
    parts = np.stack([words >> np.uint32(shift) & np.uint32(1023) for shift in (20, 10, 0)], axis=1)
    sizes = (parts & np.uint32(511)).astype(np.float32) / np.float32(511 * math.sqrt(2))
    _set_quats(
        splats, rows, from_smallest_three(words >> np.uint32(30), np.where(parts & np.uint32(512), -sizes, sizes))
    )


def _sh_signs(bases: int) -> Tensor:
    """Sign [K - 1, 1] that each harmonic takes when y and z change sign."""
    direction = torch.nn.functional.normalize(torch.tensor([[0.3, 0.5, 0.8], [0.3, -0.5, -0.8]]), dim=1)
    here, there = spherical_harmonics.basis(direction)
    return torch.sign(here * there)[1:bases, None]


def _pack_sh(splats: Splats, rows: Any) -> np.ndarray:
    sh = detached(splats.sh[rows, 1:])
    levels = (sh * _sh_signs(sh.shape[1] + 1) * 128).round().add(128).clamp(-1e6, 1e6).to(torch.int32)
    degree1, higher = (1 << (8 - bits) for bits in SH_BITS)
    bucket = torch.full((sh.shape[1], 1), higher, dtype=torch.int32)
    bucket[:3] = degree1
    levels = torch.div(levels + bucket // 2, bucket, rounding_mode="floor") * bucket
    return levels.clamp(0, 255).to(torch.uint8).flatten(1).numpy()


def _unpack_sh(splats: Splats, rows: slice, data: np.ndarray) -> None:
    sh = (torch.from_numpy(data.astype(np.float32)) - 128) / 128
    splats.sh[rows, 1:] = sh.reshape(len(data), -1, 3) * _sh_signs(splats.sh.shape[1])
