"""The ground of a procedural city: a grid of streets with markings and pavements, lots inside, fields around.

Colour is a function of the point alone (z = 0, world metres), evaluated where rays hit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_distill.data.city_mesh import linear
from scene_distill.data.city_noise import Noise, band, mix, stripes

ASPHALT = np.array(linear(124, 123, 122), np.float32)
MARKING = np.array(linear(180, 179, 173), np.float32)
PAVEMENT = np.array(linear(158, 154, 146), np.float32)
KERB = np.array(linear(172, 169, 162), np.float32)
GRASS = np.array(linear(112, 128, 78), np.float32)
MEADOW = np.array([linear(134, 142, 94), linear(114, 130, 82), linear(160, 150, 110), linear(134, 122, 98)], np.float32)
PLAZA = np.array(linear(160, 153, 140), np.float32)
YARD = np.array(linear(122, 119, 114), np.float32)

LOT_GRASS, LOT_PAVED, LOT_YARD = 0, 1, 2
"""What covers a lot where nothing stands on it."""


@dataclass(frozen=True, eq=False)
class StreetPlan:
    """A grid of blocks_x x blocks_y equal blocks centred on the origin, streets along their borders.

    ``pitch`` is the distance between street centre lines, ``road_half`` half a carriageway and ``pavement`` its width,
    all in metres. ``lot_ground`` [blocks_x, blocks_y] holds a LOT_* code.
    """

    blocks_x: int
    blocks_y: int
    pitch: float
    road_half: float
    pavement: float
    lot_ground: np.ndarray

    @property
    def half_size(self) -> tuple[float, float]:
        """Half the extent (x, y) of the city between its outermost centre lines, metres."""
        return self.blocks_x * self.pitch / 2, self.blocks_y * self.pitch / 2

    @property
    def lot(self) -> float:
        """Side of the square lot inside a block's pavements, metres."""
        return self.pitch - 2 * (self.road_half + self.pavement)

    def block_center(self, i: int, j: int) -> tuple[float, float]:
        """World (x, y) of the centre of block (i, j)."""
        half_x, half_y = self.half_size
        return (i + 0.5) * self.pitch - half_x, (j + 0.5) * self.pitch - half_y


def _line_offset(x: np.ndarray, half: float, count: int, pitch: float) -> np.ndarray:
    """Signed distance [n] from coordinate ``x`` to the nearest of the street centre lines 0..count."""
    return x + half - np.clip(np.rint((x + half) / pitch), 0, count) * pitch


def ground_colors(plan: StreetPlan, x: np.ndarray, y: np.ndarray, blur: np.ndarray, noise: Noise) -> np.ndarray:
    """Linear reflectance [n, 3] of the ground at world (x, y) [n], averaged over ``blur`` [n] metres."""
    half_x, half_y = plan.half_size
    off_x = _line_offset(x, half_x, plan.blocks_x, plan.pitch)
    off_y = _line_offset(y, half_y, plan.blocks_y, plan.pitch)
    dist_x, dist_y = np.abs(off_x), np.abs(off_y)
    outside = np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)
    nearest = np.minimum(dist_x, dist_y)
    on_road = (nearest < plan.road_half) & (outside < plan.road_half)
    on_pavement = ~on_road & (nearest < plan.road_half + plan.pavement) & (outside < plan.road_half + plan.pavement)
    in_field = outside >= plan.road_half + plan.pavement

    color = np.empty((len(x), 3), np.float32)
    along_y = dist_x < dist_y
    pick = np.flatnonzero(on_road)
    if pick.size:
        side = np.where(along_y, off_x, off_y)[pick]
        along = np.where(along_y, y, x)[pick]
        to_crossing = np.where(along_y, dist_y, dist_x)[pick]
        color[pick] = _road(plan, side, along, to_crossing, blur[pick], noise)
    pick = np.flatnonzero(on_pavement)
    if pick.size:
        kerb = band(nearest[pick], plan.road_half, plan.road_half + 0.35, blur[pick])
        color[pick] = mix(slabs(x[pick], y[pick], blur[pick], noise, PAVEMENT, 1.5), KERB, kerb)
    pick = np.flatnonzero(in_field)
    if pick.size:
        color[pick] = _field(x[pick], y[pick], blur[pick], noise)
    pick = np.flatnonzero(~(on_road | on_pavement | in_field))
    if pick.size:
        color[pick] = _lot(plan, x[pick], y[pick], blur[pick], noise)
    return color


