"""The box a scene lives in and the contraction that folds all of space around it into a cube.

A scene has a region that many photographs look at and a surrounding that few do. The region gets a box, aligned with
the ground; the contraction keeps the box's inside as it is and folds the unbounded outside into a shell around it, so
that cells of the cube own every point of space (Momentum-GS specification, section 2; mip-NeRF 360 with the maximum
norm).

Work: one pass over the observations and a handful of passes over the points, all in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scene_distill.blocks.visibility import FAR_DEPTHS, Visibility, observe
from scene_distill.core import seeds
from scene_distill.core.errors import UserError
from scene_distill.data.scene import Scene

EDGE = 2.0**-53
"""Contracted coordinates are kept in [EDGE, 1 - EDGE], the open unit interval as float64 can say it."""

MAX_TILT_DEG = 15.0
"""A fitted ground that leans more than this away from the scene's up is a facade or a fluke, and is not used."""

MAX_ROUGHNESS = 0.03
"""... nor one whose median residual exceeds this share of the footprint: an object or a room has no ground."""


@dataclass(frozen=True, eq=False)
class ContractedSpace:
    """A ground-aligned box in world space and the map of all of space into the open unit cube.

    axes [3, 3]: ``x_ground = axes @ x_world``, rows are orthonormal and right-handed, the last is up. box_min, box_max
    [3] in ground coordinates, in the scene's unit. ground: height of the ground along the last axis. how: one line
    telling how the box was found.
    """

    axes: np.ndarray
    box_min: np.ndarray
    box_max: np.ndarray
    ground: float
    how: str = "given"

    def __post_init__(self) -> None:
        if not (np.asarray(self.box_max) > np.asarray(self.box_min)).all():
            raise UserError(
                f"the box from {self.box_min} to {self.box_max} is empty; its maximum must exceed its minimum"
            )

    def ground_from_world(self, points: np.ndarray) -> np.ndarray:
        """Ground coordinates [P, 3] of world points [P, 3]: two horizontal axes, then height."""
        return np.asarray(points, dtype=np.float64) @ self.axes.T

    def world_from_ground(self, points: np.ndarray) -> np.ndarray:
        """World coordinates [P, 3] of ground points [P, 3]."""
        return np.asarray(points, dtype=np.float64) @ self.axes

    def contract(self, points: np.ndarray) -> np.ndarray:
        """Contracted coordinates [P, 3] in (0, 1)³ of world points [P, 3].

        x' = 2 (x - min) / (max - min) - 1;  m = max |x'|;  x' <- (2 - 1/m) x'/m where m > 1;  y = x'/4 + 1/2
        (Momentum-GS specification, section 2). The box becomes [1/4, 3/4]³. Raises ValueError on non-finite points.
        """
        ground = self.ground_from_world(points)
        if not np.isfinite(ground).all():
            raise ValueError("only finite points have a place in space")
        unit = 2 * (ground - self.box_min) / (self.box_max - self.box_min) - 1
        norm = np.maximum(np.abs(unit).max(axis=1, keepdims=True), 1.0)
        return np.clip((2 - 1 / norm) * (unit / norm) / 4 + 0.5, EDGE, 1 - EDGE)

    def expand(self, contracted: np.ndarray) -> np.ndarray:
        """World points [P, 3] of contracted coordinates [P, 3] in (0, 1)³: the inverse of `contract`."""
        folded = 4 * (np.asarray(contracted, dtype=np.float64) - 0.5)
        norm = np.abs(folded).max(axis=1, keepdims=True)
        outside = np.maximum(norm, 1.0)
        unit = folded / outside / (2 - outside)
        return self.world_from_ground((unit + 1) / 2 * (self.box_max - self.box_min) + self.box_min)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and floats; Python's JSON writes them so that they come back exactly."""
        arrays = {"axes": self.axes, "box_min": self.box_min, "box_max": self.box_max}
        return {name: np.asarray(value).tolist() for name, value in arrays.items()} | {
            "ground": float(self.ground),
            "how": self.how,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ContractedSpace:
        """The space that `to_dict` wrote."""
        axes, low, high = (np.asarray(data[name], dtype=np.float64) for name in ("axes", "box_min", "box_max"))
        return cls(axes, low, high, float(data["ground"]), str(data["how"]))


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, quantiles: list[float]) -> np.ndarray:
    """Smallest values [Q] with at least the given shares of the total weight at or below them; values, weights [P]."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    places = np.searchsorted(cumulative, np.asarray(quantiles) * cumulative[-1])
    return values[order][np.minimum(places, len(values) - 1)]


def automatic_bounds(scene: Scene, visibility: Visibility | None = None) -> ContractedSpace:
    """The box of the region that the train photographs look at, aligned with its ground.

    1. A point weighs as many observations as it has at a plausible depth (`FAR_DEPTHS` median depths of the view),
       which silences horizon points and outliers however far away they are.
    2. Ground: the low points of each patch of the footprint carry a robust plane; its normal is the vertical when it is
       within `MAX_TILT_DEG` of ``scene.up`` and the patches agree on it, else ``scene.up`` is.
    3. Horizontal axes: principal axes of the footprint of points and cameras (world axes where it is nearly round).
    4. Box: 1 % to 99 % of the weight per horizontal axis, 2 % margin. The vertical side is 20 % longer at both ends and
       also holds the cameras, so that towers are not folded sideways and a cell stands over its footprint like a prism.

    Raises `UserError` when up is not a direction or when all visible points coincide.
    """
    visibility = visibility if visibility is not None else observe(scene)
    weights = visibility.weights(len(scene.points))
    visible = np.flatnonzero(weights)
    points, weights = scene.points[visible], weights[visible]
    centers = np.stack([frame.camera.center for frame in scene.train_frames])
    upright = _upright_axes(np.asarray(scene.up, dtype=np.float64))
    normal, story = _ground_normal(points @ upright.T, weights)
    leveled = _upright_axes(normal @ upright, keep=upright[0])
    axes = _turned_to_footprint(leveled, points, weights, centers)
    ground = points @ axes.T
    low, high = np.empty(3), np.empty(3)
    for axis in range(2):
        low[axis], high[axis] = weighted_quantiles(ground[:, axis], weights, [0.01, 0.99])
    heights, camera_heights = ground[:, 2], centers @ axes[2]
    bottom, floor, top = weighted_quantiles(heights, weights, [0.01, 0.1, 0.99])
    camera_bottom, camera_top = np.quantile(camera_heights, [0.02, 0.98])
    low[2] = min(bottom - 0.2 * (top - bottom), camera_bottom)
    high[2] = max(top + 0.2 * (top - bottom), camera_top)
    extent = high - low
    if not extent[:2].max() > 0:
        raise UserError(f"all visible points of {scene.root} lie on one spot, so there is no footprint to split")
    margin = np.maximum(extent, 1e-3 * extent.max()) * [0.02, 0.02, 0.05]
    source = "projections (no tracks)" if visibility.by_projection else "tracks"
    how = (
        f"{len(visible)} of {len(scene.points)} points by their {source}, up to {FAR_DEPTHS:g} median depths; {story}; "
        "1-99 % of the observations on each side, cameras included vertically"
    )
    return ContractedSpace(axes, low - margin, high + margin, float(floor), how)


def _upright_axes(up: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """Right-handed axes [3, 3], the last ``up``; the first is ``keep``, or the most level world axis, made level."""
    length = np.linalg.norm(up) if up.shape == (3,) else 0.0
    if not (np.isfinite(length) and length > 0):
        raise UserError(f"the scene's up axis is {up}, which is no direction; give it three finite numbers")
    up = up / length
    first = np.eye(3)[np.argmin(np.round(np.abs(up), 6))] if keep is None else keep
    first = first - up * (first @ up)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(up, first), up])


def _ground_normal(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, str]:
    """Unit ground normal [3] in the upright frame of ``points`` [P, 3], and how it was found."""
    vertical = np.array([0.0, 0.0, 1.0])
    side = max(np.ptp(weighted_quantiles(points[:, axis], weights, [0.02, 0.98])) for axis in range(2))
    low = _low_points(points, weights, side)
    if len(low) < 8:
        return vertical, "up as given (too few points for a ground plane)"
    if np.linalg.svd(low[:, :2] - low[:, :2].mean(axis=0), compute_uv=False)[-1] < side / 16 * np.sqrt(len(low)):
        return vertical, "up as given (the footprint is a line)"
    slopes, scatter = _robust_plane(low)
    tilt = float(np.degrees(np.arctan(np.hypot(*slopes))))
    if tilt > MAX_TILT_DEG or scatter > MAX_ROUGHNESS * side:
        return vertical, f"up as given (low points lean {tilt:.1f}° and scatter {scatter / side:.1%} of the footprint)"
    normal = np.array([-slopes[0], -slopes[1], 1.0])
    return normal / np.linalg.norm(normal), f"ground plane {tilt:.1f}° from the given up"


def _low_points(points: np.ndarray, weights: np.ndarray, side: float) -> np.ndarray:
    """A low point (15th percentile of height) of each square patch, ``side`` / 16 wide, with five points [L, 3]."""
    if side <= 0:
        return np.empty((0, 3))
    corner = [weighted_quantiles(points[:, axis], weights, [0.02])[0] for axis in range(2)]
    places = np.floor((points[:, :2] - corner) / (side / 16))
    inside = ((places >= 0) & (places < 17)).all(axis=1)
    members, patches = points[inside], places[inside].astype(np.int64) @ [17, 1]
    groups = (members[patches == patch] for patch in np.unique(patches))
    low = [[*group[:, :2].mean(axis=0), np.quantile(group[:, 2], 0.15)] for group in groups if len(group) >= 5]
    return np.array(low).reshape(-1, 3)


def _robust_plane(low: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes [2] of the plane z = a x + b y + c through most of the points [L, 3], and their median distance from it.

    Of 300 planes through three points the one with the least median residual (Rousseeuw 1984) starts least squares
    reweighted with Tukey's biweight, so up to half the patches may stand on roofs.
    """
    low = low - low.mean(axis=0)
    design = np.column_stack([low[:, :2], np.ones(len(low))])
    triples = np.argsort(seeds.numpy_generator("ground plane").random((300, len(low))), axis=1)[:, :3]
    triples = triples[np.abs(np.linalg.det(design[triples])) > 1e-6 * np.abs(low[:, :2]).max() ** 2]
    planes = np.linalg.solve(design[triples], low[triples, 2][..., None])[..., 0]
    planes = np.concatenate([planes, np.linalg.lstsq(design, low[:, 2], rcond=None)[0][None]])
    plane = planes[np.argmin(np.median(np.abs(planes @ design.T - low[:, 2]), axis=1))]
    for _ in range(20):
        residual = np.abs(design @ plane - low[:, 2])
        scatter = max(float(np.median(residual)), 1e-9 * float(np.abs(low).max()))
        trust = np.clip(1 - (residual / (6 * scatter)) ** 2, 0, None)
        plane = np.linalg.lstsq(design * trust[:, None], low[:, 2] * trust, rcond=None)[0]
    return plane[:2], float(np.median(np.abs(design @ plane - low[:, 2])))


def _turned_to_footprint(axes: np.ndarray, points: np.ndarray, weights: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """``axes`` turned about up so that the first follows the longer principal axis of the footprint.

    Points and cameras weigh the same in total; 2 % of the weight at each end of each axis is ignored. A footprint whose
    principal spreads differ by less than 10 % keeps the axes it has, since its principal axes mean nothing.
    """
    footprint = np.concatenate([points, centers]) @ axes[:2].T
    mass = np.concatenate([weights / weights.sum(), np.full(len(centers), 1 / len(centers))])
    for axis in range(2):
        low, high = weighted_quantiles(footprint[:, axis], mass, [0.02, 0.98])
        mass = np.where((footprint[:, axis] < low) | (footprint[:, axis] > high), 0.0, mass)
    if mass.sum() <= 0:
        return axes
    centered = footprint - np.average(footprint, axis=0, weights=mass)
    covariance = (centered * mass[:, None]).T @ centered
    variances, directions = np.linalg.eigh(covariance)
    if variances[1] < 1.1**2 * variances[0]:
        return axes
    longest = directions[:, 1] * (1 if directions[np.argmax(np.abs(directions[:, 1])), 1] > 0 else -1)
    return _upright_axes(axes[2], keep=longest @ axes[:2])
