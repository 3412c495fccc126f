"""Houses, halls and towers of a procedural city: painted walls, roofs of several kinds, and what stands on roofs.

Every function adds shapes to a `MeshBuilder` in the local frame of a `Placement`; sizes in metres, z up.
"""

from __future__ import annotations

import numpy as np

from scene_distill.data.city_mesh import Kind, MeshBuilder, Paint, Placement, linear

WALLS = (
    linear(206, 196, 176), linear(190, 166, 132), linear(150, 92, 74), linear(196, 180, 150), linear(176, 122, 96),
    linear(208, 204, 194), linear(184, 154, 116), linear(130, 82, 68), linear(168, 174, 174), linear(196, 162, 138),
)  # fmt: skip
TRIM = (linear(190, 186, 176), linear(176, 170, 158), linear(122, 114, 106))
TILE_COLORS = (
    linear(164, 94, 70), linear(148, 80, 62), linear(124, 74, 62), linear(108, 106, 108), linear(90, 92, 100),
    linear(180, 114, 84),
)  # fmt: skip
FLAT_COLORS = (linear(168, 164, 156), linear(132, 130, 128), linear(184, 180, 172), linear(114, 114, 115))
METAL = Paint(Kind.PLAIN, linear(166, 168, 168), params=(0.12,))
DARK_METAL = Paint(Kind.PLAIN, linear(92, 94, 98), params=(0.15,))
BRICK = Paint(Kind.PLAIN, linear(150, 84, 64), params=(0.4,))
CONCRETE = Paint(Kind.PLAIN, linear(196, 192, 184), params=(0.18,))
SKYLIGHT = Paint(Kind.SOLAR, linear(58, 78, 96), linear(190, 192, 192), (1.3, 1.3))
PANELS = Paint(Kind.SOLAR, linear(56, 66, 94), linear(112, 120, 136), (1.2, 1.9))
GREEN_ROOF = Paint(Kind.GRASS, linear(120, 132, 76), params=(0.0,))

FLOOR = 3.1
"""Height of a storey, metres."""


def pick(rng: np.random.Generator, choices: tuple) -> tuple:
    """One of the choices, evenly."""
    return choices[int(rng.integers(len(choices)))]


def facade(rng: np.random.Generator, length: float, height: float, shop: bool, modern: bool) -> Paint:
    """Paint of a wall: windows in whole bays over ``length``; modern walls have ribbon glazing."""
    wanted = rng.uniform(2.5, 3.4) if not modern else rng.uniform(2.2, 2.8)
    bay = length / max(1, round(length / wanted))
    floor = height / max(1, round(height / FLOOR))
    wide, high = (bay - 0.5, floor * 0.55) if modern else (min(1.35, bay * 0.5), floor * 0.5)
    color = pick(rng, WALLS)
    trim = TRIM[0] if sum(color) < 1.6 else TRIM[1 + int(rng.random() < 0.4)]
    return Paint(Kind.FACADE, color, trim, (bay, floor, wide, high, float(shop), height))


def walls(
    builder: MeshBuilder, place: Placement, size: tuple[float, float], z: tuple[float, float], paint: Paint
) -> None:
    """Four facades, the bays fitted to each side's own length."""
    for axis, turn in ((0, 0.0), (1, np.pi / 2), (0, np.pi), (1, 3 * np.pi / 2)):
        length, depth = size[axis], size[1 - axis]
        bay = length / max(1, round(length / paint.params[0]))
        fitted = Paint(paint.kind, paint.color, paint.accent, (bay, *paint.params[1:]))
        corners = [(-length / 2, -depth / 2, z[0]), (length / 2, -depth / 2, z[0])]
        corners += [(length / 2, -depth / 2, z[1]), (-length / 2, -depth / 2, z[1])]
        builder.polygon(place.at(0, 0, turn).world(np.array(corners)), fitted)


