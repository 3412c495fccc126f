"""The text header of any PLY file: elements, their property types, comments, and where the data begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scene_distill.core.errors import UserError

MAX_HEADER_BYTES = 1 << 20
"""Longest header that is read; a splat file's has about 1,500 bytes."""

MAX_PROPERTIES = 1000
"""Most properties of one element; a splat has 62."""

_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class PlyElement:
    """``count`` rows; ``properties`` are (name, numpy type); ``has_lists`` when rows have no fixed size."""

    name: str
    count: int
    properties: tuple[tuple[str, str], ...]
    has_lists: bool

    @property
    def dtype(self) -> np.dtype:
        """Packed structured dtype of one binary row."""
        return np.dtype(list(self.properties))


@dataclass(frozen=True)
class PlyHeader:
    """Parsed header; ``data_offset`` is the byte after its last line."""

    is_ascii: bool
    elements: tuple[PlyElement, ...]
    comments: tuple[str, ...]
    data_offset: int


def read_ply_header(file: BinaryIO, path: Path) -> PlyHeader:
    """Header of the open file ``path`` (named in errors), which is left at the first byte of data.

    Raises `UserError` when it is not a PLY file or its header is damaged, having read at most `MAX_HEADER_BYTES`.
    """
    lines, size = _header_lines(file, path)
    byte_order: str | None = None
    is_ascii = False
    elements: list[PlyElement] = []
    comments: list[str] = []
    for line in lines:
        keyword, *words = line.split() or [""]
        if keyword in ("comment", "obj_info"):
            comments.append(line.removeprefix(keyword).strip())
        elif keyword == "format" and words and words[0] in _BYTE_ORDERS:
            byte_order, is_ascii = _BYTE_ORDERS[words[0]], words[0] == "ascii"
        elif keyword == "element" and len(words) == 2 and words[1].isascii() and words[1].isdecimal():
            elements.append(PlyElement(words[0], int(words[1][:20]), (), has_lists=False))
        elif keyword == "property" and elements and byte_order is not None:
            elements[-1] = _with_property(elements[-1], words, byte_order, path)
        elif keyword:
            raise UserError(f"{path} has a damaged PLY header at the line '{line[:80]}'.")
    if byte_order is None:
        raise UserError(f"{path} has a PLY header without a known format line.")
    return PlyHeader(is_ascii, tuple(elements), tuple(comments), size)


def _header_lines(file: BinaryIO, path: Path) -> tuple[list[str], int]:
    """Lines between 'ply' and 'end_header', and the size of the header in bytes."""
    lines: list[str] = []
    size = 0
    while size < MAX_HEADER_BYTES:
        raw = file.readline(MAX_HEADER_BYTES - size)
        size += len(raw)
        line = raw.decode("utf-8", errors="replace").strip()
        if size == len(raw) and line != "ply":
            raise UserError(f"{path} is not a PLY file: it does not begin with 'ply'.")
        if not raw.endswith(b"\n"):
            break
        if line == "end_header":
            return lines[1:], size
        lines.append(line)
    raise UserError(f"{path} has a PLY header without an end; the file is cut off or damaged.")


def _with_property(element: PlyElement, words: list[str], byte_order: str, path: Path) -> PlyElement:
    if words[:1] == ["list"] and len(words) == 4:
        return PlyElement(element.name, element.count, element.properties, has_lists=True)
    if len(words) != 2 or words[0] not in _TYPES:
        raise UserError(f"{path} has a damaged PLY header: property '{' '.join(words)[:80]}' has no known type.")
    kind, name = words
    if len(element.properties) == MAX_PROPERTIES:
        raise UserError(f"{path} has a damaged PLY header: more than {MAX_PROPERTIES} properties in one element.")
    if any(name == known for known, _ in element.properties):
        raise UserError(f"{path} has a damaged PLY header: property '{name[:80]}' is declared twice.")
    properties = (*element.properties, (name, byte_order + _TYPES[kind]))
    return PlyElement(element.name, element.count, properties, element.has_lists)
