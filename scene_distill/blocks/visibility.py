"""Which train view sees which point, and where in its image: the raw material of partition and assignment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_distill.core.errors import UserError
from scene_distill.data.scene import Scene
from scene_distill.data.visibility import visible_points

GRID = 8
"""Side of the grid laid over every image: one bin is 1/64 of the picture, so a share of bins is a share of its area."""

FAR_DEPTHS = 3.0
"""An observation deeper than this many median depths of its view is horizon or an outlier: it does not shape bounds."""


@dataclass(frozen=True, eq=False)
class Visibility:
    """O observations, sorted by view; every array below is [O] unless it says otherwise.

    frame: index into ``scene.train_frames``; point: index into ``scene.points``; bin: image bin in [0, GRID²),
    row-major; near: whether the depth is at most `FAR_DEPTHS` medians of its view. ``depth_m`` [V] is each view's
    median depth in the scene's unit (nan where it sees nothing). ``by_projection`` says that no tracks were used
    and that points count as seen where they project into the image and are not behind nearer ones.
    """

    frame: np.ndarray
    point: np.ndarray
    bin: np.ndarray
    near: np.ndarray
    depth_m: np.ndarray
    by_projection: bool

    def weights(self, count: int) -> np.ndarray:
        """Near observations of each of ``count`` points, [P] float64: how many rendered primitives it stands for."""
        return np.bincount(self.point[self.near], minlength=count).astype(np.float64)


def observe(scene: Scene, by_projection: bool = False) -> Visibility:
    """All observations of the train views, from the tracks (``Frame.seen``), or by projection where there are none.

    ``by_projection`` asks for the latter although there are tracks. Points behind their camera and non-finite points
    are dropped, and so are far points found by projection, which mean little. Raises `UserError` when there
    are no train frames, no points, or no view sees any point.
    """
    frames = scene.train_frames
    if not frames:
        raise UserError(
            f"{scene.root} has no training photo left, so there is nothing to split; check the held-out list"
        )
    if len(scene.points) == 0:
        raise UserError(
            f"{scene.root} has no points, and blocks start from points; run structure-from-motion on the photos"
        )
    finite = np.isfinite(scene.points).all(axis=1)
    everything = np.flatnonzero(finite)
    by_projection = by_projection or not any(len(frame.seen) for frame in frames)
    columns: list[tuple[np.ndarray, ...]] = []
    depth_m = np.full(len(frames), np.nan)
    for index, frame in enumerate(frames):
        camera = frame.camera
        if by_projection:
            ids = everything[visible_points(camera, scene.points[everything])]
        else:
            ids = np.unique(frame.seen[finite[frame.seen]])
        pixels, depth = camera.project(scene.points[ids])
        ids, pixels, depth = ids[depth > 0], pixels[depth > 0], depth[depth > 0]
        if len(ids) == 0:
            continue
        depth_m[index] = np.median(depth)
        near = depth <= FAR_DEPTHS * depth_m[index]
        if by_projection:
            ids, pixels, near = ids[near], pixels[near], near[near]
        cells = np.clip(pixels / [camera.width, camera.height] * GRID, 0, GRID - 1).astype(np.int64)
        columns.append((np.full(len(ids), index), ids, cells[:, 1] * GRID + cells[:, 0], near))
    if not columns:
        raise UserError(
            f"no training photo of {scene.root} sees any of its {len(scene.points)} points; check the poses"
        )
    frame_ids, point_ids, bins, near = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return Visibility(frame_ids, point_ids, bins, near, depth_m, by_projection)