def _road(
    plan: StreetPlan, side: np.ndarray, along: np.ndarray, to_crossing: np.ndarray, blur: np.ndarray, noise: Noise
) -> np.ndarray:
    """Asphalt and markings: ``side`` signed distance to the centre line, ``to_crossing`` distance to the next one."""
    lane = np.abs(side)
    shade = 0.86 + 0.2 * noise.smooth(side * 0.3 + 40, along * 0.09)
    shade += 0.10 * noise.smooth(side * 1.1, along * 0.9)
    shade -= 0.13 * band(lane, 1.1, 2.0, 0.8)
    patch = noise.cells(along / 9.0, side / 3.0 + 60)
    shade = np.where(patch > 0.9, shade * 0.76, np.where(patch < 0.06, shade * 1.2, shade))
    color = ASPHALT * shade[:, None]

    clear = plan.road_half + plan.pavement + 0.3
    dashes = stripes(along, 6.0, 3.0, blur) * band(lane, -0.16, 0.16, blur) * (to_crossing > clear + 3.0)
    parking = band(lane, plan.road_half - 2.25, plan.road_half - 2.07, blur) * (to_crossing > clear + 4.0)
    bays = stripes(along, 5.5, 0.18, blur) * (lane > plan.road_half - 2.25) * (to_crossing > clear + 4.0)
    zebra = stripes(lane, 1.3, 0.65, blur) * band(to_crossing, plan.road_half + 0.3, plan.road_half + 2.9, blur)
    zebra *= lane < plan.road_half - 0.4
    stop = band(to_crossing, clear + 1.2, clear + 1.6, blur) * (lane < plan.road_half - 2.2) * (lane > 0.3)
    paint = np.clip(dashes + 0.7 * (parking + bays) + zebra + stop, 0, 1) * (to_crossing > plan.road_half)
    manhole = np.hypot(side - 1.5, np.mod(along, 17.0) - 8.5) < 0.42
    color = mix(color, MARKING, paint * (0.78 + 0.2 * noise.smooth(side * 2, along * 2)))
    return np.where(manhole[:, None], color * np.float32(0.45), color)


def slabs(
    x: np.ndarray, y: np.ndarray, blur: np.ndarray, noise: Noise, color: np.ndarray, size: np.ndarray | float
) -> np.ndarray:
    """Paving slabs of ``size`` metres in slightly different tones of ``color`` with dark joints, [n, 3]."""
    shade = 0.91 + 0.12 * noise.cells(x / size, y / size, 5) + 0.12 * (noise.smooth(x * 0.25, y * 0.25) - 0.5)
    joints = np.maximum(stripes(x, size, 0.09, blur), stripes(y, size, 0.09, blur))
    return color * (shade * (1 - 0.3 * joints))[:, None]


def grass(x: np.ndarray, y: np.ndarray, noise: Noise, color: np.ndarray) -> np.ndarray:
    """Lawn: ``color`` ([3] or [n, 3]) with worn and lush patches, [n, 3]."""
    coarse, fine = noise.smooth(x * 0.16, y * 0.16), noise.smooth(x * 0.75 + 9, y * 0.75)
    shade = 0.74 + 0.36 * coarse + 0.16 * fine
    dry = np.array([1.16, 1.02, 0.85], np.float32)
    return color * shade[:, None] * (1 + (dry - 1) * (noise.smooth(x * 0.33 + 70, y * 0.33)[:, None] * 1.6 - 0.3))


def _lot(plan: StreetPlan, x: np.ndarray, y: np.ndarray, blur: np.ndarray, noise: Noise) -> np.ndarray:
    """Whatever covers a lot that nothing stands on."""
    half_x, half_y = plan.half_size
    i = np.clip((x + half_x) / plan.pitch, 0, plan.blocks_x - 1).astype(np.int32)
    j = np.clip((y + half_y) / plan.pitch, 0, plan.blocks_y - 1).astype(np.int32)
    code = plan.lot_ground[i, j]
    color = grass(x, y, noise, GRASS)
    paved, yard = code == LOT_PAVED, code == LOT_YARD
    if paved.any():
        color[paved] = slabs(x[paved], y[paved], blur[paved], noise, PLAZA, 2.4)
    if yard.any():
        color[yard] = YARD * (0.8 + 0.4 * noise.smooth(x[yard] * 0.2, y[yard] * 0.2))[:, None]
    return color


def _field(x: np.ndarray, y: np.ndarray, blur: np.ndarray, noise: Noise) -> np.ndarray:
    """Farmland around the city: a patchwork of parcels with soft furrows."""
    bend_x, bend_y = noise.smooth(x / 60.0, y / 60.0 + 30), noise.smooth(x / 60.0 + 30, y / 60.0)
    parcel_x, parcel_y = (x + 34 * bend_x) / 46.0 + 0.37, (y + 34 * bend_y) / 38.0 + 0.61
    pick = noise.cells(parcel_x, parcel_y, 11)
    color = MEADOW[(pick * len(MEADOW)).astype(np.int32)]
    across = np.where(noise.cells(parcel_x, parcel_y, 12) > 0.5, x + 6 * bend_x, y + 6 * bend_y)
    furrows = stripes(across, 2.8, 1.2, np.maximum(blur, 0.5))
    edge = np.maximum(stripes(parcel_x * 46.0, 46.0, 1.6, blur), stripes(parcel_y * 38.0, 38.0, 1.6, blur))
    color = grass(x * 0.7, y * 0.7, noise, color) * (1 - 0.09 * furrows * (pick > 0.3))[:, None]
    return mix(color, GRASS * np.float32(0.62), edge)
