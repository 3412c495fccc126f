"""What the port answers to plain HTTP: the client's own files, photos and finished films by number, packed splats."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from scene_distill.core.errors import UserError
from scene_distill.export.html import WEB
from scene_distill.viewer.browser_splats import PackedSplats
from scene_distill.viewer.sessions import Session

CLIENT = Path(__file__).resolve().parent / "client"

SHARED = {"splats.js": WEB / "splats.js"}
"""Files of the client that exported pages use too."""

TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".mp4": "video/mp4",
}  # fmt: skip

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded from anywhere but this port."""

LARGEST_PHOTO_PX = 1600


@dataclass(frozen=True)
class Page:
    """An answer: status, content type, body and further headers."""

    status: int
    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def sentence(status: int, text: str) -> Page:
    """An answer of one sentence."""
    return Page(status, "text/plain; charset=utf-8", (text + "\n").encode())


def page(target: str, session: Session, films: list[Path], packed: PackedSplats) -> Page:
    """The answer to a request target such as '/photo/3?w=160'. Only names from fixed lists reach the disk."""
    parts = urlsplit(target)
    path = unquote(parts.path)
    if path == "/":
        return _client("index.html")
    room, _, name = path.lstrip("/").partition("/")
    if room == "client":
        return _client(name)
    if room == "photo":
        return _photo(name, parse_qs(parts.query).get("w", ["160"])[0], session)
    if room == "film":
        return _film(name, films)
    if room == "splats":
        return _splats(name, session, packed)
    return sentence(404, "there is nothing at this address")


def _client(name: str) -> Page:
    own = {file.relative_to(CLIENT).as_posix(): file for file in CLIENT.rglob("*") if file.suffix in TYPES}
    known = own | SHARED
    if name not in known:
        return sentence(404, "there is no such file in the viewer's client")
    return Page(200, TYPES[known[name].suffix], known[name].read_bytes())


def _photo(number: str, width: str, session: Session) -> Page:
    from PIL import Image

    if not (number.isascii() and number.isdigit() and width.isascii() and width.isdigit()):
        return sentence(400, "a photo has a number and a width")
    index, wide = int(number[:9]), min(int(width[:9]), LARGEST_PHOTO_PX)
    if session.images is None or index >= len(session.frames) or wide < 1:
        return sentence(404, "there is no such photo")
    frame = session.frames[index]
    try:
        picture = Image.fromarray(session.images.get(frame).numpy())
    except UserError as error:
        return sentence(404, str(error).replace(str(frame.path), frame.name))
    height = max(1, round(picture.height * wide / picture.width))
    buffer = io.BytesIO()
    picture.resize((wide, height), Image.Resampling.BILINEAR).save(buffer, format="JPEG", quality=82)
    return Page(200, "image/jpeg", buffer.getvalue(), {"Cache-Control": "private, max-age=3600"})


def _film(number: str, films: list[Path]) -> Page:
    index = int(number[:9]) if number.isascii() and number.isdigit() else len(films)
    if index >= len(films) or not films[index].exists():
        return sentence(404, "there is no such film")
    name = films[index].name
    return Page(200, TYPES[".mp4"], films[index].read_bytes(), {"Content-Disposition": f'inline; filename="{name}"'})


def _splats(version: str, session: Session, packed: PackedSplats) -> Page:
    if version != str(session.version):
        return sentence(404, "this scene has changed; ask for the new one")
    try:
        found = packed.of(session.looking.scene, session.version)
    except UserError as error:
        return sentence(404, str(error))
    return Page(200, "application/octet-stream", found)
