"""What stands where in a procedural city: blocks of different kinds, trees, cars and the fields around.

Blocks have one size and follow one another in a fixed cycle of kinds shuffled by the seed, so a city of twice as many
blocks is twice as much of the same. Each block draws from its own generator: growing the grid leaves it as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from scene_distill.core.seeds import numpy_generator
from scene_distill.data.city_buildings import CONCRETE, METAL, facade, flat_block, gable_roof, hall, house, tower, walls
from scene_distill.data.city_ground import LOT_GRASS, LOT_PAVED, LOT_YARD, StreetPlan
from scene_distill.data.city_mesh import CityMesh, Kind, MeshBuilder, Paint, Placement, icosphere, linear

BLOCK_KINDS = ("perimeter", "houses", "offices", "park", "industry", "terraces")
LOT_GROUND = {"perimeter": LOT_PAVED, "offices": LOT_PAVED, "industry": LOT_YARD}
LEAVES = (linear(96, 116, 68), linear(108, 124, 72), linear(88, 108, 68), linear(120, 125, 76), linear(84, 102, 72))
CARS = (
    linear(190, 190, 192), linear(80, 82, 88), linear(150, 52, 46), linear(60, 84, 126), linear(150, 156, 162),
    linear(184, 184, 186), linear(70, 72, 76), linear(122, 128, 118),
)  # fmt: skip
LAWN = Paint(Kind.GRASS, linear(108, 132, 64), params=(1.5,))
BED = Paint(Kind.GRASS, linear(98, 120, 58), params=(0.0,))
PATH = Paint(Kind.PAVING, linear(204, 184, 150), params=(1.2,))
DRIVE = Paint(Kind.PAVING, linear(168, 160, 152), params=(1.6,))
HEDGE = Paint(Kind.FOLIAGE, linear(70, 98, 48), params=(1.1,))
POOL = Paint(Kind.WATER, linear(86, 158, 172), linear(112, 182, 190))
POND = Paint(Kind.WATER, linear(58, 84, 78), linear(84, 108, 92))
TRUNK = Paint(Kind.PLAIN, linear(104, 82, 62), params=(0.2,))


@dataclass(frozen=True, eq=False)
class City:
    """A finished city: its triangles, its street plan and the kind of every block ([blocks_x][blocks_y] names)."""

    mesh: CityMesh
    plan: StreetPlan
    kinds: tuple[tuple[str, ...], ...]


def build_city(seed: int, blocks: tuple[int, int], pitch: float, height_range: tuple[float, float]) -> City:
    """Lay out blocks[0] x blocks[1] city blocks with street centre lines ``pitch`` metres apart.

    Buildings other than houses are between height_range[0] and height_range[1] metres tall. Same arguments, same city.
    """
    order = np.array(BLOCK_KINDS)
    numpy_generator(seed, "city", "kinds").shuffle(order)
    kinds = tuple(
        tuple(str(order[(i + 3 * j + j // 2) % len(order)]) for j in range(blocks[1])) for i in range(blocks[0])
    )
    ground = np.array([[LOT_GROUND.get(kind, LOT_GRASS) for kind in column] for column in kinds], np.int8)
    plan = StreetPlan(blocks[0], blocks[1], pitch, road_half=5.0, pavement=2.6, lot_ground=ground)
    builder = MeshBuilder(numpy_generator(seed, "city", "ground"))
    reach = max(plan.half_size) + 2000.0
    builder.slab(Placement(0.0, 0.0), (2 * reach, 2 * reach), 0.0, Paint(Kind.GROUND, (0.2, 0.2, 0.2)))
    fill = {
        "perimeter": _perimeter, "houses": _houses, "offices": _offices,
        "park": _park, "industry": _industry, "terraces": _terraces,
    }  # fmt: skip
    for i in range(blocks[0]):
        for j in range(blocks[1]):
            builder.rng = numpy_generator(seed, "city", "block", i, j)
            place = Placement(*plan.block_center(i, j))
            fill[kinds[i][j]](builder, place, plan.lot, height_range)
            _street_side(builder, place, plan)
    builder.rng = numpy_generator(seed, "city", "fields")
    _fields(builder, plan)
    return City(builder.finish(), plan, kinds)


# ---------------------------------------------------------------------------------------------------- small things


def tree(builder: MeshBuilder, place: Placement, height: float) -> None:
    """A broad-leaved tree of one to three lumpy crowns on a trunk, or a slim conifer."""
    rng = builder.rng
    points, faces = _SPHERE
    color = LEAVES[int(rng.integers(len(LEAVES)))]
    leaves = Paint(Kind.FOLIAGE, color, linear(130, 142, 82), (rng.uniform(0.6, 0.85),))
    builder.walls(place, (0.35, 0.35), (0.0, height * 0.5), TRUNK)
    conifer = rng.random() < 0.15
    for index in range(1 if conifer else int(rng.integers(1, 4))):
        radius = height * (0.2 if conifer else rng.uniform(0.27, 0.36)) * (1.0 if index == 0 else 0.72)
        reach = 0.0 if index == 0 else radius * 0.8
        turn = rng.uniform(0, 2 * np.pi)
        center = place.world(np.array([reach * np.cos(turn), reach * np.sin(turn), 0.0]))
        center[2] = height * (0.55 if conifer else rng.uniform(0.58, 0.66)) - 0.12 * reach
        lumps = 1 + 0.16 * np.sin(points @ rng.normal(size=(3, 4)) * 3.2 + rng.uniform(0, 6, 4)).mean(axis=1) * 2
        stretch = np.array([1.0, 1.0, 2.2 if conifer else 0.92])
        shape = points * lumps[:, None] * radius * stretch
        if conifer:
            shape[:, :2] *= np.clip(0.95 - 0.55 * shape[:, 2:] / (2.2 * radius), 0.15, 1.6)
        frame = np.stack([center, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        builder.mesh(center + shape, faces, leaves, frame)


_SPHERE = icosphere(2)


def car(builder: MeshBuilder, place: Placement) -> None:
    """A parked car pointing along local x, sometimes a van."""
    rng = builder.rng
    paint = Paint(Kind.PLAIN, CARS[int(rng.integers(len(CARS)))], params=(0.05,))
    glass = Paint(Kind.PLAIN, linear(40, 48, 56), params=(0.05,))
    if rng.random() < 0.12:
        builder.box(place, (5.2, 2.0), (0.35, 2.2), paint)
        builder.slab(place.at(2.35, 0), (0.45, 1.7), 2.22, glass)
        return
    builder.box(place, (4.4, 1.85), (0.3, 0.85), paint)
    cabin = place.at(-0.2, 0)
    builder.frustum(cabin, (2.7, 1.75), (1.7, 1.45), (0.85, 1.42), glass)
    builder.slab(cabin, (1.7, 1.45), 1.42, paint)


def parking(builder: MeshBuilder, place: Placement, bays: int, full: float) -> None:
    """A row of ``bays`` parking bays side by side along local x, a share ``full`` of them taken."""
    size = (2.6 * bays, 5.2)
    builder.slab(place, size, 0.03, Paint(Kind.PARKING, linear(112, 112, 114), params=(2.6, 5.2)))
    for index in range(bays):
        if builder.rng.random() < full:
            car(builder, place.at((index + 0.5) * 2.6 - size[0] / 2, builder.rng.uniform(-0.3, 0.3), np.pi / 2))


def trees(
    builder: MeshBuilder, place: Placement, size: tuple[float, float], count: int, heights: tuple[float, float]
) -> None:
    """Scatter trees over a rectangle, at least three metres apart."""
    rng = builder.rng
    taken: list[np.ndarray] = []
    for spot in rng.uniform(-0.5, 0.5, size=(count * 4, 2)) * size:
        if len(taken) < count and all(np.hypot(*(spot - other)) > 3.4 for other in taken):
            taken.append(spot)
            tree(builder, place.at(*spot), rng.uniform(*heights))


# ---------------------------------------------------------------------------------------------------------- blocks


def _perimeter(builder: MeshBuilder, place: Placement, lot: float, heights: tuple[float, float]) -> None:
    """Town houses along the four streets around a courtyard."""
    rng, depth = builder.rng, 10.5
    top = min(heights[1], 19.0)
    for turn in range(4):
        side = place.at(0, 0, turn * np.pi / 2)
        length = lot - 2.0 if turn % 2 == 0 else lot - 2.0 - 2 * depth
        cuts = np.cumsum([0.0, *rng.uniform(0.8, 1.3, 3 if turn % 2 == 0 else 2)])
        cuts = cuts / cuts[-1] * length - length / 2
        for left, right in pairwise(cuts):
            spot = side.at((left + right) / 2, -(lot - 2.0 - depth) / 2)
            height = round(rng.uniform(max(heights[0], 8.5), top) / 3.1) * 3.1
            if rng.random() < 0.35:
                flat_block(builder, spot, (right - left, depth), height, shop=True)
            else:
                wide = (right - left, depth)
                house_on_street(builder, spot, wide, height)
    inner = lot - 2.0 - 2 * depth
    builder.slab(place.at(0, inner * 0.12), (inner * 0.75, inner * 0.5), 0.04, LAWN)
    parking(builder, place.at(0, -inner / 2 + 3.2), int(inner / 2.6) - 1, 0.7)
    trees(builder, place.at(0, inner * 0.14), (inner * 0.7, inner * 0.45), 5, (5.0, 8.0))
    builder.box(place.at(inner * 0.36, inner * 0.42), (3.6, 2.4), (0.0, 2.4), CONCRETE)


def house_on_street(builder: MeshBuilder, place: Placement, size: tuple[float, float], height: float) -> None:
    """A town house whose ridge follows the street, whatever its proportions."""
    wall = facade(builder.rng, size[0], height, shop=bool(builder.rng.random() < 0.6), modern=False)
    walls(builder, place, size, (0.0, height), wall)
    rise = size[1] * builder.rng.uniform(0.3, 0.42)
    gable_roof(builder, place, size, (height, height + rise), wall, 0.04)


def _houses(builder: MeshBuilder, place: Placement, lot: float, heights: tuple[float, float]) -> None:
    """Detached houses with gardens, drives, hedges and a pool or two."""
    rng = builder.rng
    wide, deep = lot / 3, lot / 2
    for row in (-1, 1):
        for column in range(3):
            plot = place.at((column - 1) * wide, row * deep / 2, 0.0 if row < 0 else np.pi)
            size = (rng.uniform(8.5, 10.5), rng.uniform(7.0, 8.5))
            home = plot.at(rng.uniform(-0.8, 0.8), -deep / 2 + 8.5, rng.normal(0, 0.04))
            house(builder, home, size, 3.1 * int(rng.integers(1, 3)) + 0.6)
            builder.slab(plot.at(-wide / 2 + 1.9, -deep / 2 + 4.0), (2.8, 8.0), 0.03, DRIVE)
            if rng.random() < 0.75:
                car(builder, plot.at(-wide / 2 + 1.9, -deep / 2 + 4.4, np.pi / 2))
            builder.slab(
                plot.at(0.5, -deep / 2 + 14.4), (5.5, 2.6), 0.04, Paint(Kind.DECK, linear(172, 130, 92), params=(0.8,))
            )
            builder.slab(plot.at(0.6, deep / 2 - 4.4), (wide - 3.0, 6.4), 0.02, LAWN)
            if rng.random() < 0.45:
                builder.slab(plot.at(1.2, deep / 2 - 4.0), (6.2, 3.6), 0.05, PATH)
                builder.slab(plot.at(1.2, deep / 2 - 4.0), (5.0, 2.4), 0.09, POOL)
            else:
                tree(builder, plot.at(rng.uniform(-2, 3), deep / 2 - 4.0), rng.uniform(4.5, 7.5))
            builder.box(plot.at(wide / 2 - 0.5, 0), (0.9, deep - 3.0), (0.0, 1.5), HEDGE)
            tree(builder, plot.at(wide / 2 - 2.5, -deep / 2 + 2.4), rng.uniform(3.5, 5.5))


def _offices(builder: MeshBuilder, place: Placement, lot: float, heights: tuple[float, float]) -> None:
    """A tower and two lower blocks on a paved square with a car park."""
    rng = builder.rng
    place = place.at(0, 0, int(rng.integers(4)) * np.pi / 2)
    quarter = lot / 4
    tower(builder, place.at(-quarter + 1.0, quarter - 1.0), (17.0, 17.0), heights[1] * rng.uniform(0.85, 1.0))
    middle = rng.uniform(0.4, 0.65) * heights[1]
    flat_block(builder, place.at(quarter + 1.5, quarter + 1.0), (15.0, 16.0), max(middle, heights[0]), shop=True)
    flat_block(
        builder, place.at(-quarter + 1.0, -quarter - 2.0), (19.0, 12.0), max(middle * 0.6, heights[0]), shop=False
    )
    for row in (0, 1):
        parking(builder, place.at(quarter + 1.0, -quarter - 4.6 + row * 11.0), 6, 0.65)
    trees(builder, place.at(quarter + 1.0, -quarter + 0.9), (14.0, 3.0), 3, (4.5, 6.5))
    for x in np.arange(-lot / 2 + 4, lot / 2 - 20, 5.5):
        builder.slab(place.at(x, 0.6), (2.4, 2.4), 0.05, BED)
        tree(builder, place.at(x, 0.6), rng.uniform(4.0, 6.0))


def _park(builder: MeshBuilder, place: Placement, lot: float, heights: tuple[float, float]) -> None:
    """Lawns, paths, a pond, a playing court and many trees."""
    rng = builder.rng
    place = place.at(0, 0, int(rng.integers(4)) * np.pi / 2)
    for turn in (0.0, np.pi / 2):
        builder.slab(place.at(0, 0, turn), (lot, 2.4), 0.02 + 0.01 * (turn > 0), PATH)
    for turn in (np.pi / 4, 3 * np.pi / 4):
        builder.slab(place.at(0, 0, turn), (lot * 1.1, 1.7), 0.04 + 0.01 * (turn > 1), PATH)
    ring = np.linspace(0, 2 * np.pi, 25)[:-1]
    plaza = np.stack([6.2 * np.cos(ring), 6.2 * np.sin(ring), np.full(24, 0.07)], axis=1)
    builder.polygon(place.world(plaza), Paint(Kind.PAVING, linear(214, 196, 164), params=(1.2,)))
    basin = np.stack([3.2 * np.cos(ring), 3.2 * np.sin(ring), np.full(24, 0.5)], axis=1)
    builder.polygon(place.world(basin), POOL)
    for index in range(24):
        rim = place.at(3.35 * np.cos(ring[index]), 3.35 * np.sin(ring[index]), ring[index])
        builder.box(rim, (0.5, 1.0), (0.0, 0.62), CONCRETE)
    quarter = lot / 4
    lobes = 1 + 0.22 * np.sin(2 * ring + rng.uniform(0, 6)) + 0.1 * np.sin(3 * ring)
    pond = np.stack([8.5 * lobes * np.cos(ring), 6.2 * lobes * np.sin(ring), np.full(24, 0.06)], axis=1)
    shore = pond * [1.14, 1.17, 0.8]
    builder.polygon(place.at(quarter + 1, quarter + 2).world(shore), PATH)
    builder.polygon(place.at(quarter + 1, quarter + 2).world(pond), POND)
    court = Paint(Kind.COURT, linear(176, 92, 70), linear(84, 128, 92), (17.0, 11.0))
    builder.slab(place.at(-quarter - 0.5, -quarter - 3.0), (17.0, 11.0), 0.09, court)
    trees(builder, place.at(-quarter - 0.5, quarter + 0.5), (17.0, 17.0), 12, (6.0, 11.0))
    trees(builder, place.at(quarter + 0.5, -quarter - 0.5), (17.0, 17.0), 9, (5.0, 9.0))
    trees(builder, place.at(-quarter - 0.5, -5.0), (17.0, 3.0), 3, (5.0, 7.0))
    builder.box(place.at(6.0, -9.0, 0.3), (4.0, 4.0), (0.0, 2.4), CONCRETE)
    builder.frustum(
        place.at(6.0, -9.0, 0.3),
        (5.2, 5.2),
        (0.2, 0.2),
        (2.4, 4.4),
        Paint(Kind.TILES, linear(98, 96, 102), linear(60, 60, 60), (3.2, 0.8, 0.2)),
    )


def _industry(builder: MeshBuilder, place: Placement, lot: float, heights: tuple[float, float]) -> None:
    """A saw-tooth hall, a flat store, a yard with lorries and containers."""
    rng = builder.rng
    place = place.at(0, 0, int(rng.integers(4)) * np.pi / 2)
    hall(builder, place.at(-3.0, lot / 4 - 0.5), (lot - 10.0, lot / 2 - 5.0), max(heights[0], 7.0))
    flat_block(builder, place.at(-lot / 4 + 0.5, -lot / 4 - 2.5), (18.0, 13.0), max(heights[0], 6.2), shop=False)
    parking(builder, place.at(lot / 4 + 0.5, -lot / 2 + 3.6), 7, 0.75)
    paints = (
        linear(178, 74, 52),
        linear(56, 98, 142),
        linear(88, 122, 84),
        linear(200, 156, 62),
        linear(158, 160, 160),
    )
    for row in range(2):
        for column in range(3):
            if rng.random() < 0.85:
                paint = Paint(Kind.DECK, paints[int(rng.integers(5))], params=(0.9,))
                high = 2.6 * int(rng.integers(1, 3))
                builder.box(
                    place.at(lot / 4 - 4.4 + column * 5.0, -7.6 + row * 6.6, np.pi / 2), (6.1, 2.5), (0.0, high), paint
                )
    for index in range(2):
        lorry = place.at(lot / 2 - 3.2, 6.0 + index * 5.2, np.pi + rng.normal(0, 0.03))
        builder.box(lorry, (6.2, 2.4), (0.5, 3.2), Paint(Kind.PLAIN, paints[index], params=(0.05,)))
        builder.box(lorry.at(4.1, 0), (1.7, 2.3), (0.4, 2.6), METAL)
    trees(builder, place.at(-lot / 2 + 3.0, -lot / 4 + 1), (3.0, 15.0), 3, (5.0, 7.5))


def _terraces(builder: MeshBuilder, place: Placement, lot: float, heights: tuple[float, float]) -> None:
    """Two rows of terraced houses back to back, small gardens between fences."""
    rng, units = builder.rng, 6
    wide = (lot - 3.0) / units
    for turn in (0.0, np.pi):
        row = place.at(0, 0, turn)
        for index in range(units):
            x = (index + 0.5) * wide - (lot - 3.0) / 2
            house_on_street(builder, row.at(x, -lot / 2 + 8.0), (wide, 9.0), 6.2 + 0.5 * int(rng.integers(0, 4)))
            builder.slab(row.at(x, -lot / 2 + 1.8), (1.6, 3.4), 0.03, DRIVE)
            builder.slab(row.at(x, -lot / 2 + 13.8), (wide - 0.6, 2.6), 0.03, DRIVE)
            builder.slab(row.at(x, -lot / 2 + 18.3), (wide - 0.6, 5.6), 0.02, LAWN)
            builder.box(
                row.at(x + wide / 2, -lot / 2 + 17.5),
                (0.4, 9.6),
                (0.0, 1.6),
                Paint(Kind.DECK, linear(140, 106, 78), params=(0.8,)),
            )
            if rng.random() < 0.6:
                builder.box(
                    row.at(x - wide * 0.2, -1.9),
                    (2.2, 2.2),
                    (0.0, 2.2),
                    Paint(Kind.DECK, linear(122, 98, 80), params=(0.7,)),
                )
            if rng.random() < 0.7:
                tree(builder, row.at(x + wide * 0.12, -lot / 2 + 18.0), rng.uniform(3.5, 6.0))
    builder.box(place, (lot - 4.0, 0.8), (0.0, 1.5), HEDGE)


def _street_side(builder: MeshBuilder, place: Placement, plan: StreetPlan) -> None:
    """Trees on the pavements and parked cars along the four kerbs of a block."""
    rng = builder.rng
    edge = plan.pitch / 2 - plan.road_half
    for turn in range(4):
        side = place.at(0, 0, turn * np.pi / 2)
        for x in np.arange(-edge + 8.0, edge - 6.0, 8.25):
            if rng.random() < 0.5:
                builder.slab(side.at(x, -edge + 0.9), (1.3, 1.3), 0.03, BED)
                tree(builder, side.at(x, -edge + 0.9), rng.uniform(5.5, 8.5))
        for x in np.arange(-edge + 11.0, edge - 9.0, 5.5):
            if rng.random() < 0.4:
                car(builder, side.at(x, -edge - 1.05, rng.normal(0, 0.02) + np.pi * (rng.random() < 0.5)))


def _fields(builder: MeshBuilder, plan: StreetPlan) -> None:
    """Trees, alone and in groups, on a ring of farmland around the city."""
    rng = builder.rng
    half_x, half_y = plan.half_size
    inner, outer = plan.road_half + plan.pavement + 3.0, 75.0
    count = int(0.0022 * ((2 * half_x + 2 * outer) * (2 * half_y + 2 * outer) - 4 * half_x * half_y))
    for spot in rng.uniform(-1, 1, size=(count, 2)) * [half_x + outer, half_y + outer]:
        if np.maximum(abs(spot[0]) - half_x, abs(spot[1]) - half_y) > inner:
            for _ in range(int(rng.choice([1, 1, 2, 5]))):
                tree(builder, Placement(*(spot + rng.normal(0, 3.0, 2))), rng.uniform(5.0, 10.0))
