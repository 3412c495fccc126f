"""The parts of a self-contained HTML page: one file that opens offline, with pictures, style and script inside it."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

import scene_distill
from scene_distill.core.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

QUALITY = 92
"""WebP quality of pictures: about 1/255 off a pixel in the mean, at a tenth of a PNG's size."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#595959")
"""Colours that differ for colour-blind eyes too (Okabe and Ito), for runs."""


def colour(index: int) -> str:
    """The colour of the run or group with a number."""
    return COLOURS[index % len(COLOURS)]


def text(value: object) -> str:
    """Any value as HTML text."""
    return html.escape(str(value), quote=True)


def chip(index: int) -> str:
    """A small square in a run's colour."""
    return f'<span class="chip" style="background:{colour(index)}"></span>'


def picture(image: Tensor | np.ndarray, width: int | None = None) -> str:
    """A data address with the image [H, W, 3] (floats in [0, 1] or uint8) as WebP, at most ``width`` pixels wide."""
    from PIL import Image

    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array).clip(0.0, 1.0) * 255).round().astype(np.uint8)
    return picture_of(Image.fromarray(np.ascontiguousarray(array)), width)


def picture_of(image: Image.Image, width: int | None = None) -> str:
    """`picture` of a Pillow image."""
    from PIL import Image

    if width is not None and image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML, made with `text` by the caller."""
    cells = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(pairs: Mapping[str, str]) -> str:
    """A list of names and values; values are HTML."""
    return '<dl class="facts">' + "".join(f"<dt>{text(k)}</dt><dd>{v}</dd>" for k, v in pairs.items()) + "</dl>"


def section(title: str, body: str, kind: str = "") -> str:
    """A part of the page under a heading; ``body`` is HTML."""
    return f'<section class="{kind}"><h2>{text(title)}</h2>{body}</section>'


def write_page(path: Path, title: str, lead: str, body: str, *, data: Any = None, script: str = "") -> None:
    """Write the page atomically; ``lead`` and ``body`` are HTML, ``script`` names a file of report_assets/ that reads
    ``data`` (any JSON value) from the element of that name."""
    style, code = _asset("report.css"), _asset(script) if script else ""
    values = json.dumps(data).replace("<", "\\u003c")
    page = "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
            f"<title>{text(title)}</title><style>{style}</style></head><body>",
            f'<header><h1>{text(title)}</h1><p class="lead">{lead}</p></header><main>{body}</main>',
            f"<footer>Made by scene-distill {text(scene_distill.__version__)}. One file, nothing is loaded from "
            "elsewhere.</footer>",
            f'<script type="application/json" id="data">{values}</script><script>{code}</script></body></html>',
        ]
    )
    write_atomically(path, lambda temporary: _write(temporary, page))


def _write(path: Path, page: str) -> None:
    path.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
    return (files("scene_distill.export") / "report_assets" / name).read_text(encoding="utf-8")