def gable_roof(
    builder: MeshBuilder, place: Placement, size: tuple[float, float], z: tuple[float, float], wall: Paint, verge: float
) -> None:
    """A saddle roof from eaves at z[0] to a ridge along x at z[1], ``verge`` metres over the gable walls."""
    rng = builder.rng
    half_x, half_y, eave = size[0] / 2, size[1] / 2, 0.45
    low, rise = z[0], z[1] - z[0]
    drop = rise * eave / half_y
    slope = float(np.hypot(half_y + eave, rise + drop))
    tiles = Paint(Kind.TILES, pick(rng, TILE_COLORS), linear(168, 142, 124), (slope, rng.uniform(0.8, 1.05), 0.16))
    for turn in (0.0, np.pi):
        side = place.at(0, 0, turn)
        over = half_x + verge
        corners = [(-over, -half_y - eave, low - drop), (over, -half_y - eave, low - drop), (over, 0, low + rise)]
        builder.polygon(side.world(np.array([*corners, (-over, 0, low + rise)])), tiles)
        gable = np.array([(half_x, -half_y, low), (half_x, half_y, low), (half_x, 0, low + rise)])
        builder.polygon(side.world(gable), Paint(Kind.PLAIN, wall.color, params=(0.15,)))
        roof_details(builder, side, (size[0], half_y), low, rise)


def hip_roof(builder: MeshBuilder, place: Placement, size: tuple[float, float], z: float, rise: float) -> None:
    """A roof sloping to all four sides; ``size[0] >= size[1]``, the ridge along x."""
    rng = builder.rng
    eave = 0.45
    half_x, half_y = size[0] / 2 + eave, size[1] / 2 + eave
    ridge = max(half_x - half_y, 0.0)
    low, high = z - 0.15, z + rise
    color, course = pick(rng, TILE_COLORS), rng.uniform(0.8, 1.05)
    for turn, across, along, top in ((0.0, half_x, half_y, ridge), (np.pi / 2, half_y, half_x, 0.0)):
        run = along if turn == 0.0 else half_x - ridge
        tiles = Paint(Kind.TILES, color, linear(168, 142, 124), (float(np.hypot(run, high - low)), course, 0.16))
        for flip in (0.0, np.pi):
            corners = [(-across, -along, low), (across, -along, low)]
            peak = 0.0 if turn == 0.0 else -ridge
            corners += [(top, peak, high)] if top == 0 else [(top, peak, high), (-top, peak, high)]
            builder.polygon(place.at(0, 0, turn + flip).world(np.array(corners)), tiles)
    chimney(builder, place.at(rng.uniform(-0.3, 0.3) * ridge, half_y * 0.35), z + rise * 0.4, z + rise + 0.7)


def chimney(builder: MeshBuilder, place: Placement, low: float, high: float) -> None:
    """A brick chimney with a dark mouth."""
    builder.box(place, (0.9, 0.9), (low, high), BRICK)
    builder.slab(place, (0.55, 0.55), high + 0.03, DARK_METAL)


def roof_details(builder: MeshBuilder, side: Placement, size: tuple[float, float], z: float, rise: float) -> None:
    """Chimney, roof windows, dormers or solar panels on the slope of ``side`` (its eave towards -y, ridge at y = 0)."""
    rng = builder.rng
    length, run = size
    kind = rng.random()
    if rng.random() < 0.5:
        x = rng.uniform(-0.35, 0.35) * length
        chimney(builder, side.at(x, -run * 0.2), z + rise * 0.6, z + rise + 0.9)
    count = max(1, int(length / 4.2))
    lift = 0.06
    for index in range(count):
        x = (index + 0.5) * length / count - length / 2
        if kind < 0.35:
            low, high = -0.72 * run, -0.42 * run
            corners = [(x - 0.6, low), (x + 0.6, low), (x + 0.6, high), (x - 0.6, high)]
            heights = [z + rise * (1 + y / run) + lift for _, y in corners]
            local = np.array([(a, b, h) for (a, b), h in zip(corners, heights, strict=True)])
            builder.polygon(side.world(local), Paint(Kind.SOLAR, linear(52, 70, 88), linear(206, 206, 204), (1.2, 5.0)))
        elif kind < 0.6:
            depth = 0.52 * run
            base = z + rise * 0.22
            dormer = side.at(x, -0.74 * run + depth / 2)
            wall = Paint(Kind.FACADE, linear(226, 222, 212), TRIM[0], (1.7, 1.5, 1.0, 0.9, 0.0, 9.0))
            walls(builder, dormer, (1.7, depth), (base, base + 1.5), wall)
            builder.slab(dormer, (2.1, depth + 0.3), base + 1.52, DARK_METAL)
    if 0.6 <= kind < 0.8:
        wide = min(length * 0.6, 7.2)
        corners = [(-wide / 2, -0.85 * run), (wide / 2, -0.85 * run), (wide / 2, -0.25 * run), (-wide / 2, -0.25 * run)]
        local = np.array([(a, b, z + rise * (1 + b / run) + 0.12) for a, b in corners])
        builder.polygon(side.world(local), PANELS)


