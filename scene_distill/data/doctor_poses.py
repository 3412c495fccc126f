"""Are the cameras where they should be? Tilt and roll, neighbours, shared points, parallax, and scale against GPS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from scene_distill.core import seeds
from scene_distill.data.geodesy import enu_from_gps, read_gps, similarity
from scene_distill.data.scene import Frame, Scene

SHARED_LEAST = 5
"""Points that two photos must share to count as connected."""

FAR = 8.0
"""A camera stands alone when its nearest other is this many times as far as is usual."""

ROLL_DEG = 25.0
"""Roll against the up axis at which a photo that is otherwise held level stands out."""

FEW_POINTS = 0.1
"""A photo sees few points when it sees less than this share of the median."""

POINTS_ASKED = 2000
PHOTOS_WITH_GPS = 5
GPS_AGREES = 0.1
"""Scale against GPS that passes for exact; consumer GPS over a few hundred metres is better than that."""


@dataclass(frozen=True)
class Poses:
    """What the cameras say; angles in degrees, lengths in the scene's unit.

    ``down`` is how far views look below the horizon (5th, 50th, 95th percentile), ``level`` the median roll of views
    that are not nadir (None without such), ``height`` the median height of cameras above the points they see,
    ``spacing`` the median distance to the nearest other camera, ``parallax`` the median of the largest angle under
    which a point is seen. ``groups`` are the sizes of sets of photos that share no points with one another, the largest
    first, ``apart`` the names outside the largest. ``gps_scale`` is scene lengths over GPS metres, None without GPS.
    """

    down: tuple[float, float, float]
    level: float | None
    height: float
    spacing: float
    parallax: float
    groups: list[int]
    apart: list[str]
    far: list[str]
    rolled: list[str]
    few_points: list[str]
    gps_photos: int
    gps_scale: float | None


def examine_poses(scene: Scene) -> Poses:
    """The diagnosis of all poses of a scene."""
    frames = scene.frames
    centers = np.stack([frame.camera.center for frame in frames])
    rotations = np.stack([frame.camera.cam_from_world[:3, :3] for frame in frames])
    down = np.degrees(np.arcsin(np.clip(-rotations[:, 2] @ scene.up, -1, 1)))
    roll, level = _rolls(rotations, scene.up, down)
    distances = cKDTree(centers).query(centers, k=min(2, len(centers)))[0].reshape(len(centers), -1)[:, -1]
    counts = np.array([len(frame.seen) for frame in frames])
    groups, apart = _groups(scene)
    gps_photos, gps_scale = _gps_scale(scene, centers)
    typical = float(np.median(distances))
    low, middle, high = (float(v) for v in np.percentile(down, [5, 50, 95]))
    usual = np.median(counts[counts > 0]) if (counts > 0).any() else 0
    return Poses(
        down=(low, middle, high),
        level=level,
        height=_height(scene, centers),
        spacing=typical,
        parallax=_parallax(scene, centers),
        groups=groups,
        apart=apart,
        far=_names(frames, (distances > FAR * typical) & (typical > 0)),
        rolled=_names(frames, roll > ROLL_DEG),
        few_points=_names(frames, counts < FEW_POINTS * usual),
        gps_photos=gps_photos,
        gps_scale=gps_scale,
    )


def _names(frames: tuple[Frame, ...], chosen: np.ndarray) -> list[str]:
    return [frame.name for frame, is_chosen in zip(frames, chosen, strict=True) if is_chosen]


def _rolls(rotations: np.ndarray, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Roll of every view in degrees against the horizon, 0 for views steeper than 60 degrees, whose roll says nothing,
    and where most others are rolled too (hand-held portraits); and the median of those that say something."""
    level = np.abs(down) < 60
    if not level.any():
        return np.zeros(len(down)), None
    roll = np.degrees(np.arcsin(np.clip(np.abs(rotations[:, 0] @ up), 0, 1)))
    middle = float(np.median(roll[level]))
    return np.where(level & (middle < ROLL_DEG / 2), roll, 0.0), middle


