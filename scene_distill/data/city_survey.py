"""How a procedural city is surveyed: where the drone takes photos, and the sparse points that matching would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.seeds import numpy_generator
from scene_distill.data.city_ground import StreetPlan
from scene_distill.data.city_renderer import CityRenderer

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Flight:
    """The drone's habits: per block ``nadir_side``^2 photos straight down and ``obliques`` looking in from around.

    ``altitude_m`` above ground; ``oblique_pitch_deg`` below the horizon; images ``width`` x ``height`` pixels with a
    focal length of ``focal`` image widths.
    """

    nadir_side: int
    obliques: int
    altitude_m: float
    oblique_pitch_deg: float
    width: int
    height: int
    focal: float


def fly(plan: StreetPlan, flight: Flight, seed: int) -> dict[str, Camera]:
    """Cameras by photo stem (block, kind, number), equally many per block, in name order.

    Nadir photos stand on a square grid over the block and fly alternate lines in opposite directions; obliques look at
    the block's middle from evenly spread headings. Positions and headings wander a little, as a drone does.
    """
    cameras = {}
    for i in range(plan.blocks_x):
        for j in range(plan.blocks_y):
            rng = numpy_generator(seed, "city", "flight", i, j)
            center = np.array([*plan.block_center(i, j), 0.0])
            for index in range(flight.nadir_side**2):
                pose = _nadir_pose(center, plan.pitch, flight, index, rng)
                cameras[f"b{i:02d}x{j:02d}_nadir_{index:02d}"] = _camera(flight, pose)
            first = (i + 2 * j) % 2 * 0.5
            for index in range(flight.obliques):
                pose = _oblique_pose(center, flight, 2 * np.pi * (index + first) / flight.obliques, rng)
                cameras[f"b{i:02d}x{j:02d}_oblique_{index:02d}"] = _camera(flight, pose)
    return dict(sorted(cameras.items()))


def _camera(flight: Flight, cam_from_world: np.ndarray) -> Camera:
    focal = flight.focal * flight.width
    return Camera(flight.width, flight.height, focal, focal, flight.width / 2, flight.height / 2, cam_from_world)


def _nadir_pose(center: np.ndarray, pitch: float, flight: Flight, index: int, rng: np.random.Generator) -> np.ndarray:
    row, column = divmod(index, flight.nadir_side)
    step = pitch / flight.nadir_side
    offset = (np.array([column, row]) + 0.5) * step - pitch / 2 + rng.normal(0, 0.6, 2)
    position = center + np.array([*offset, flight.altitude_m + rng.normal(0, 0.5)])
    target = position * [1, 1, 0] + [*rng.normal(0, 0.03 * flight.altitude_m, 2), 0]
    heading = np.pi / 2 + (np.pi if row % 2 else 0.0) + rng.normal(0, 0.03)
    return look_at(position, target, np.array([np.cos(heading), np.sin(heading), 0.0]))


def _oblique_pose(center: np.ndarray, flight: Flight, heading: float, rng: np.random.Generator) -> np.ndarray:
    heading = heading + rng.normal(0, 0.06)
    target = center + np.array([*rng.normal(0, 2.5, 2), 4.0])
    back = (flight.altitude_m - 4.0) / np.tan(np.radians(flight.oblique_pitch_deg + rng.normal(0, 1.5)))
    position = target - [back * np.cos(heading), back * np.sin(heading), 0]
    position[2] = flight.altitude_m + rng.normal(0, 0.5)
    return look_at(position, target, UP)


@dataclass(frozen=True, eq=False)
class SparsePoints:
    """P points of matched features: xyz [P, 3] float64 metres, colors [P, 3] uint8, errors [P] float64 mean pixels.

    Observations are sorted by point: point [O] int64 row, frame [O] int64 row of the cameras, pixels [O, 2] float64.
    """

    xyz: np.ndarray
    colors: np.ndarray
    errors: np.ndarray
    point: np.ndarray
    frame: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class Matching:
    """How well features match: points wanted, share of visible features found, errors (sigma) of points and pixels."""

    count: int
    found_share: float = 0.55
    noise_m: float = 0.03
    noise_px: float = 0.35
    least_views: int = 2


def survey_points(
    renderer: CityRenderer,
    cameras: list[Camera],
    photos: list[np.ndarray],
    depths: list[np.ndarray],
    matching: Matching,
    rng: np.random.Generator,
) -> SparsePoints:
    """Sparse points as structure-from-motion would find them, with exactly visible tracks.

    Pixels are drawn where photos [H, W, 3] have contrast, lifted with their depths [H, W], thinned to one per 15 cm
    cell, and looked for in every photo by casting rays; a random share of the sightings is kept. A point needs
    ``least_views`` of them. Its position is off by ``noise_m`` per axis, its keypoints by ``noise_px``.
    """
    exact, colors = _candidates(cameras, photos, depths, int(matching.count * 1.6), rng)
    _, keep = np.unique(np.floor(exact / 0.15).astype(np.int64), axis=0, return_index=True)
    keep = rng.permutation(keep)
    exact, colors = exact[keep], colors[keep]
    found = np.zeros((len(cameras), len(exact)), bool)
    for row, camera in enumerate(cameras):
        seen = renderer.visible(camera, exact)
        found[row] = seen & (rng.random(len(exact)) < matching.found_share)
    enough = np.flatnonzero(found.sum(axis=0) >= matching.least_views)[: matching.count]
    exact, colors, found = exact[enough], colors[enough], found[:, enough]
    point, frame = np.nonzero(found.T)
    pixels = np.empty((len(point), 2))
    for row, camera in enumerate(cameras):
        mine = frame == row
        pixels[mine] = camera.project(exact[point[mine]])[0]
    offsets = np.clip(rng.normal(0, matching.noise_px, pixels.shape), -2 * matching.noise_px, 2 * matching.noise_px)
    size = np.array([cameras[0].width, cameras[0].height])
    pixels = np.clip(pixels + offsets, 0, size - 1e-3)
    errors = np.bincount(point, np.linalg.norm(offsets, axis=1), len(exact)) / np.maximum(
        np.bincount(point, minlength=len(exact)), 1
    )
    return SparsePoints(exact + rng.normal(0, matching.noise_m, exact.shape), colors, errors, point, frame, pixels)


def _candidates(
    cameras: list[Camera], photos: list[np.ndarray], depths: list[np.ndarray], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """World points [n, 3] float64 and colours [n, 3] uint8 of textured pixels, about ``count`` over all photos."""
    share = -(-count // len(cameras))
    points, colors = [], []
    for camera, photo, depth in zip(cameras, photos, depths, strict=True):
        grey = photo.astype(np.float32).mean(axis=2)
        contrast = np.abs(np.gradient(grey, axis=0)) + np.abs(np.gradient(grey, axis=1))
        weight = np.where(depth > 0, np.minimum(contrast, 24) + 10, 0).ravel()
        picked = rng.choice(
            weight.size, size=min(share, int((weight > 0).sum())), replace=False, p=weight / weight.sum()
        )
        row, column = np.divmod(picked, camera.width)
        points.append(unproject(camera, column + 0.5, row + 0.5, depth[row, column]))
        colors.append(photo[row, column])
    return np.concatenate(points), np.concatenate(colors)


def unproject(camera: Camera, columns: np.ndarray, rows: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """World points [n, 3] float64 at pixel positions [n] and depths [n] along the optical axis."""
    in_cam = np.stack(
        [(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(len(columns))], axis=1
    )
    return (in_cam * depth_m[:, None]) @ camera.cam_from_world[:3, :3] + camera.center
