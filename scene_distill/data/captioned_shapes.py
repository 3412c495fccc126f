"""The toy world's captions: colour x object x coloured part x view word, and pictures that are functions of a number.

    "a red chair"    "a red chair with green legs, side view"    "an orange duck, back view"

Two of an object's ten colours are held out (`HELD_OUT`): a prior never sees these pairs of colour and object, but
sees the colour on other objects and the object in other colours, so that a picture of the pair is a composition.

A picture is drawn from (seed, split, number) alone: any of them can be made again, in any order, by any process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.seeds import numpy_generator
from scene_distill.data.captioned_shapes_objects import COLORS, KINDS, build
from scene_distill.data.captioned_shapes_renderer import orbit_camera, render

VIEWS = ("front", "side", "back", "overhead")
OVERHEAD_ABOVE_DEG = 60.0
"""Elevation from which a view is called overhead, as in threestudio."""

FRONT_WITHIN_DEG = 45.0
"""Azimuths up to this from straight ahead are called front, from straight behind back; between lies side."""

BACKGROUND = (0.86, 0.87, 0.88)
"""The plain background of pictures that ask for none, sRGB."""

PARTS = tuple(dict.fromkeys(kind.part for kind in KINDS.values()))
"""Nouns of the parts that captions may colour."""

COLOR_NAMES, SHAPE_NAMES = tuple(COLORS), tuple(KINDS)

HELD_OUT = frozenset(
    (COLOR_NAMES[(7 * i + j) % len(COLOR_NAMES)], shape) for i, shape in enumerate(SHAPE_NAMES) for j in (2, 6)
)
"""(colour, object) pairs that no prior is trained on: two colours of every object, three or four objects a colour."""

WORDS = (*COLOR_NAMES, *SHAPE_NAMES, *PARTS, *VIEWS)
"""Every telling word of a caption ('a', 'an', 'with' and 'view' tell nothing)."""

Split = Literal["known", "held_out", "all"]


@dataclass(frozen=True)
class Toy:
    """An object by the words of its caption; ``part_color`` None leaves the part in its natural colour."""

    color: str
    shape: str
    part_color: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether the pair of colour and object is kept from training."""
        return (self.color, self.shape) in HELD_OUT

    def caption(self, view: str | None = None) -> str:
        """'a red chair with green legs, side view'."""
        article = "an" if self.color[0] in "aeiou" else "a"
        part = f" with {self.part_color} {KINDS[self.shape].part}" if self.part_color else ""
        return f"{article} {self.color} {self.shape}{part}" + (f", {view} view" if view else "")


@dataclass(frozen=True)
class Shot:
    """A toy and where it is seen from; ``key`` draws its proportions.

    Angles in degrees: azimuth 0 is straight ahead of the front (+x), 90 from its left (+y), elevation above the
    horizon; distance in radii of the toy.
    """

    toy: Toy
    azimuth: float
    elevation: float
    distance: float
    key: tuple[int | str, ...]

    @property
    def view(self) -> str:
        """The word for where it is seen from."""
        return view_word(self.azimuth, self.elevation)

    @property
    def caption(self) -> str:
        """The full caption, with the view."""
        return self.toy.caption(self.view)

    def camera(self, size: int) -> Camera:
        """The camera of the picture, ``size`` pixels square."""
        return orbit_camera(size, self.azimuth, self.elevation, self.distance)

    def picture(self, size: int) -> np.ndarray:
        """sRGB and coverage [size, size, 4] uint8, straight alpha."""
        return self.picture_from(self.camera(size))

    def picture_from(self, camera: Camera) -> np.ndarray:
        """The same toy through any camera: [H, W, 4] uint8."""
        toy = self.toy
        return render(build(toy.shape, toy.color, toy.part_color, numpy_generator(*self.key)), camera)


def view_word(azimuth: float, elevation: float) -> str:
    """front, side, back or overhead for angles in degrees."""
    if elevation > OVERHEAD_ABOVE_DEG:
        return "overhead"
    ahead = abs((azimuth + 180) % 360 - 180)
    if ahead <= FRONT_WITHIN_DEG:
        return "front"
    return "back" if ahead >= 180 - FRONT_WITHIN_DEG else "side"


def pairs(split: Split) -> tuple[tuple[str, str], ...]:
    """(colour, object) pairs of a split, in a fixed order: 128 known, 32 held out."""
    every = [(color, shape) for shape in SHAPE_NAMES for color in COLOR_NAMES]
    if split == "all":
        return tuple(every)
    return tuple(pair for pair in every if (pair in HELD_OUT) == (split == "held_out"))


def draw_shot(seed: int, purpose: str, number: int, split: Split) -> Shot:
    """Picture ``number`` of a set: pairs in turn, the rest at random.

    Half the toys have a coloured part. Azimuth is uniform; elevation is uniform in -5..50 degrees, for one picture in
    ten 62..85 (overhead); distance 3.0..3.4 radii.
    """
    generator = numpy_generator(seed, "toys", purpose, split, number)
    choices = pairs(split)
    cycle, place = divmod(number, len(choices))
    order = numpy_generator(seed, "toys", purpose, split, "order", cycle).permutation(len(choices))
    color, shape = choices[order[place]]
    part_color = COLOR_NAMES[generator.integers(len(COLOR_NAMES))] if generator.random() < 0.5 else None
    overhead = generator.random() < 0.1
    elevation = generator.uniform(62, 85) if overhead else generator.uniform(-5, 50)
    azimuth, distance = generator.uniform(-180, 180), generator.uniform(3.0, 3.4)
    key = (seed, "toys", purpose, split, number, "proportions")
    return Shot(Toy(color, shape, part_color), float(azimuth), float(elevation), float(distance), key)
