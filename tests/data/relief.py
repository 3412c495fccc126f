"""A small world made in numpy: textured relief seen by a drone, for tests that need photos which match."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from scene_distill.core.cameras import look_at
from scene_distill.data.lens import Lens

HALF = 12.0  # metres from the middle of the world to its border


@lru_cache(maxsize=2)
def rays_of(lens: Lens) -> np.ndarray:
    """The rays [H, W, 2] of a lens's pixels."""
    u, v = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    return lens.undistorted(np.stack([(u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy], -1))


class Relief:
    """Ground z = height(x, y) in metres with a texture that has detail at every scale; z is up."""

    def __init__(self, seed: int = 0, cells: int = 900) -> None:
        rng = np.random.default_rng(seed)
        self._height = 60 * gaussian_filter(rng.normal(size=(cells, cells)), 40)
        layers = [gaussian_filter(rng.normal(size=(cells, cells, 3)), (s, s, 0)) for s in (0.8, 2, 5, 15)]
        texture = sum(layer / layer.std() for layer in layers)
        self._texture = (128 + 45 * texture).clip(0, 255)
        self._cells = cells

    def _sample(self, field: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        scale = (self._cells - 1) / (2 * HALF)
        return map_coordinates(field, [(y + HALF) * scale, (x + HALF) * scale], order=1, mode="mirror")

    def height(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self._sample(self._height, x, y)

    def photo(self, lens: Lens, cam_from_world: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] seen through a lens, rays met with the ground by fixed-point iteration."""
        rays = rays_of(lens)
        directions = np.concatenate([rays, np.ones((*rays.shape[:2], 1))], -1) @ cam_from_world[:3, :3]
        center = -cam_from_world[:3, :3].T @ cam_from_world[:3, 3]
        ground = np.zeros(rays.shape[:2])
        for _ in range(6):
            reach = (ground - center[2]) / directions[..., 2]
            x, y = center[0] + reach * directions[..., 0], center[1] + reach * directions[..., 1]
            ground = self.height(x, y)
        return np.stack([self._sample(self._texture[..., c], x, y) for c in range(3)], -1).astype(np.uint8)


def drone_poses(columns: int = 4, rows: int = 3, spacing: float = 1.6, altitude: float = 8.0) -> list[np.ndarray]:
    """cam_from_world of a slightly wobbling nadir grid flown back and forth."""
    rng = np.random.default_rng(1)
    poses = []
    for row in range(rows):
        for column in range(columns):
            center = np.array([(column - (columns - 1) / 2) * spacing, (row - (rows - 1) / 2) * spacing, altitude])
            center += rng.normal(0, 0.15, 3)
            heading = np.array([0.0, 1.0 if row % 2 == 0 else -1.0, 0.0])
            poses.append(look_at(center, center * [1, 1, 0] + rng.normal(0, 0.4, 3), heading))
    return poses


def write_gps(image: Image.Image, latitude: float, longitude: float, altitude: float) -> Image.Exif:
    """EXIF of ``image`` with a position (north, east, above the sea)."""

    def parts(angle: float) -> tuple[float, float, float]:
        degrees, rest = int(angle), (angle - int(angle)) * 60
        return float(degrees), float(int(rest)), (rest - int(rest)) * 60

    exif = image.getexif()
    gps = exif.get_ifd(0x8825)
    gps.update({1: "N", 2: parts(latitude), 3: "E", 4: parts(longitude), 5: b"\x00", 6: altitude})
    return exif


def write_photos(folder: Path, lens: Lens, poses: list[np.ndarray], origin: tuple[float, float] | None) -> None:
    """Photos p00.jpg … of a relief; with GPS tags about ``origin`` (latitude, longitude) when given."""
    folder.mkdir(parents=True, exist_ok=True)
    relief = Relief()
    for index, pose in enumerate(poses):
        image = Image.fromarray(relief.photo(lens, pose))
        options = {}
        if origin:
            east, north, up = -pose[:3, :3].T @ pose[:3, 3]
            latitude = origin[0] + north / 110_574.0
            longitude = origin[1] + east / (111_320.0 * np.cos(np.radians(origin[0])))
            options["exif"] = write_gps(image, latitude, longitude, 100.0 + up)
        image.save(folder / f"p{index:02d}.jpg", quality=95, **options)
