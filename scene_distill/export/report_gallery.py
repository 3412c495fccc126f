"""The gallery: one page with a turntable of every object that a run of text to 3D made.

A turntable is one wide picture that holds all views beside each other; the page shows one of them at a time, turns by
itself, and follows the pointer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.export.report_page import facts, picture, section, text, write_page

LARGEST_STRIP_PX = 16_000
"""Widest picture that WebP and browsers take (16,383)."""


@dataclass(frozen=True, eq=False)
class GalleryObject:
    """An object on the page: its prompt, pictures ``turn`` [V, H, W, 3] in [0, 1] from evenly spread azimuths, the
    front first, counter-clockwise seen from above, figures by name, and a ``warning`` in words ('' for none)."""

    prompt: str
    turn: Tensor
    figures: Mapping[str, str] = field(default_factory=dict)
    warning: str = ""


def write_gallery(path: Path, title: str, objects: Sequence[GalleryObject], settings: Mapping[str, str]) -> None:
    """Write the page atomically; ``settings`` are facts that hold for all objects.

    Raises UserError without objects, and for turntables too wide for one picture.
    """
    if not objects:
        raise UserError("a gallery needs at least one object")
    cards = "".join(_card(each) for each in objects)
    count = f"{len(objects)} object{'s' * (len(objects) != 1)}"
    body = section("Objects", f'<div class="tiles gallery">{cards}</div>')
    body += section("Settings", facts({name: text(value) for name, value in settings.items()})) if settings else ""
    lead = f"{count}, each from all sides; drag to turn one, or focus it and use the arrow keys"
    write_page(path, title, lead, body, script="gallery.js")


def _card(each: GalleryObject) -> str:
    views, height, width, _ = each.turn.shape
    if views * width > LARGEST_STRIP_PX:
        raise UserError(
            f"{views} views of {width} pixels are too wide for one picture; show at most {LARGEST_STRIP_PX // width}"
        )
    strip = torch.cat(list(each.turn), dim=1)
    style = f"background-image:url({picture(strip)});background-size:{100 * views}% 100%;aspect-ratio:{width}/{height}"
    warning = f'<p class="warn">{text(each.warning)}</p>' if each.warning else ""
    below = facts({name: text(value) for name, value in each.figures.items()}) if each.figures else ""
    return (
        f'<figure><div class="turn" tabindex="0" role="img" aria-label="{text(each.prompt)}, from all sides" '
        f'data-views="{views}" style="{style}"></div>'
        f"<figcaption><h3>{text(each.prompt)}</h3>{warning}{below}</figcaption></figure>"
    )
