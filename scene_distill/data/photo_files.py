"""Photo files on disk: which are photos, what their headers say, and whether they are whole."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
"""File name endings taken for photos (any case)."""

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, MemoryError, Image.DecompressionBombError)
"""What Pillow raises for damaged photos."""

_ORIENTATION = 0x0112
_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "1"})
_ENDINGS = {"JPEG": (b"\xff\xd9", 2), "MPO": (b"\xff\xd9", 2), "PNG": (b"IEND\xaeB`\x82", 8)}


@dataclass(frozen=True)
class PhotoHeader:
    """What a photo's header says: stored size in pixels, transparency, EXIF orientation (1 = upright)."""

    width: int
    height: int
    has_alpha: bool
    orientation: int


class PhotoFault(Exception):
    """A photo that cannot be used; the message is the reason, without the file's name."""


def list_photos(folder: Path) -> list[Path]:
    """The photo files directly inside ``folder``, by name; hidden files are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != "." and p.is_file())


def read_header(path: Path) -> PhotoHeader:
    """The header of a whole, 8-bit photo; raises `PhotoFault` when it is missing, unreadable, truncated or deeper.

    Pixels are not decoded unless the file lacks its format's end mark; then they are, to be sure that it is damaged.
    """
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise PhotoFault("the photo is missing")
    try:
        with Image.open(path) as image:
            if image.mode not in _MODES:
                raise PhotoFault(f"its pixels are of the kind {image.mode}, not 8-bit")
            has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            orientation = int(image.getexif().get(_ORIENTATION, 1))
            header = PhotoHeader(image.width, image.height, has_alpha, orientation)
            if not _ends_well(path, image.format or ""):
                image.load()
            return header
    except UNREADABLE as error:
        raise PhotoFault(f"the photo cannot be read ({_reason(error)})") from error


def _ends_well(path: Path, kind: str) -> bool:
    """True when the file ends with its format's end mark; formats without one always have to be decoded."""
    if kind not in _ENDINGS:
        return False
    mark, size = _ENDINGS[kind]
    with path.open("rb") as file:
        file.seek(-min(size, path.stat().st_size), 2)
        return file.read() == mark


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).split("\n")[0]
    return "not an image" if "cannot identify" in text else text[:80] or "a part of it claims to be larger than memory"
