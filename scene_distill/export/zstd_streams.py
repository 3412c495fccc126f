"""Zstandard streams within a file, written and read piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from scene_distill.core.errors import UserError

LEVEL = 12
"""What Niantic's own writer uses."""

MAX_WINDOW_BYTES = 1 << 27
"""Memory that a stream may ask its reader for; level 12 needs 4 MB."""

BLOCK_BYTES = 1 << 16


def compress_stream(file: BinaryIO, pieces: Iterable[bytes], size: int) -> int:
    """Write the pieces, ``size`` bytes in all, as one stream at the file's place; the number of bytes written."""
    import zstandard

    start = file.tell()
    stream = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=size)
    for piece in pieces:
        file.write(stream.compress(piece))
    file.write(stream.flush())
    return file.tell() - start


def decompress_stream(file: BinaryIO, packed: int, lengths: Sequence[int], path: Path) -> Iterator[bytes]:
    """Pieces of the given lengths from the stream that takes the next ``packed`` bytes of the file, which is left
    behind them.

    Raises `UserError`, naming ``path``, when the stream is damaged or shorter; no more than a piece, a block and the
    window is in memory.
    """
    import zstandard

    end = file.tell() + packed
    section: Any = _Section(file, packed)  # all that is asked of it is read()
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    try:
        with decompressor.stream_reader(section, read_size=BLOCK_BYTES, closefd=False) as stream:
            for length in lengths:
                piece = stream.read(length)
                if len(piece) < length:
                    raise UserError(f"{path} is cut off: a stream is shorter than its header says; copy it again.")
                yield piece
    except (zstandard.ZstdError, MemoryError) as error:
        raise UserError(f"{path} is damaged: a zstd stream cannot be unpacked ({error}); copy it again.") from error
    file.seek(end, os.SEEK_SET)


class _Section:
    """The next ``left`` bytes of a file, as something to read from."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file, self._left = file, left

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(self._left if count < 0 else min(count, self._left))
        self._left -= len(data)
        return data
