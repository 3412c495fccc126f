"""The small world of 3D generation: the sixteen captioned toy objects as voxels, surface samples and pictures.

Frame: the cube [-0.5, 0.5]^3 with z up, the front towards +x; voxel (i, j, k) of a grid of R^3 has its centre at
(i + 0.5) / R - 0.5, so that grids are indexed [x, y, z] (the convention of TRELLIS). Geometry comes from signed
distances of the objects' primitives. A voxel is occupied where the solid comes within half a voxel of its centre, so
that sheets thinner than a voxel stay whole.

An object is a function of (seed, purpose, number) alone; its kind is number modulo sixteen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.seeds import numpy_generator
from scene_distill.data.captioned_shapes import COLOR_NAMES, SHAPE_NAMES, Toy
from scene_distill.data.captioned_shapes_distances import nearest, normals, signed_distance
from scene_distill.data.captioned_shapes_objects import KINDS, build
from scene_distill.data.captioned_shapes_primitives import Primitive
from scene_distill.data.captioned_shapes_renderer import encode_srgb, light, orbit_camera, render

RESOLUTION = 32
"""Voxels along a side of the cube."""

SCALE = 0.46
"""The toys' unit ball in the cube: the margin keeps occupied voxels off its faces."""

DISTANCE = 3.1 * SCALE
"""Of cameras from the cube's middle: the whole object fits (`captioned_shapes_renderer.FIELD_OF_VIEW_DEG`)."""

TRUNCATION = 2.0
"""Distances are stored up to this many voxels."""

UNSAID = 0
"""The word number of what a prompt leaves open; names are numbered from 1."""

NATURAL = len(COLOR_NAMES) + 1
"""The number of a part in its natural colour."""

SLOTS = (len(SHAPE_NAMES) + 1, len(COLOR_NAMES) + 1, len(COLOR_NAMES) + 2)
"""How many numbers the kind, the colour and the part's colour have."""


@dataclass(frozen=True)
class ShapeRecipe:
    """One object of the world: its words, and the key that draws its proportions."""

    toy: Toy
    key: tuple[int | str, ...]

    @property
    def words(self) -> tuple[int, int, int]:
        """Numbers of kind, colour and part's colour, as `SLOTS` counts them."""
        toy = self.toy
        part = NATURAL if toy.part_color is None else 1 + COLOR_NAMES.index(toy.part_color)
        return 1 + SHAPE_NAMES.index(toy.shape), 1 + COLOR_NAMES.index(toy.color), part

    def primitives(self) -> list[Primitive]:
        """Its solids, in the cube."""
        parts = build(self.toy.shape, self.toy.color, self.toy.part_color, numpy_generator(*self.key))
        return [part.placed(SCALE, np.zeros(3)) for part in parts]

    def picture(self, camera: Camera) -> np.ndarray:
        """sRGB and coverage [H, W, 4] uint8 through a camera in the cube's frame."""
        return render(self.primitives(), camera)


@dataclass(frozen=True, eq=False)
class ShapeVoxels:
    """An object's voxels. occupancy [R, R, R] bool; of its shell's M voxels, in the order of their numbers: ``index``
    [M] int64 (x R^2 + y R + z), ``distance`` [M] float32 in voxels (negative inside), ``color`` [M, 3] uint8, lit sRGB.
    """

    occupancy: np.ndarray
    index: np.ndarray
    distance: np.ndarray
    color: np.ndarray


def draw_shape(seed: int, purpose: str, number: int) -> ShapeRecipe:
    """Object ``number`` of a set; colours at random, every second one with a coloured part."""
    generator = numpy_generator(seed, "shapes", purpose, number)
    part = COLOR_NAMES[generator.integers(len(COLOR_NAMES))] if generator.random() < 0.5 else None
    toy = Toy(COLOR_NAMES[generator.integers(len(COLOR_NAMES))], SHAPE_NAMES[number % len(SHAPE_NAMES)], part)
    return ShapeRecipe(toy, (seed, "shapes", purpose, number, "proportions"))