def _height(scene: Scene, centers: np.ndarray) -> float:
    heights = [
        float(np.median((center - scene.points[frame.seen]) @ scene.up))
        for center, frame in zip(centers, scene.frames, strict=True)
        if len(frame.seen)
    ]
    return float(np.median(heights)) if heights else 0.0


def _observations(scene: Scene) -> coo_array:
    """Which frame sees which point, [F, P]."""
    rows = np.repeat(np.arange(len(scene.frames)), [len(frame.seen) for frame in scene.frames])
    columns = np.concatenate([frame.seen for frame in scene.frames])
    return coo_array((np.ones(len(rows), np.int32), (rows, columns)), (len(scene.frames), len(scene.points)))


def _groups(scene: Scene) -> tuple[list[int], list[str]]:
    """Sizes of the sets of photos that are connected through shared points, and the names outside the largest."""
    seen = _observations(scene).tocsr()
    shared = (seen @ seen.T).tocoo()
    strong = shared.data >= SHARED_LEAST
    count, label = connected_components(
        coo_array((shared.data[strong], (shared.coords[0][strong], shared.coords[1][strong])), shared.shape), False
    )
    sizes = np.bincount(label, minlength=count)
    largest = int(sizes.argmax())
    return sorted(map(int, sizes), reverse=True), _names(scene.frames, label != largest)


def _parallax(scene: Scene, centers: np.ndarray) -> float:
    """Median over points of the largest angle in degrees between two rays to it, of at most 2000 points."""
    seen = _observations(scene).tocsc()
    counts = np.diff(seen.indptr)
    asked = np.flatnonzero(counts >= 2)
    if len(asked) == 0:
        return 0.0
    asked = asked[seeds.numpy_generator(0, "parallax").permutation(len(asked))[:POINTS_ASKED]]
    angles = []
    for point in asked:
        rays = centers[seen.indices[seen.indptr[point] : seen.indptr[point + 1]]] - scene.points[point]
        rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
        angles.append(np.arccos(np.clip((rays @ rays.T).min(), -1, 1)))
    return float(np.degrees(np.median(angles)))


def _gps_scale(scene: Scene, centers: np.ndarray) -> tuple[int, float | None]:
    """Photos with GPS, and scene lengths over GPS metres when these fix a scale."""
    positions = {}
    for index, frame in enumerate(scene.frames):
        try:
            found = read_gps(frame.path)
        except OSError:
            found = None
        if found is not None:
            positions[index] = found
    if len(positions) < PHOTOS_WITH_GPS:
        return len(positions), None
    origin = np.array(next(iter(positions.values())))
    enu = np.stack([enu_from_gps(np.array(position), origin) for position in positions.values()])
    mine = centers[list(positions)]
    if enu.std(0).max() < 2.0 or mine.std(0).max() == 0:
        return len(positions), None
    scale, rotation, translation = similarity(enu, mine)
    residual = float(np.median(np.linalg.norm(scale * enu @ rotation.T + translation - mine, axis=1)))
    spread = float(np.linalg.norm(mine - mine.mean(0), axis=1).mean())
    return len(positions), scale if scale > 0 and residual < 0.1 * spread else None


def pose_problems(poses: Poses, unit: str) -> list[tuple[str, list[str]]]:
    """What deserves a look: a sentence and the photos it is about."""
    found = []
    if len(poses.groups) > 1:
        sizes = ", ".join(map(str, poses.groups[:5])) + (" ..." if len(poses.groups) > 5 else "")
        found.append((f"photos fall into {len(poses.groups)} groups ({sizes}) that share no points", poses.apart))
    if poses.far:
        found.append((f"{len(poses.far)} cameras stand far from all others", poses.far))
    if poses.rolled:
        found.append((f"{len(poses.rolled)} cameras are rolled against the others", poses.rolled))
    if poses.few_points:
        found.append((f"{len(poses.few_points)} photos see few points", poses.few_points))
    if 0 < poses.parallax < 4:
        found.append((f"points are seen under {poses.parallax:.1f} degrees only: their depth is uncertain", []))
    if unit == "metre" and poses.gps_scale is not None and abs(poses.gps_scale - 1) > GPS_AGREES:
        found.append((f"lengths are {poses.gps_scale:.3g} times what the photos' GPS says", []))
    return found