def flat_roof(
    builder: MeshBuilder, place: Placement, size: tuple[float, float], z: float, trim: tuple[float, float, float]
) -> None:
    """A flat roof behind a parapet, with machines, skylights, solar rows, planting or a terrace on it."""
    rng = builder.rng
    green = rng.random() < 0.22
    sheet = Paint(
        Kind.FLAT_ROOF, pick(rng, FLAT_COLORS), linear(82, 82, 84), (rng.uniform(2.2, 3.2), rng.uniform(0.3, 0.55))
    )
    builder.slab(place, size, z, GREEN_ROOF if green else sheet)
    rim, top = 0.45, z + 0.75
    paint = Paint(Kind.PLAIN, trim, params=(0.12,))
    for turn, long, deep in ((0.0, size[0], size[1]), (np.pi / 2, size[1], size[0])):
        for flip in (0.0, np.pi):
            edge = place.at(0, 0, turn + flip).at(0, -deep / 2 + rim / 2)
            builder.box(edge, (long, rim), (z - 0.3, top), paint)
    room_x, room_y = size[0] - 3.0, size[1] - 3.0
    if min(room_x, room_y) < 2.5:
        return
    cells = [(a, b) for a in (-0.25, 0.25) for b in (-0.25, 0.25)]
    rng.shuffle(cells)
    for a, b in cells[: 4 if room_x * room_y > 60 else 2]:
        _roof_item(builder, place.at(a * room_x, b * room_y), (room_x * 0.44, room_y * 0.44), z)


def _roof_item(builder: MeshBuilder, place: Placement, room: tuple[float, float], z: float) -> None:
    """One of the things that stand on flat roofs, within ``room`` (x, y) metres."""
    rng = builder.rng
    kind = rng.random()
    if kind < 0.28:
        for x in np.arange(-room[0] / 2 + 0.8, room[0] / 2 - 0.5, 2.1):
            low, high = z + 0.25, z + 1.0
            corners = [
                (x, -room[1] / 2, low),
                (x + 1.5, -room[1] / 2, high),
                (x + 1.5, room[1] / 2, high),
                (x, room[1] / 2, low),
            ]
            builder.polygon(place.world(np.array(corners)), Paint(Kind.SOLAR, PANELS.color, PANELS.accent, (5.0, 1.4)))
            back = [
                (x + 1.5, room[1] / 2, z),
                (x + 1.5, room[1] / 2, high),
                (x + 1.5, -room[1] / 2, high),
                (x + 1.5, -room[1] / 2, z),
            ]
            builder.polygon(place.world(np.array(back)), DARK_METAL)
    elif kind < 0.55:
        size = (min(room[0], rng.uniform(2.0, 3.4)), min(room[1], rng.uniform(1.6, 2.6)))
        high = z + rng.uniform(1.2, 1.9)
        builder.box(place, size, (z, high), METAL)
        builder.slab(place, (size[0] * 0.6, size[1] * 0.6), high + 0.03, DARK_METAL)
    elif kind < 0.72:
        size = (min(room[0], 3.6), min(room[1], 3.0))
        builder.walls(place, size, (z, z + 2.6), CONCRETE)
        builder.slab(
            place, (size[0] + 0.4, size[1] + 0.4), z + 2.62, Paint(Kind.PLAIN, linear(120, 118, 116), params=(0.2,))
        )
    elif kind < 0.88:
        for x in np.arange(-room[0] / 2 + 1.0, room[0] / 2 - 0.6, 2.6):
            builder.walls(place.at(x, 0), (1.5, min(room[1], 3.9)), (z, z + 0.5), METAL)
            builder.slab(place.at(x, 0), (1.5, min(room[1], 3.9)), z + 0.5, SKYLIGHT)
    else:
        builder.slab(place, room, z + 0.08, Paint(Kind.DECK, linear(176, 134, 94), params=(0.8,)))
        builder.box(
            place.at(room[0] * 0.2, 0),
            (1.8, 1.8),
            (z, z + 1.0),
            Paint(Kind.FOLIAGE, linear(92, 120, 60), params=(1.0,)),
        )


