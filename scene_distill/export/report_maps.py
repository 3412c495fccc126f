"""Maps of a scene for a page: its points from above or from the side, its cameras, and how many photos see where."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.data.scene import Scene
from scene_distill.export.report_charts import ticks
from scene_distill.export.report_page import picture

SIZE_PX = 560
CELL_PX = 10
MARGIN = 0.06
_FEW_TO_MANY = np.array([[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [68, 1, 84]], float)


class View:
    """A parallel projection of a scene on two axes [3] each; the first points right, the second up. It shows all but
    the farthest 1 % of the points, and all cameras. Its longer side has ``size_px`` pixels."""

    def __init__(self, scene: Scene, right: np.ndarray, up: np.ndarray, size_px: int = SIZE_PX) -> None:
        self.scene, self.axes = scene, np.stack([right, up])
        self.points = scene.points @ self.axes.T
        centers = np.stack([frame.camera.center for frame in scene.frames]) @ self.axes.T
        low, high = np.percentile(self.points, [0.5, 99.5], axis=0)
        near, far = np.percentile(centers, [1, 99], axis=0)
        low, high = np.minimum(low, near), np.maximum(high, far)
        room = MARGIN * float((high - low).max()) or 1.0
        self.low, self.high = low - room, high + room
        self.scale = size_px / float((self.high - self.low).max())
        self.width, self.height = (max(1, round(float(side) * self.scale)) for side in self.high - self.low)

    def pixels(self, positions: np.ndarray) -> np.ndarray:
        """Pixels [N, 2] of projected positions [N, 2]."""
        across = (positions - self.low) * self.scale
        return np.stack([across[:, 0], self.height - across[:, 1]], axis=1)

    def inside(self, pixels: np.ndarray) -> np.ndarray:
        """Which pixels [N, 2] lie on the map, [N] bool."""
        return ((pixels >= 0) & (pixels < [self.width, self.height])).all(axis=1)

    def svg(self, image: np.ndarray, over: str, unit: str) -> str:
        """The map: a picture [H, W, 3] uint8 with marks over it and a scale bar."""
        length = ticks(0.0, 0.3 * self.width / self.scale, 2)[-1] or 1.0
        bar = length * self.scale
        y = self.height - 14
        scale = (
            f'<rect x="6" y="{y - 20}" width="{bar + 14:.1f}" height="26" fill="#fff" fill-opacity="0.85"/>'
            f'<path d="M12 {y - 4}V{y}H{12 + bar:.1f}V{y - 4}" fill="none" stroke="#1b1f24" stroke-width="1.5"/>'
            f'<text x="14" y="{y - 6}" style="fill:#1b1f24">{length:g} {unit}</text>'
        )
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}">'
            f'<image href="{picture(image)}" width="{self.width}" height="{self.height}"/>{over}{scale}</svg>'
        )


def point_map(view: View, colors: np.ndarray, over: str, unit: str) -> str:
    """Points in their colours [P, 3] uint8 on white, those nearer to the viewer over others; ``over`` is SVG."""
    depth = view.scene.points @ np.cross(view.axes[0], view.axes[1])
    order = np.argsort(depth, kind="stable")
    pixels = np.floor(view.pixels(view.points[order])).astype(int)
    image = np.full((view.height, view.width, 3), 255, np.uint8)
    shown = view.inside(pixels)
    kept, shades = pixels[shown], colors[order][shown]
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        image[np.minimum(kept[:, 1] + dy, view.height - 1), np.minimum(kept[:, 0] + dx, view.width - 1)] = shades
    return view.svg(image, over, unit)


def camera_marks(view: View, cameras: Sequence[Camera], colors: Sequence[str]) -> str:
    """SVG of the cameras: a dot each, and a line in the direction of view."""
    centers = np.stack([camera.center for camera in cameras]) @ view.axes.T
    looks = np.stack([camera.cam_from_world[2, :3] for camera in cameras]) @ view.axes.T
    radius = 4.0 if len(cameras) < 400 else 2.0
    parts = []
    for (x, y), (dx, dy), color in zip(view.pixels(centers), looks, colors, strict=True):
        end = f"{x + 4 * radius * dx:.1f} {y - 4 * radius * dy:.1f}"
        parts.append(f'<path d="M{x:.1f} {y:.1f}L{end}" stroke="{color}" stroke-width="1.4"/>')
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}" stroke="#fff" stroke-width="0.8"/>'
        )
    return "".join(parts)


def view_counts(view: View, unit: str) -> str:
    """How many photos see the points of each cell (median over its points), with a legend; white where no point is."""
    scene = view.scene
    seen = np.bincount(np.concatenate([frame.seen for frame in scene.frames]), minlength=len(scene.points))
    pixels = view.pixels(view.points)
    inside = view.inside(pixels)
    cells = (pixels[inside] // CELL_PX).astype(int)
    columns, lines = -(-view.width // CELL_PX), -(-view.height // CELL_PX)
    cell = cells[:, 1] * columns + cells[:, 0]
    order = np.lexsort((seen[inside], cell))
    numbers, first, counts = np.unique(cell[order], return_index=True, return_counts=True)
    medians = seen[inside][order][first + counts // 2].astype(float)
    most = max(float(np.percentile(medians, 95)), 4.0) if len(medians) else 4.0
    grid = np.full((lines * columns, 3), 255, np.uint8)
    grid[numbers] = shades(np.log(np.maximum(medians, 1)) / math.log(most))
    image = grid.reshape(lines, columns, 3).repeat(CELL_PX, 0).repeat(CELL_PX, 1)[: view.height, : view.width]
    return view.svg(image, "", unit) + _legend(most)


def shades(shares: np.ndarray) -> np.ndarray:
    """Colours [N, 3] uint8 from light (0) to dark (1) of shares [N], clipped."""
    place = np.clip(shares, 0, 1) * (len(_FEW_TO_MANY) - 1)
    index = np.minimum(place.astype(int), len(_FEW_TO_MANY) - 2)
    blend = (place - index)[:, None]
    return (_FEW_TO_MANY[index] * (1 - blend) + _FEW_TO_MANY[index + 1] * blend).round().astype(np.uint8)


def _legend(most: float) -> str:
    values = np.unique(np.geomspace(1, most, 6).round().astype(int))
    colors = shades(np.log(values) / math.log(most))
    chips = (
        f'<span><span class="chip" style="background:rgb({r},{g},{b})"></span>{value}</span>'
        for value, (r, g, b) in zip(values, colors, strict=True)
    )
    return f'<div class="legend">{"".join(chips)}<span>photos</span></div>'
