"""A scene as one ``.html`` page with its own WebGL 2 viewer, which opens from a disk without any network.

The page carries an ``.spz`` of version 3 in base64, `web/splats.js`, which unpacks, sorts and draws it, and
`web/viewer.js` for the page; frame and provenance stand in it as JSON. It is read back like the ``.spz`` in it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.export.assembly import require_storable
from scene_distill.export.metadata import SplatMetadata, metadata_from_values
from scene_distill.export.spz import read_spz_stream, write_spz
from scene_distill.representations.splats import Splats

WEB = Path(__file__).with_name("web")
SCRIPTS = ("splats.js", "viewer.js")
"""One script in the page; the viewer serves the first of them too."""

SPZ_VERSION = 3
MAX_PAGE_BYTES = 1 << 20
"""Most bytes of a page before its splats."""

BLOCK_BYTES = 3 << 18

_METADATA = b'<script id="metadata" type="application/json">'
_SPLATS = b'<script id="splats" type="application/octet-stream">'
_END = b"</script>"


def write_html(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write the page atomically; memory beside the scene is a few blocks. Errors as `spz.write_spz`."""
    require_storable(splats, path)
    page = (WEB / "viewer.html").read_text(encoding="utf-8")
    title = html.escape(metadata.source or path.stem)
    values = json.dumps(metadata.values()).replace("<", "\\u003c")
    before, after = page.replace("@TITLE@", title).replace("@METADATA@", values).split("@SPLATS@")
    scripts = "\n".join((WEB / name).read_text(encoding="utf-8") for name in SCRIPTS)
    after = after.replace("@VIEWER@", scripts)

    def write(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".html-") as folder, temporary.open("wb") as file:
            packed = Path(folder) / "scene.spz"
            write_spz(splats, packed, metadata, SPZ_VERSION)
            file.write(before.encode())
            with packed.open("rb") as source:
                while block := source.read(BLOCK_BYTES):
                    file.write(base64.b64encode(block))
            file.write(after.encode())

    write_atomically(path, write)


def read_html(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats (float32, CPU) and metadata of a page that `write_html` wrote.

    Raises `UserError` when the file is missing, another page, cut off, or damaged; memory stays within a small
    multiple of the file's size.
    """
    try:
        with path.open("rb") as file:
            head = file.read(MAX_PAGE_BYTES)
            start = head.find(_SPLATS)
            if start < 0:
                raise UserError(f"{path} is not a page with splats that scene-distill wrote.")
            values = _values(head[:start], path)
            file.seek(start + len(_SPLATS))
            packed = io.BytesIO()
            for block in _decoded(file, path):
                packed.write(block)
            size = packed.tell()
            packed.seek(0)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    splats, inner = read_spz_stream(packed, size, path)
    return splats, metadata_from_values({**values, "antialiased": inner.antialiased}, path)


def _values(head: bytes, path: Path) -> dict[str, object]:
    text = head.partition(_METADATA)[2].partition(_END)[0]
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: the facts about its scene cannot be read; export it again.") from error
    return values if isinstance(values, dict) else {}


def _decoded(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Bytes of the base64 text up to the next tag."""
    left = b""
    while True:
        block = file.read(BLOCK_BYTES)
        text, tag, _ = (left + block).partition(b"<")
        whole = len(text) if tag else len(text) // 4 * 4
        try:
            yield base64.b64decode(text[:whole], validate=True)
        except ValueError as error:
            raise UserError(f"{path} is damaged: its splats are not base64 text; export it again.") from error
        if tag:
            return
        if not block:
            raise UserError(f"{path} is cut off within its splats; copy or export it again.")
        left = text[whole:]
