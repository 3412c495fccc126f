"""Photographs and exact depth of a procedural city by ray casting (Embree through `embreex`, on the CPU).

Light is a sun with hard shadows plus a sky whose openness is measured once on a coarse lattice. All is Lambertian:
a point has one radiance, whoever looks. A photo takes 2 x 2 samples per pixel, weighted (1 3 3 1)/8 per axis, averaged
in linear light, then exposed, rolled off in the highlights and sRGB-encoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.seeds import numpy_generator
from scene_distill.data.city_layout import City
from scene_distill.data.city_mesh import Kind
from scene_distill.data.city_noise import Noise
from scene_distill.data.city_textures import surface_colors

SUN = np.array([1.75, 1.65, 1.46], np.float32)
SKY = np.array([0.78, 0.86, 0.97], np.float32)
BOUNCE = np.array([0.20, 0.18, 0.15], np.float32)
HAZE = np.array([0.62, 0.72, 0.82], np.float32)
EXPOSURE = 0.64
VEIL = 0.016
"""Light scattered into every pixel by air and lens: the darkest grey of an aerial photograph is not black."""
_BAND = 96
_LATTICE_M = (1.5, 1.5, 2.5)


@dataclass(frozen=True, eq=False)
class _Openness:
    """Share of the sky [nx, ny, nz] float32 seen from lattice points starting at ``origin`` [3], `_LATTICE_M` apart."""

    origin: np.ndarray
    share: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """Trilinear openness [n] at ``points`` [n, 3]; beyond the lattice the nearest value."""
        from scipy.ndimage import map_coordinates

        index = ((points - self.origin) / np.array(_LATTICE_M, np.float32)).T
        return map_coordinates(self.share, index, order=1, mode="nearest", output=np.float32)


class CityRenderer:
    """Casts rays into a city.

    ``sun`` is (azimuth from north, elevation) in degrees. Pictures may be taken in several threads at once and do not
    depend on how many. Raises `UserError` when `embreex` is not installed.
    """

    def __init__(self, city: City, seed: int, sun: tuple[float, float]) -> None:
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError as error:
            raise UserError(
                "a procedural city needs embreex to cast rays; install it with pip install 'scene-distill[city]'"
            ) from error
        self.city = city
        self._scene = EmbreeScene()
        self._triangles = TriangleMesh(self._scene, city.mesh.vertices, city.mesh.faces)
        self._noise = Noise(numpy_generator(seed, "city", "noise"))
        azimuth, elevation = np.radians(sun)
        flat = np.array([np.sin(azimuth), np.cos(azimuth)]) * np.cos(elevation)
        self._sun = np.array([*flat, np.sin(elevation)], np.float32)
        self._occluded(np.zeros((1, 3), np.float32), np.array([[0, 0, 1]], np.float32))
        self._openness = self._measure_openness()

    # ------------------------------------------------------------------------------------------------------ rays

    def _occluded(self, origins: np.ndarray, directions: np.ndarray, reach: np.ndarray | None = None) -> np.ndarray:
        """True [n] where something lies on the ray within ``reach`` direction lengths (default: anywhere)."""
        hit = self._scene.run(
            np.ascontiguousarray(origins, np.float32),
            np.ascontiguousarray(directions, np.float32),
            None if reach is None else np.ascontiguousarray(reach, np.float32),
            query="OCCLUDED",
        )
        return hit >= 0

    def _measure_openness(self) -> _Openness:
        """Cast a fixed cosine-weighted fan of rays from every lattice point above the city."""
        half_x, half_y = self.city.plan.half_size
        roof = float(self.city.mesh.vertices[:, 2].max())
        low, high = (
            np.array([-half_x - 24, -half_y - 24, 0.4], np.float32),
            np.array([half_x + 24, half_y + 24, roof + 2.5], np.float32),
        )
        axes = [
            np.arange(a, b + step, step, dtype=np.float32) for a, b, step in zip(low, high, _LATTICE_M, strict=True)
        ]
        turns = np.arange(20) * np.pi * (3 - 5**0.5)
        radius = np.sqrt((np.arange(20) + 0.5) / 20)
        fan = np.stack([radius * np.cos(turns), radius * np.sin(turns), np.sqrt(1 - radius**2)], axis=1).astype(
            np.float32
        )
        share = np.empty([len(axis) for axis in axes], np.float32)
        for i, x in enumerate(axes[0]):
            y, z = np.meshgrid(axes[1], axes[2], indexing="ij")
            points = np.stack([np.full(y.size, x, np.float32), y.ravel(), z.ravel()], axis=1)
            blocked = self._occluded(np.repeat(points, len(fan), axis=0), np.tile(fan, (len(points), 1)))
            share[i] = 1 - blocked.reshape(*y.shape, len(fan)).mean(axis=2)
        return _Openness(np.array([axis[0] for axis in axes], np.float32), share)

    @staticmethod
    def _rays(camera: Camera, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """World directions [n, 3] float32 through pixel positions, scaled to depth one along the optical axis."""
        in_cam = np.stack(
            [(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones_like(rows)], axis=1
        )
        return (in_cam @ camera.cam_from_world[:3, :3]).astype(np.float32)

    def _first_hits(self, camera: Camera, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Face index [n] (-1: none) and depth [n] along the optical axis of what each ray meets first."""
        origins = np.broadcast_to(camera.center.astype(np.float32), directions.shape)
        found = self._scene.run(np.ascontiguousarray(origins), directions, output=1)
        return found["primID"], found["tfar"]

    # --------------------------------------------------------------------------------------------------- pictures

    def depth(self, camera: Camera) -> np.ndarray:
        """Depth [H, W] float32 metres along the optical axis at pixel centres; 0 where nothing is hit."""
        rows, columns = np.meshgrid(np.arange(camera.height) + 0.5, np.arange(camera.width) + 0.5, indexing="ij")
        face, depth = self._first_hits(camera, self._rays(camera, columns.ravel(), rows.ravel()))
        return np.where(face >= 0, depth, 0).astype(np.float32).reshape(camera.height, camera.width)

    def photo(self, camera: Camera) -> np.ndarray:
        """An sRGB photograph [H, W, 3] uint8."""
        width, height = 2 * camera.width + 2, 2 * camera.height + 2
        radiance = np.empty((height, width, 3), np.float32)
        columns = (np.arange(width) - 0.5) / 2
        for top in range(0, height, _BAND):
            rows = (np.arange(top, min(top + _BAND, height)) - 0.5) / 2
            grid_y, grid_x = np.meshgrid(rows, columns, indexing="ij")
            directions = self._rays(camera, grid_x.ravel(), grid_y.ravel())
            radiance[top : top + _BAND] = self._radiance(camera, directions).reshape(len(rows), width, 3)
        kernel = np.array([1, 3, 3, 1], np.float32) / 8
        rows_done = sum(kernel[k] * radiance[k : k + 2 * camera.height : 2] for k in range(4))
        pixels = sum(kernel[k] * rows_done[:, k : k + 2 * camera.width : 2] for k in range(4))
        return develop(np.asarray(pixels))

    def _radiance(self, camera: Camera, directions: np.ndarray) -> np.ndarray:
        """Linear radiance [n, 3] along rays from the camera."""
        face, depth = self._first_hits(camera, directions)
        hit = face >= 0
        out = np.broadcast_to(HAZE, directions.shape).copy()
        if not hit.any():
            return out
        whole = bool(hit.all())
        rays = directions if whole else directions[hit]
        face, depth = (face, depth) if whole else (face[hit], depth[hit])
        position = camera.center.astype(np.float32) + rays * depth[:, None]
        lit = self._lit_colors(position, rays, face, depth * np.float32(0.5 / camera.fx))
        if whole:
            return lit
        out[hit] = lit
        return out

    def _lit_colors(self, position: np.ndarray, rays: np.ndarray, face: np.ndarray, spacing: np.ndarray) -> np.ndarray:
        """Reflectance times light at hit points [n, 3]; ``spacing`` [n] is the sample distance facing the camera."""
        mesh = self.city.mesh
        surface = mesh.face_surface[face]
        normal = mesh.normals[face]
        facing = np.einsum("ni,ni->n", normal, rays)
        normal = np.where((facing > 0)[:, None], -normal, normal)
        slant = np.abs(facing) / np.linalg.norm(rays, axis=1)
        albedo = surface_colors(mesh, self.city.plan, surface, position, spacing / np.maximum(slant, 0.35), self._noise)

        lift = np.full(len(face), 0.01, np.float32)
        leaves = np.flatnonzero(mesh.kinds[surface] == Kind.FOLIAGE)
        if leaves.size:
            outward = position[leaves] - mesh.frames[surface[leaves], 0]
            outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-6)
            normal[leaves] = 0.45 * normal[leaves] + 0.55 * outward
            lift[leaves] = 0.12
        sunlit = np.clip(normal @ self._sun, 0, 1)
        toward = np.flatnonzero(sunlit > 0)
        start = position[toward] + normal[toward] * lift[toward, None]
        sunlit[toward[self._occluded(start, np.broadcast_to(self._sun, start.shape))]] = 0
        openness = self._openness.at(position + normal * np.float32(1.1)) * (0.75 + 0.25 * normal[:, 2])
        light = SUN * sunlit[:, None] + SKY * openness[:, None] + BOUNCE * (1 - 0.5 * normal[:, 2:])
        return albedo * light

    def visible(self, camera: Camera, points: np.ndarray, slack_m: float = 0.02) -> np.ndarray:
        """True [P] for world points [P, 3] in the picture with nothing in front of them (but for ``slack_m``)."""
        pixels, depth = camera.project(points)
        inside = (depth > 0.1) & (pixels >= 0).all(axis=1) & (pixels < [camera.width, camera.height]).all(axis=1)
        index = np.flatnonzero(inside)
        rays = (points[index] - camera.center).astype(np.float32)
        reach = 1 - slack_m / np.maximum(np.linalg.norm(rays, axis=1), slack_m)
        origins = np.broadcast_to(camera.center.astype(np.float32), rays.shape)
        seen = np.zeros(len(points), bool)
        seen[index] = ~self._occluded(origins, rays, reach)
        return seen


def develop(radiance: np.ndarray) -> np.ndarray:
    """sRGB bytes of linear radiance [..., 3]: exposure and veil, a soft shoulder above 0.45, IEC 61966-2-1 encoding."""
    value = radiance * np.float32(EXPOSURE) + np.float32(VEIL)
    knee = np.float32(0.45)
    value = np.where(value > knee, knee + (1 - knee) * (1 - np.exp(-(value - knee) / (1 - knee))), value)
    encoded = np.where(value <= 0.0031308, 12.92 * value, 1.055 * np.maximum(value, 1e-8) ** (1 / 2.4) - 0.055)
    return np.clip(np.rint(encoded * 255), 0, 255).astype(np.uint8)