def balconies(
    builder: MeshBuilder, place: Placement, size: tuple[float, float], z: tuple[float, float], columns: int
) -> None:
    """Rows of balconies on the side of a block that faces local -y."""
    rail = Paint(
        Kind.PLAIN, pick(builder.rng, (linear(226, 226, 222), linear(96, 112, 120), linear(150, 90, 66))), params=(0.1,)
    )
    for floor in np.arange(z[0] + FLOOR, z[1] - 2.0, FLOOR):
        for index in range(columns):
            x = (index + 0.5) * size[0] / columns - size[0] / 2
            builder.box(place.at(x, -size[1] / 2 - 0.6), (2.3, 1.2), (floor, floor + 1.0), rail)


def house(builder: MeshBuilder, place: Placement, size: tuple[float, float], height: float) -> None:
    """A detached or terraced house with a pitched roof over ``size``; the ridge runs along the longer side."""
    rng = builder.rng
    if size[1] > size[0]:
        place, size = place.at(0, 0, np.pi / 2), (size[1], size[0])
    wall = facade(rng, size[0], height, shop=False, modern=False)
    walls(builder, place, size, (0.0, height), wall)
    rise = size[1] * rng.uniform(0.32, 0.45)
    if rng.random() < 0.35:
        hip_roof(builder, place, size, height, rise)
    else:
        gable_roof(builder, place, size, (height, height + rise), wall, 0.3)


def flat_block(builder: MeshBuilder, place: Placement, size: tuple[float, float], height: float, shop: bool) -> None:
    """An apartment or office block with a flat roof, sometimes with balconies or a set-back top."""
    rng = builder.rng
    wall = facade(rng, size[0], height, shop=shop, modern=bool(rng.random() < 0.5))
    walls(builder, place, size, (0.0, height), wall)
    if rng.random() < 0.4:
        balconies(builder, place, size, (0.0, height), max(1, int(size[0] / 5)))
    flat_roof(builder, place, size, height, wall.accent)


def hall(builder: MeshBuilder, place: Placement, size: tuple[float, float], height: float) -> None:
    """A factory hall with a saw-tooth roof: glass to the north, sheet metal to the south."""
    rng = builder.rng
    color = pick(rng, (linear(176, 184, 188), linear(150, 92, 72), linear(206, 200, 186)))
    walls(
        builder,
        place,
        size,
        (0.0, height),
        Paint(Kind.FACADE, color, TRIM[1], (4.0, height, 2.6, height * 0.3, 0.0, height)),
    )
    teeth = max(2, round(size[0] / 6.0))
    step = size[0] / teeth
    sheet = Paint(Kind.FLAT_ROOF, linear(152, 158, 162), linear(104, 108, 112), (1.9, 0.25))
    glass = Paint(Kind.SOLAR, linear(92, 124, 140), linear(230, 232, 230), (2.0, 4.0))
    side = Paint(Kind.PLAIN, color, params=(0.1,))
    for index in range(teeth):
        x0 = index * step - size[0] / 2
        x1, y, top = x0 + step, size[1] / 2, height + 2.2
        low, high = height + 0.02, top
        builder.polygon(place.world(np.array([(x0, y, low), (x0, -y, low), (x1, -y, high), (x1, y, high)])), sheet)
        builder.polygon(place.world(np.array([(x1, -y, low), (x1, y, low), (x1, y, high), (x1, -y, high)])), glass)
        builder.polygon(place.world(np.array([(x0, -y, low), (x1, -y, low), (x1, -y, high)])), side)
        builder.polygon(place.world(np.array([(x1, y, low), (x0, y, low), (x1, y, high)])), side)


def tower(builder: MeshBuilder, place: Placement, size: tuple[float, float], height: float) -> None:
    """An office tower in two stages, the upper one set back."""
    rng = builder.rng
    lower = height * rng.uniform(0.55, 0.75)
    wall = facade(rng, size[0], lower, shop=True, modern=True)
    walls(builder, place, size, (0.0, lower), wall)
    flat_roof(builder, place, size, lower, wall.accent)
    upper = (size[0] * 0.64, size[1] * 0.64)
    stage = Paint(wall.kind, wall.color, wall.accent, (*wall.params[:4], 0.0, height - lower))
    walls(builder, place, upper, (lower, height), stage)
    flat_roof(builder, place, upper, height, wall.accent)
