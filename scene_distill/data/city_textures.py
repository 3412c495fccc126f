"""Materials of a procedural city: the colour of every painted patch as a function of where a ray hit it.

Each material takes the same `Hits` and returns linear reflectance [n, 3]; `surface_colors` sends every hit to its own.
The meaning of a paint's numbers is written beside the material that reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scene_distill.data.city_ground import MARKING, StreetPlan, grass, ground_colors, slabs
from scene_distill.data.city_mesh import CityMesh, Kind
from scene_distill.data.city_noise import Noise, band, mix, stripes

GLASS_DARK = np.array([0.10, 0.12, 0.14], np.float32)
GLASS_SKY = np.array([0.18, 0.24, 0.30], np.float32)
BLIND = np.array([0.34, 0.33, 0.30], np.float32)


@dataclass(frozen=True, eq=False)
class Hits:
    """n points on surfaces of one kind.

    position [n, 3] world metres; u, v [n] texture metres; color, accent [n, 3]; params [n, PARAMS]; seed [n];
    blur [n] metres that one sample covers.
    """

    position: np.ndarray
    u: np.ndarray
    v: np.ndarray
    color: np.ndarray
    accent: np.ndarray
    params: np.ndarray
    seed: np.ndarray
    blur: np.ndarray


def _plain(hits: Hits, noise: Noise) -> np.ndarray:
    """One colour; params: (strength of its mottling)."""
    mottle = noise.smooth(hits.u * 0.8 + hits.seed * 99, hits.v * 0.8)
    return hits.color * (1 + hits.params[:, 0] * (mottle - 0.5))[:, None]


def _facade(hits: Hits, noise: Noise) -> np.ndarray:
    """Windows in a wall; params: (bay width, floor height, window width and height, shop floor 0/1, total height)."""
    bay, floor, wide, high, shop, total = hits.params.T
    column, row = np.floor(hits.u / bay), np.floor(hits.v / floor)
    ground = (row == 0) & (shop > 0.5)
    wide = np.where(ground, bay - 0.7, wide)
    high = np.where(ground, floor * 0.62, high)
    across, up = hits.u - 0.5 * bay, hits.v - np.where(ground, 0.42, 0.54) * floor
    salt = (hits.seed * 53).astype(np.int32)

    weather = 0.9 + 0.22 * noise.smooth(hits.u * 0.22 + hits.seed * 77, hits.v * 0.12)
    weather *= 0.84 + 0.16 * np.clip(hits.v / 2.5, 0, 1)
    color = hits.color * weather[:, None]
    string = stripes(hits.v, floor, 0.34, hits.blur) * (hits.v > 0.5 * floor)
    top = band(hits.v, total - 0.55, total + 1, hits.blur)
    color = mix(color, hits.accent, np.maximum(0.5 * string, top))
    frame = stripes(across, bay, wide + 0.44, hits.blur) * stripes(up, floor, high + 0.44, hits.blur)
    color = mix(color, hits.accent, 0.7 * frame)
    kind = noise.cells(column, row, salt)
    glass = np.where((kind > 0.86)[:, None], BLIND, GLASS_DARK + (GLASS_SKY - GLASS_DARK) * (kind * kind)[:, None])
    pane = stripes(across, bay, wide, hits.blur) * stripes(up, floor, high, hits.blur)
    pane *= 1 - 0.8 * stripes(across, bay, 0.1, hits.blur) * (wide > 1.0)
    color = mix(color, glass, pane)
    sign = ground * band(hits.v, floor * 0.78, floor * 0.97, hits.blur)
    hue = noise.cells(np.floor(column / 2), row, salt + 3)
    board = 0.24 + 0.10 * np.cos(2 * np.pi * (hue[:, None] + np.array([0.0, 0.36, 0.68], np.float32)))
    return mix(color, board.astype(np.float32), sign)


def _tiles(hits: Hits, noise: Noise) -> np.ndarray:
    """A pitched roof, v running up the slope; params: (slope length, course height, contrast)."""
    slope, course, contrast = hits.params[:, 0], hits.params[:, 1], hits.params[:, 2]
    salt = (hits.seed * 53).astype(np.int32)
    row = np.floor(hits.v / course)
    batch = noise.cells(hits.u / 0.9 + 0.5 * np.mod(row, 2), row, salt)
    shade = 1 + contrast * (batch - 0.5) - contrast * 1.2 * stripes(hits.v, course, course * 0.34, hits.blur)
    shade *= 0.82 + 0.36 * noise.smooth(hits.u * 0.3 + hits.seed * 91, hits.v * 0.22)
    color = hits.color * shade[:, None]
    moss = np.clip(noise.smooth(hits.u * 0.5 + 31, hits.v * 0.5 + hits.seed * 60) * 2.4 - 1.55, 0, 0.5)
    color = mix(color, np.array([[0.09, 0.11, 0.05]], np.float32), moss * (1 - np.clip(hits.v / slope, 0, 1)))
    ridge = band(hits.v, slope - 0.36, slope + 1, hits.blur)
    gutter = band(hits.v, -1, 0.22, hits.blur)
    return mix(mix(color, hits.accent, ridge), np.array([[0.30, 0.30, 0.31]], np.float32), gutter)


def _flat_roof(hits: Hits, noise: Noise) -> np.ndarray:
    """Roofing sheets with seams, stains and puddles; params: (sheet width, strength of the stains)."""
    sheet, strength = hits.params[:, 0], hits.params[:, 1]
    salt = (hits.seed * 53).astype(np.int32)
    shade = 0.9 + 0.2 * noise.cells(hits.u / sheet, hits.v / (sheet * 4), salt)
    stain = noise.smooth(hits.u * 0.28 + hits.seed * 83, hits.v * 0.28)
    shade *= 1 + strength * (stain - 0.5)
    seam = np.maximum(
        stripes(hits.u, sheet, 0.14, hits.blur), stripes(hits.v + hits.seed * 4, sheet * 4, 0.14, hits.blur)
    )
    color = mix(hits.color * shade[:, None], hits.accent, 0.55 * seam)
    puddle = (
        np.clip(noise.smooth(hits.u * 0.2 + 17, hits.v * 0.2 + hits.seed * 71) * 6 - 4.4, 0, 1)
        * np.minimum(strength, 0.5)
        * (strength > 0.28)
    )
    return color * (1 - puddle)[:, None]


def _solar(hits: Hits, noise: Noise) -> np.ndarray:
    """Solar modules in a light frame; params: (module width, module height)."""
    wide, high = hits.params[:, 0], hits.params[:, 1]
    tone = 0.8 + 0.4 * noise.cells(hits.u / wide, hits.v / high, 21)
    frame = np.maximum(stripes(hits.u, wide, 0.12, hits.blur), stripes(hits.v, high, 0.12, hits.blur))
    return mix(hits.color * tone[:, None], hits.accent, 0.7 * frame)


def _foliage(hits: Hits, noise: Noise) -> np.ndarray:
    """Leaves: clumps of light and dark around the base colour; params: (clumps per metre)."""
    x, y, z = hits.position.T
    rate = hits.params[:, 0]
    shift = hits.seed * 63
    clump = noise.smooth((x + 0.7 * z) * rate + shift, (y - 0.5 * z) * rate)
    fine = noise.smooth((x - z) * rate * 2.1, (y + 0.8 * z) * rate * 2.1 + shift)
    shade = 0.66 + 0.44 * clump + 0.2 * fine
    return hits.color * shade[:, None] + hits.accent * (np.clip(clump * 2 - 1.2, 0, 1) * 0.5)[:, None]


def _grass(hits: Hits, noise: Noise) -> np.ndarray:
    """Lawn, mown in stripes; params: (width of a mown stripe or 0)."""
    wide = np.maximum(hits.params[:, 0], 1e-3)
    mown = stripes(hits.u, 2 * wide, wide, hits.blur) * (hits.params[:, 0] > 0)
    return grass(hits.position[:, 0], hits.position[:, 1], noise, hits.color * (1 + 0.22 * mown)[:, None])


def _paving(hits: Hits, noise: Noise) -> np.ndarray:
    """Paving slabs; params: (slab size)."""
    return slabs(hits.u, hits.v, hits.blur, noise, hits.color, hits.params[:, 0])


def _parking(hits: Hits, noise: Noise) -> np.ndarray:
    """A parking row, bays side by side along u; params: (bay width, row depth)."""
    bay, depth = hits.params[:, 0], hits.params[:, 1]
    shade = 0.85 + 0.3 * noise.smooth(hits.u * 0.4 + hits.seed * 50, hits.v * 0.4)
    lines = np.maximum(stripes(hits.u, bay, 0.18, hits.blur), band(hits.v, depth - 0.2, depth, hits.blur))
    return mix(hits.color * shade[:, None], MARKING, 0.6 * lines)


def _court(hits: Hits, noise: Noise) -> np.ndarray:
    """A playing court with its lines; params: (length along u, width along v)."""
    long, wide = hits.params[:, 0], hits.params[:, 1]
    x, y = np.abs(hits.u - long / 2), np.abs(hits.v - wide / 2)
    blur, line = hits.blur, 0.22
    inner = (x < long / 2 - 1.2) & (y < wide / 2 - 1.2)
    color = np.where(inner[:, None], hits.color, hits.accent) * (0.92 + 0.16 * noise.smooth(hits.u, hits.v))[:, None]
    border = np.maximum(
        band(x, long / 2 - 1.2 - line, long / 2 - 1.2, blur) * (y < wide / 2 - 1.2),
        band(y, wide / 2 - 1.2 - line, wide / 2 - 1.2, blur) * (x < long / 2 - 1.2),
    )
    middle = band(x, -1, line / 2, blur) * (y < wide / 2 - 1.2)
    circle = band(np.hypot(x, y), wide * 0.16 - line / 2, wide * 0.16 + line / 2, blur)
    return mix(color, MARKING, np.maximum(np.maximum(border, middle), circle))


def _water(hits: Hits, noise: Noise) -> np.ndarray:
    """Still water: depth seen through it, no reflections (everything is Lambertian)."""
    depth = noise.smooth(hits.position[:, 0] * 0.3, hits.position[:, 1] * 0.3)
    return hits.color + (hits.accent - hits.color) * depth[:, None]


def _deck(hits: Hits, noise: Noise) -> np.ndarray:
    """Boards along v; params: (board width)."""
    wide = hits.params[:, 0]
    tone = 0.78 + 0.4 * noise.cells(hits.u / wide, hits.v / 4.0, 31)
    gap = stripes(hits.u, wide, 0.12, hits.blur)
    return hits.color * (tone * (1 - 0.5 * gap))[:, None]


_MATERIALS: dict[Kind, Callable[[Hits, Noise], np.ndarray]] = {
    Kind.PLAIN: _plain,
    Kind.FACADE: _facade,
    Kind.TILES: _tiles,
    Kind.FLAT_ROOF: _flat_roof,
    Kind.SOLAR: _solar,
    Kind.FOLIAGE: _foliage,
    Kind.GRASS: _grass,
    Kind.PAVING: _paving,
    Kind.PARKING: _parking,
    Kind.COURT: _court,
    Kind.WATER: _water,
    Kind.DECK: _deck,
}


def surface_colors(
    mesh: CityMesh, plan: StreetPlan, surface: np.ndarray, position: np.ndarray, blur: np.ndarray, noise: Noise
) -> np.ndarray:
    """Linear reflectance [n, 3] float32 at ``position`` [n, 3] on surfaces [n]; a sample covers ``blur`` [n] metres."""
    colors = np.empty((len(surface), 3), np.float32)
    kinds = mesh.kinds[surface]
    ground = np.flatnonzero(kinds == Kind.GROUND)
    if ground.size:
        x, y = position[ground, 0], position[ground, 1]
        colors[ground] = ground_colors(plan, x, y, blur[ground], noise)
    for kind, material in _MATERIALS.items():
        pick = np.flatnonzero(kinds == kind)
        if not pick.size:
            continue
        ids, at = surface[pick], position[pick]
        frames = mesh.frames[ids]
        offset = at - frames[:, 0]
        hits = Hits(
            position=at,
            u=np.einsum("ni,ni->n", offset, frames[:, 1]),
            v=np.einsum("ni,ni->n", offset, frames[:, 2]),
            color=mesh.colors[ids, 0],
            accent=mesh.colors[ids, 1],
            params=mesh.params[ids],
            seed=mesh.seeds[ids],
            blur=blur[pick],
        )
        colors[pick] = material(hits, noise)
    return np.clip(colors, 0.0, 1.0)
