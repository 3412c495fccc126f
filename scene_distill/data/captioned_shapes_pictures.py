"""Sets of captioned toy pictures in memory, rendered once and kept on disk in parts that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.data.captioned_shapes import COLOR_NAMES, SHAPE_NAMES, VIEWS, Shot, Split, draw_shot

PART = 1000
"""Pictures in a file."""

NATURAL = len(COLOR_NAMES)
"""Label of a part in its natural colour."""

EDITION = 1
"""Raised whenever objects, light or cameras change: pictures of an older edition are rendered anew."""


@dataclass(frozen=True)
class PictureSet:
    """Which pictures: ``count`` of them, ``size`` pixels square, drawn from (seed, purpose, split)."""

    purpose: str
    split: Split
    count: int
    size: int
    seed: int

    def shot(self, number: int) -> Shot:
        """The toy and camera of a picture."""
        return draw_shot(self.seed, self.purpose, number, self.split)

    def key(self) -> dict[str, object]:
        """What decides the pictures, beside their number."""
        return {"purpose": self.purpose, "split": self.split, "size": self.size, "seed": self.seed, "edition": EDITION}


@dataclass(frozen=True, eq=False)
class Pictures:
    """N pictures [N, S, S, 4] uint8 (sRGB, straight alpha) and their words as labels, [N] int64 each.

    ``colors``, ``shapes`` and ``views`` count in COLOR_NAMES, SHAPE_NAMES and VIEWS; ``part_colors`` in COLOR_NAMES,
    `NATURAL` where the caption names none.
    """

    images: np.ndarray
    colors: np.ndarray
    shapes: np.ndarray
    part_colors: np.ndarray
    views: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def render_pictures(wanted: PictureSet, start: int = 0) -> Pictures:
    """Render pictures ``start`` .. ``count - 1`` of a set."""
    shots = [wanted.shot(number) for number in range(start, wanted.count)]
    images = [shot.picture(wanted.size) for shot in shots]
    toys = [shot.toy for shot in shots]
    return Pictures(
        np.stack(images) if images else np.zeros((0, wanted.size, wanted.size, 4), np.uint8),
        np.array([COLOR_NAMES.index(toy.color) for toy in toys], np.int64),
        np.array([SHAPE_NAMES.index(toy.shape) for toy in toys], np.int64),
        np.array([COLOR_NAMES.index(t.part_color) if t.part_color else NATURAL for t in toys], np.int64),
        np.array([VIEWS.index(shot.view) for shot in shots], np.int64),
    )


def load_pictures(wanted: PictureSet, folder: Path, told: Callable[[int], None] | None = None) -> Pictures:
    """The pictures of a set, from ``folder`` where they have been rendered before, else rendered and kept there.

    ``told`` hears how many are ready. A part that is damaged, or of other pictures, raises `UserError`.
    """
    parts = []
    for start in range(0, wanted.count, PART):
        end = min(start + PART, wanted.count)
        path = folder / f"{wanted.purpose}-{wanted.size}px-{start:06d}-{end:06d}.npz"
        part = PictureSet(wanted.purpose, wanted.split, end, wanted.size, wanted.seed)
        if not path.exists():
            _write(path, part, render_pictures(part, start))
        parts.append(_read(path, part, end - start))
        if told:
            told(end)
    names = ("images", "colors", "shapes", "part_colors", "views")
    return Pictures(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _write(path: Path, part: PictureSet, pictures: Pictures) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, key=json.dumps(part.key()), **vars(pictures))

    write_atomically(path, write)


def _read(path: Path, part: PictureSet, count: int) -> Pictures:
    try:
        with np.load(path, allow_pickle=False) as stored:
            key = json.loads(str(stored["key"]))
            pictures = Pictures(*(stored[name] for name in ("images", "colors", "shapes", "part_colors", "views")))
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}); delete it and it will be rendered again") from error
    if key != part.key() or pictures.images.shape != (count, part.size, part.size, 4):
        raise UserError(f"{path} holds other pictures ({key}); delete it or choose another folder")
    return pictures
