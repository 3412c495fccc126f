"""Sixteen toy objects that a person knows from every side, glued from coloured primitives.

Frame: z up, the front faces +x, the left side +y. A builder draws its proportions from a generator, so that no two
chairs are alike, and paints with two colours: the body's, and that of the one part which captions may name (legs,
wheels, beak, ...). `build` moves and scales the result into the unit ball around the origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes_primitives import (
    BALL,
    BOW_PLANES,
    ROOF_PLANES,
    SAIL_PLANES,
    Primitive,
    arc,
    ball,
    block,
    tube,
)

Color = np.ndarray
Draw = Callable[[float, float], float]
"""Draws a proportion uniformly between two bounds."""

Builder = Callable[[Color, Color, Draw], list[Primitive]]


def linear(red: int, green: int, blue: int) -> Color:
    """Linear-light reflectance [3] of an sRGB colour given as bytes (IEC 61966-2-1)."""
    encoded = np.array([red, green, blue]) / 255.0
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


COLORS = {
    "red": linear(216, 36, 36), "orange": linear(246, 132, 24), "yellow": linear(250, 216, 40),
    "green": linear(46, 160, 62), "blue": linear(36, 86, 212), "purple": linear(134, 52, 178),
    "pink": linear(250, 142, 182), "brown": linear(124, 76, 40), "white": linear(244, 244, 242),
    "black": linear(44, 44, 48),
}  # fmt: skip
"""The colours that captions name, as linear reflectance."""

DARK, GLASS, WOOD = linear(38, 38, 42), linear(92, 128, 156), linear(166, 116, 70)
CREAM, CARROT, LAMP, TAIL = linear(240, 230, 206), linear(244, 120, 24), linear(255, 240, 170), linear(190, 20, 24)


def _chair(body: Color, legs: Color, u: Draw) -> list[Primitive]:
    w, d, h, back, t = u(0.40, 0.50), u(0.40, 0.48), u(0.44, 0.6), u(0.55, 0.75), u(0.04, 0.055)
    corners = [(x, y) for x in (-d + 0.07, d - 0.07) for y in (-w + 0.07, w - 0.07)]
    parts = [tube((x, y, 0), (x, y, h), t, legs) for x, y in corners]
    parts += [block((0, 0, h + 0.06), (d, w, 0.06), body)]
    return [*parts, block((-d + 0.05, 0, h + 0.12 + back / 2), (0.05, w, back / 2), body, pitch=u(-5, 0))]


def _table(body: Color, legs: Color, u: Draw) -> list[Primitive]:
    w, d, h, t = u(0.7, 0.85), u(0.42, 0.55), u(0.55, 0.68), u(0.05, 0.07)
    corners = [(x, y) for x in (-d + 0.1, d - 0.1) for y in (-w + 0.1, w - 0.1)]
    parts = [tube((x, y, 0), (x, y, h), t, legs) for x, y in corners]
    return [*parts, block((0, 0, h + 0.05), (d, w, 0.06), body)]


def _mug(body: Color, handle: Color, u: Draw) -> list[Primitive]:
    r, h = u(0.36, 0.42), u(0.78, 0.95)
    middle, reach = 0.5 * h, u(0.24, 0.30)
    turns = np.radians(np.linspace(-90, 90, 7))
    grip = [(0.0, r - 0.03 + reach * np.cos(a), middle + 0.27 * np.sin(a)) for a in turns]
    coffee = tube((0, 0, h - 0.03), (0, 0, h + 0.004), 0.84 * r, linear(70, 42, 26))
    return [tube((0, 0, 0), (0, 0, h), 0.94 * r, body, r), coffee, *arc(grip, 0.062, handle)]


def _car(body: Color, wheels: Color, u: Draw) -> list[Primitive]:
    length, w, z = u(0.88, 1.0), u(0.40, 0.46), 0.2
    r = u(0.17, 0.2)
    parts = [block((0, 0, z + 0.15), (length, w, 0.16), body)]
    cabin = u(-0.18, -0.06)
    parts += [block((cabin, 0, z + 0.44), (0.46, 0.9 * w, 0.15), GLASS)]
    parts += [block((cabin, 0, z + 0.61), (0.42, 0.9 * w, 0.035), body)]
    parts += [block((cabin, 0, z + 0.44), (0.04, 0.9 * w + 0.005, 0.15), body)]
    for x in (-0.58 * length, 0.58 * length):
        for y in (-w, w):
            parts += [tube((x, y - 0.07, r), (x, y + 0.07, r), r, wheels)]
            parts += [tube((x, y - 0.085, r), (x, y + 0.085, r), 0.4 * r, linear(200, 200, 204))]
    for y in (-0.68 * w, 0.68 * w):
        parts += [ball((length, y, z + 0.19), (0.03, 0.085, 0.07), LAMP)]
        parts += [block((-length, y, z + 0.2), (0.012, 0.09, 0.05), TAIL)]
    return [*parts, block((length, 0, z + 0.05), (0.015, 0.7 * w, 0.04), DARK)]


def _house(body: Color, roof: Color, u: Draw) -> list[Primitive]:
    d, w, h, top = u(0.5, 0.6), u(0.55, 0.68), u(0.34, 0.42), u(0.24, 0.32)
    parts = [block((0, 0, h), (d, w, h), body)]
    parts += [block((0, 0, 2 * h + top), (w + 0.08, d + 0.10, top), roof, yaw=90, planes=ROOF_PLANES)]
    parts += [block((-0.2 * d, 0.5 * w, 2 * h + 1.7 * top), (0.08, 0.08, 0.24), linear(150, 90, 76))]
    parts += [block((d, 0, 0.26), (0.012, 0.13, 0.26), linear(92, 56, 34))]
    for y in (-0.62 * w, 0.62 * w):
        parts += [block((d, y, 0.44), (0.012, 0.12, 0.13), GLASS)]
    for y in (-w, w):
        parts += [block((0, y, 0.42), (0.16, 0.012, 0.13), GLASS)]
    return parts


def _tree(body: Color, trunk: Color, u: Draw) -> list[Primitive]:
    h, r, step = u(0.30, 0.42), u(0.46, 0.56), u(0.34, 0.4)
    parts = [tube((0, 0, 0), (0, 0, h + 0.1), u(0.09, 0.12), trunk)]
    for level in range(3):
        wide, z = r * (1 - 0.24 * level), h + step * level
        parts += [tube((0, 0, z), (0, 0, z + 0.58), wide, body, 0.06 if level < 2 else 0.0)]
    return parts


def _lamp(body: Color, stand: Color, u: Draw) -> list[Primitive]:
    h, r, tall = u(0.75, 0.95), u(0.42, 0.5), u(0.42, 0.52)
    parts = [tube((0, 0, 0), (0, 0, 0.07), u(0.3, 0.36), stand, 0.26), tube((0, 0, 0), (0, 0, h + 0.1), 0.05, stand)]
    parts += [ball((0, 0, 0.24), (0.13, 0.13, 0.17), stand)]
    return [*parts, tube((0, 0, h), (0, 0, h + tall), r, body, u(0.22, 0.28))]


def _snowman(body: Color, hat: Color, u: Draw) -> list[Primitive]:
    a, b, c = u(0.40, 0.46), u(0.30, 0.34), u(0.22, 0.25)
    z1, z2 = a * 0.92, a * 1.62 + b * 0.72
    z3 = z2 + b * 0.75 + c * 0.72
    parts = [ball((0, 0, z1), a, body), ball((0, 0, z2), b, body), ball((0, 0, z3), c, body)]
    parts += [tube((0, 0, z3 + 0.68 * c), (0, 0, z3 + 0.68 * c + 0.05), 1.15 * c, hat)]
    parts += [tube((0, 0, z3 + 0.7 * c), (0, 0, z3 + 0.7 * c + u(0.24, 0.32)), 0.76 * c, hat)]
    parts += [tube((0.9 * c, 0, z3), (0.9 * c + 0.26, 0, z3 - 0.02), 0.06, CARROT, 0.0)]
    parts += [ball((0.84 * c, y, z3 + 0.36 * c), 0.045, DARK) for y in (-0.42 * c, 0.42 * c)]
    parts += [ball((0.96 * b * np.cos(t), 0, z2 + 0.96 * b * np.sin(t)), 0.045, DARK) for t in (-0.25, 0.3)]
    for side in (-1, 1):
        parts += [tube((0, side * 0.85 * b, z2 + 0.1), (0.06, side * (b + 0.28), z2 + 0.28), 0.04, WOOD)]
    return parts


def _rocket(body: Color, fins: Color, u: Draw) -> list[Primitive]:
    r, h, nose = u(0.25, 0.3), u(0.85, 1.0), u(0.45, 0.55)
    parts = [tube((0, 0, 0.2), (0, 0, 0.2 + h), r, body), tube((0, 0, 0.2 + h), (0, 0, 0.2 + h + nose), r, fins, 0.0)]
    parts += [tube((0, 0, 0.06), (0, 0, 0.2), 0.85 * r, DARK, 0.6 * r)]
    for angle in (0, 90, 180, 270):
        out = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]) * (r + 0.13)
        parts += [block((*out, 0.32), (0.2, 0.03, 0.32), fins, yaw=angle, planes=SAIL_PLANES)]
    z = 0.2 + 0.68 * h
    parts += [tube((0, 0, z), (r + 0.015, 0, z), 0.14, linear(225, 225, 228))]
    return [*parts, tube((0, 0, z), (r + 0.03, 0, z), 0.1, GLASS)]


def _mushroom(body: Color, stem: Color, u: Draw) -> list[Primitive]:
    r, h, high = u(0.58, 0.68), u(0.5, 0.62), u(0.36, 0.44)
    parts = [tube((0, 0, 0), (0, 0, h + 0.2), u(0.2, 0.25), stem, 0.17)]
    parts += [ball((0, 0, h + 0.12), (r, r, high), body)]
    dots = [(0, 85)] + [(360 * k / 5 + 20, 42) for k in range(5)] + [(360 * k / 6, 14) for k in range(6)]
    for turn, lift in dots:
        a, e = np.radians(turn), np.radians(lift)
        out = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)]) * (r, r, high) * 0.97
        parts += [ball(out + np.array([0, 0, h + 0.12]), 0.085, CREAM)]
    return parts


def _airplane(body: Color, wings: Color, u: Draw) -> list[Primitive]:
    length, r, span = u(0.88, 1.0), u(0.17, 0.2), u(0.85, 1.0)
    parts = [ball((0, 0, 0), (length, r, r), body)]
    parts += [block((0.12, 0, -0.02), (0.2, span, 0.03), wings)]
    parts += [block((-0.82 * length, 0, 0.05), (0.12, 0.36, 0.025), wings)]
    parts += [block((-0.84 * length, 0, 0.26), (0.17, 0.028, 0.25), wings, planes=SAIL_PLANES)]
    parts += [ball((0.62 * length, 0, 0.09), (0.2, 0.12, 0.11), GLASS)]
    for y in (-0.5 * span, 0.5 * span):
        parts += [tube((0.0, y, -0.12), (0.4, y, -0.12), 0.09, DARK)]
    return parts


def _boat(body: Color, sail: Color, u: Draw) -> list[Primitive]:
    length, w, tall = u(0.72, 0.82), u(0.26, 0.32), u(1.15, 1.3)
    parts = [block((-0.12, 0, 0.16), (0.72 * length, w, 0.16), body)]
    parts += [block((0.6 * length - 0.12 + 0.3, 0, 0.16), (w, 0.38, 0.16), body, yaw=-90, roll=0,
                    planes=BOW_PLANES)]  # fmt: skip
    parts += [block((-0.12, 0, 0.33), (0.66 * length, 0.86 * w, 0.02), WOOD)]
    parts += [tube((0.08, 0, 0.3), (0.08, 0, 0.42 + tall), 0.035, WOOD)]
    parts += [block((-0.32, 0, 0.46 + tall / 2), (0.36, 0.022, tall / 2 - 0.02), sail, yaw=180, planes=SAIL_PLANES)]
    parts += [block((0.40, 0, 0.46 + 0.38 * tall), (0.28, 0.022, 0.38 * tall), sail, planes=SAIL_PLANES)]
    return parts


def _dog(body: Color, ears: Color, u: Draw) -> list[Primitive]:
    length, r, leg = u(0.46, 0.56), u(0.22, 0.27), u(0.34, 0.42)
    z = leg + 0.6 * r
    parts = [ball((0, 0, z), (length, r, r), body)]
    for x in (-0.62 * length, 0.62 * length):
        parts += [tube((x, y, 0), (x, y, z), 0.085, body) for y in (-0.6 * r, 0.6 * r)]
    hx, hz = length + 0.08, z + u(0.36, 0.42)
    parts += [tube((0.7 * length, 0, z), (hx - 0.05, 0, hz), 0.15, body, 0.14)]
    parts += [ball((hx, 0, hz), (0.25, 0.22, 0.22), body), ball((hx + 0.24, 0, hz - 0.07), (0.19, 0.12, 0.11), body)]
    parts += [ball((hx + 0.41, 0, hz - 0.03), 0.062, DARK)]
    parts += [ball((hx + 0.17, y, hz + 0.09), 0.05, DARK) for y in (-0.12, 0.12)]
    parts += [ball((hx - 0.06, y, hz - 0.02), (0.11, 0.06, 0.22), ears) for y in (-0.24, 0.24)]
    return [*parts, tube((-0.9 * length, 0, z + 0.08), (-length - 0.26, 0, z + 0.42), 0.07, body, 0.035)]


def _duck(body: Color, beak: Color, u: Draw) -> list[Primitive]:
    length, r, head = u(0.58, 0.66), u(0.36, 0.42), u(0.26, 0.3)
    hx, hz = 0.62 * length, r + 0.35 + 0.6 * head
    parts = [ball((0, 0, r), (length, r, 0.92 * r), body)]
    parts += [tube((0.4 * length, 0, r), (hx, 0, hz), 0.24, body, 0.18), ball((hx, 0, hz), head, body)]
    parts += [ball((hx + head + 0.08, 0, hz - 0.05), (0.2, 0.15, 0.055), beak)]
    parts += [ball((hx + 0.72 * head, y, hz + 0.32 * head), 0.055, DARK) for y in (-0.52 * head, 0.52 * head)]
    parts += [ball((-0.08, y, r + 0.08), (0.36, 0.08, 0.2), body, pitch=12) for y in (-0.95 * r, 0.95 * r)]
    return [*parts, tube((-0.7 * length, 0, r), (-length - 0.22, 0, r + 0.34), 0.2, body, 0.02)]


def _robot(body: Color, arms: Color, u: Draw) -> list[Primitive]:
    w, h, head = u(0.34, 0.4), u(0.32, 0.38), u(0.22, 0.26)
    z = 0.42 + h
    parts = [block((0, 0, z), (0.24, w, h), body)]
    parts += [block((0, 0, z + h + 0.06 + head), (0.22, 1.1 * head, head), body)]
    parts += [tube((0, 0, z + h - 0.05), (0, 0, z + h + 0.1), 0.09, DARK)]
    for side in (-1, 1):
        parts += [tube((0, side * 0.18, 0), (0, side * 0.18, 0.45), 0.1, arms)]
        parts += [tube((0, side * (w + 0.1), z + h - 0.1), (0.06, side * (w + 0.16), z - h + 0.02), 0.085, arms)]
        parts += [ball((0, side * (w + 0.06), z + h - 0.1), 0.12, arms)]
        parts += [ball((0.22, side * 0.45 * head, z + h + 0.1 + head), (0.05, 0.075, 0.075), LAMP)]
    parts += [block((0.225, 0, z + h + 0.06 + 0.5 * head), (0.012, 0.55 * head, 0.03), DARK)]
    parts += [block((0.245, 0, z + 0.05), (0.012, 0.55 * w, 0.14), linear(200, 204, 210))]
    top = z + h + 0.06 + 2 * head
    return [*parts, tube((0, 0, top), (0, 0, top + 0.16), 0.025, DARK), ball((0, 0, top + 0.18), 0.06, TAIL)]


def _teapot(body: Color, handle: Color, u: Draw) -> list[Primitive]:
    r, high = u(0.5, 0.56), u(0.40, 0.46)
    z = high + 0.02
    parts = [ball((0, 0, z), (r, r, high), body), tube((0, 0, 0), (0, 0, 0.1), 0.32, body)]
    parts += [tube((0, 0, z + 0.88 * high), (0, 0, z + 0.98 * high), 0.27, body, 0.2)]
    parts += [ball((0, 0, z + high + 0.08), 0.085, handle)]
    parts += [tube((0.78 * r, 0, z - 0.12), (r + 0.34, 0, z + 0.34), 0.15, body, 0.06)]
    turns = np.radians(np.linspace(-75, 75, 7))
    grip = [(-(r - 0.05 + 0.32 * np.cos(a)), 0.0, z + 0.03 + 0.3 * np.sin(a)) for a in turns]
    return [*parts, *arc(grip, 0.062, handle)]


@dataclass(frozen=True)
class Kind:
    """An object of the toy world: the part whose colour captions may name, its natural colour, and the builder."""

    part: str
    natural: Color
    builder: Builder


KINDS = {
    "chair": Kind("legs", WOOD, _chair), "table": Kind("legs", WOOD, _table), "mug": Kind("handle", CREAM, _mug),
    "car": Kind("wheels", DARK, _car), "house": Kind("roof", linear(150, 70, 54), _house),
    "tree": Kind("trunk", linear(110, 72, 44), _tree), "lamp": Kind("stand", linear(120, 120, 126), _lamp),
    "snowman": Kind("hat", DARK, _snowman), "rocket": Kind("fins", linear(190, 192, 198), _rocket),
    "mushroom": Kind("stem", CREAM, _mushroom), "airplane": Kind("wings", linear(190, 192, 198), _airplane),
    "boat": Kind("sail", CREAM, _boat), "dog": Kind("ears", linear(70, 46, 34), _dog),
    "duck": Kind("beak", CARROT, _duck), "robot": Kind("arms", linear(130, 132, 140), _robot),
    "teapot": Kind("handle", linear(60, 52, 50), _teapot),
}  # fmt: skip
"""The objects by the noun of their caption."""


def build(shape: str, color: str, part_color: str | None, generator: np.random.Generator) -> list[Primitive]:
    """The primitives of a toy object inside the unit ball around the origin, its proportions drawn from ``generator``.

    ``part_color`` None paints the named part in its natural colour. Raises `UserError` for a shape or colour that
    the toy world does not have.
    """
    if shape not in KINDS:
        raise UserError(f"there is no toy object '{shape}'; choose one of {', '.join(KINDS)}")
    for name in (color, part_color):
        if name is not None and name not in COLORS:
            raise UserError(f"there is no toy colour '{name}'; choose one of {', '.join(COLORS)}")
    kind = KINDS[shape]
    tint = 1 + generator.uniform(-0.08, 0.08, size=3)
    body, part = COLORS[color] * tint, kind.natural if part_color is None else COLORS[part_color]
    parts = kind.builder(np.minimum(body, 1.0), part, lambda low, high: float(generator.uniform(low, high)))
    corners = np.concatenate([primitive.extent() for primitive in parts])
    middle = (corners.min(0) + corners.max(0)) / 2
    scale = 1 / max(_reach(primitive, middle) for primitive in parts)
    return [primitive.placed(scale, -middle * scale) for primitive in parts]


def _reach(primitive: Primitive, middle: np.ndarray) -> float:
    """A bound on how far the solid reaches from ``middle``: its box's corners for polyhedra, tighter for the rest."""
    if primitive.kind == BALL:
        return float(np.linalg.norm(primitive.center - middle) + np.linalg.norm(primitive.frame, axis=0).max())
    return float(np.linalg.norm(primitive.extent() - middle, axis=1).max())