def voxel_centers(resolution: int) -> np.ndarray:
    """Centres [R^3, 3] float64 of a grid's voxels, z fastest."""
    line = (np.arange(resolution) + 0.5) / resolution - 0.5
    return np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)


def distance_grid(primitives: list[Primitive], resolution: int) -> np.ndarray:
    """Signed distances [R, R, R] float32 in voxels at the centres, at most `TRUNCATION`.

    Every solid is measured where it can matter, inside its box and the truncation around it.
    """
    centers = voxel_centers(resolution).reshape(resolution, resolution, resolution, 3)
    grid = np.full((resolution,) * 3, TRUNCATION, np.float32)
    for primitive in primitives:
        corners = (primitive.extent() + 0.5) * resolution
        low = np.clip(np.floor(corners.min(0) - TRUNCATION), 0, resolution).astype(int)
        high = np.clip(np.ceil(corners.max(0) + TRUNCATION), 0, resolution).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        points = centers[box]
        distance = signed_distance(primitive, points.reshape(-1, 3)) * resolution
        grid[box] = np.minimum(grid[box], distance.reshape(points.shape[:3]))
    return grid


def shell(occupancy: np.ndarray) -> np.ndarray:
    """Occupied voxels [R, R, R] bool of which one of the 26 neighbours is empty or outside of the grid."""
    padded = np.pad(occupancy, 1)
    full = padded
    for axis in range(3):
        full = full & np.roll(full, 1, axis) & np.roll(full, -1, axis)
    return occupancy & ~full[1:-1, 1:-1, 1:-1]


def voxelise(recipe: ShapeRecipe, resolution: int = RESOLUTION) -> ShapeVoxels:
    """An object's occupancy and what is known at the voxels of its shell."""
    primitives = recipe.primitives()
    distance = distance_grid(primitives, resolution)
    occupancy = distance < 0.5
    index = np.flatnonzero(shell(occupancy))
    points = voxel_centers(resolution)[index]
    _, which = nearest(primitives, points)
    facing = normals(primitives, points, 0.25 / resolution).astype(np.float32)
    albedo = np.stack([primitive.color for primitive in primitives])[which]
    color = np.rint(encode_srgb(albedo * light(facing)[:, None]) * 255).clip(0, 255).astype(np.uint8)
    return ShapeVoxels(occupancy, index, np.clip(distance.reshape(-1)[index], -TRUNCATION, TRUNCATION), color)


def view_camera(size: int, azimuth: float, elevation: float) -> Camera:
    """A camera on the circle from which pictures of the world are taken; angles in degrees as in `orbit_camera`."""
    return orbit_camera(size, azimuth, elevation, DISTANCE)


def prompt_words(prompt: str) -> tuple[int, int, int]:
    """Numbers of kind, colour and part's colour in 'a table', 'a red chair with green legs'.

    Raises `UserError` for a prompt without one of the kinds, with a part that its kind does not have, or with a word
    that the world does not know.
    """
    fillers = {"a", "an", "the", "with", "and", "of", "toy", "some", "its"}
    words = [word for word in re.findall(r"[a-z]+", prompt.lower()) if word not in fillers]
    kinds = [word for word in words if word in SHAPE_NAMES]
    if len(kinds) != 1:
        raise UserError(
            f"the prompt {prompt!r} should name one object of the small world: {', '.join(SHAPE_NAMES)}; "
            "other prompts need a model that knows them"
        )
    part = KINDS[kinds[0]].part
    numbers, pending = {"color": UNSAID, "part": UNSAID}, UNSAID
    for word in words:
        if word in COLOR_NAMES:
            pending = 1 + COLOR_NAMES.index(word)
        elif word in (kinds[0], part):
            numbers["color" if word == kinds[0] else "part"], pending = pending, UNSAID
        else:
            known = f"colours ({', '.join(COLOR_NAMES)}) and its {part}"
            raise UserError(f"{word!r} in the prompt {prompt!r} is not known; a {kinds[0]} has {known}")
    if pending:
        raise UserError(f"the colour at the end of the prompt {prompt!r} belongs to nothing; write 'a red {kinds[0]}'")
    return 1 + SHAPE_NAMES.index(kinds[0]), numbers["color"], numbers["part"]
