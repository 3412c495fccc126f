"""Gzip streams with a comment in their header, written and read piece by piece."""

from __future__ import annotations

import os
import struct
import zlib
from types import TracebackType
from typing import BinaryIO

BLOCK_BYTES = 1 << 16
MAX_COMMENT_BYTES = 1 << 16

_FLAG_HEADER_CRC, _FLAG_EXTRA, _FLAG_NAME, _FLAG_COMMENT = 2, 4, 8, 16


class GzipWriter:
    """Writes one gzip member to an open file; the comment is ASCII or Latin-1 text without a zero byte."""

    def __init__(self, file: BinaryIO, comment: str = "", level: int = 6) -> None:
        self._file = file
        self._deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._crc, self._size = 0, 0
        text = comment.encode("latin-1", errors="replace")[:MAX_COMMENT_BYTES].replace(b"\0", b"")
        header = struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, _FLAG_COMMENT if text else 0, 0, 0, 255)
        file.write(header + (text + b"\0" if text else b""))

    def write(self, data: bytes) -> None:
        """Compress more bytes."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._file.write(self._deflate.compress(data))

    def __enter__(self) -> GzipWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self._file.write(self._deflate.flush() + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))


class GzipReader:
    """Reads one gzip member of an open file in exact pieces; memory is one piece and a block, whatever the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.comment = _comment(file)
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._input = b""

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer only at the end of the member; `zlib.error` or `EOFError` when damaged."""
        pieces, missing = [], count
        while missing and not self._inflate.eof:
            self._input = self._inflate.unconsumed_tail or self._file.read(BLOCK_BYTES)
            if not self._input:
                raise EOFError("cut off")
            piece = self._inflate.decompress(self._input, missing)
            missing -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def drain(self, most: int) -> None:
        """Read to the end of the member, so that its checksum is compared; `EOFError` when more than ``most`` bytes
        follow."""
        if len(self.read(most)) == most and not self._inflate.eof:
            raise EOFError(f"more than {most} bytes follow its last splat")


def _comment(file: BinaryIO) -> str:
    """Comment in the header of the member that begins here, empty when there is none; the file stays where it is."""
    place = file.tell()
    start = file.read(10)
    text = b""
    if len(start) == 10 and start[3] & _FLAG_COMMENT:
        if start[3] & _FLAG_EXTRA:
            file.seek(int.from_bytes(file.read(2), "little"), os.SEEK_CUR)
        if start[3] & _FLAG_NAME:
            _until_zero(file)
        text = _until_zero(file)
    file.seek(place)
    return text.decode("latin-1")


def _until_zero(file: BinaryIO) -> bytes:
    place = file.tell()
    text, zero, _ = file.read(MAX_COMMENT_BYTES + 1).partition(b"\0")
    file.seek(place + len(text) + len(zero))
    return text if zero else b""
