"""Which photographs train which block, and which points a block starts from.

A photograph trains every block that fills a good part of it, so neighbouring blocks share the photographs along their
border; that overlap, with the points those photographs see beyond the cell (the context), is what makes blocks agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scene_distill.blocks.partition import Partition
from scene_distill.blocks.visibility import FAR_DEPTHS, GRID, Visibility, observe
from scene_distill.core import seeds
from scene_distill.core.errors import UserError
from scene_distill.data.scene import Scene

AREA_THRESHOLD = 0.2
"""A photograph trains a block that fills at least this much of it, relative to the photograph the block fills most.

Relative, because a block smaller than a photograph's footprint never fills much of any: on 150 nadir photos of a suburb
(aerial_sheffield), 0.2 keeps 88 %, 89 %, 91 % and 94 % of each block's observations with 4, 8, 16 and 32 blocks, where
a fixed share of 0.1 keeps 96 %, 90 % and 70 % with 4, 8 and 16 (17 % in the worst block).
"""

RENDER_THRESHOLD = 0.05
"""1 - SSIM that a photograph must lose without a block: the paper's tau for Rubble and MatrixCity (0.03 elsewhere)."""


def assign_views(
    scene: Scene,
    partition: Partition,
    *,
    threshold: float = AREA_THRESHOLD,
    visibility: Visibility | None = None,
) -> np.ndarray:
    """Which train view trains which block, [V, K] bool, from the points each view sees; rows as ``scene.train_frames``.

    View v trains block b when b owns the spot v looks at (`view_spots`), or when b's share of v's covered image area
    (`area_shares`) is at least ``threshold`` of b's largest share in any view. Every view trains at least one block,
    every block that a view sees gets one; a block that no view sees stays without: see `empty_blocks`.
    Raises `UserError` on a threshold outside (0, 1].
    """
    visibility = visibility if visibility is not None else observe(scene)
    shares = area_shares(scene, partition, visibility)
    spots = partition.owner(view_spots(scene, partition, visibility))
    return _assigned(shares, _checked(threshold) * shares.max(axis=0), spots)


def assign_views_by_render(
    scene: Scene,
    partition: Partition,
    render_difference: Callable[[int, int], float],
    *,
    threshold: float = RENDER_THRESHOLD,
    visibility: Visibility | None = None,
) -> np.ndarray:
    """The paper's rule, [V, K] bool: what a coarse model of the whole scene loses without a block.

    ``render_difference(frame_index, block)`` returns 1 - SSIM between the coarse render of
    ``train_frames[frame_index]`` and the same without the block's primitives; it is called V * K times. Otherwise as
    `assign_views`, with the threshold tau (Momentum-GS specification, section 2; there a block also gets the cameras
    that hover over it, here those that look at it, which differs for oblique views).
    """
    visibility = visibility if visibility is not None else observe(scene)
    views = range(len(scene.train_frames))
    differences = [[render_difference(view, block) for block in range(len(partition))] for view in views]
    spots = partition.owner(view_spots(scene, partition, visibility))
    return _assigned(np.asarray(differences, dtype=np.float64), _checked(threshold), spots)


def _assigned(shares: np.ndarray, least: np.ndarray | float, spots: np.ndarray) -> np.ndarray:
    """Views whose share [V, K] is positive and at least ``least`` ([K] or one for all), views whose spot [V] the block
    owns, and for a block that has neither the view with its largest share, if any."""
    assignment = (shares >= least) & (shares > 0)
    assignment[np.arange(len(assignment)), spots] = True
    for block in np.flatnonzero(~assignment.any(axis=0)):
        best = int(np.argmax(shares[:, block]))
        assignment[best, block] = shares[best, block] > 0
    return assignment


def _checked(threshold: float) -> float:
    """The threshold itself, if it lies in (0, 1]."""
    if not 0 < threshold <= 1:
        raise UserError(f"an assignment threshold of {threshold} is no share of a photo; use one above 0 and at most 1")
    return threshold


def area_shares(scene: Scene, partition: Partition, visibility: Visibility) -> np.ndarray:
    """Share of each view's covered image area that each block owns, [V, K] in [0, 1], rows sum to 1 (0 where blind).

    The image is binned `GRID` x `GRID`; each bin that holds points counts one and is divided among the owners of its
    points, so that a richly textured roof counts no more than the plain one beside it.
    """
    blocks, views = len(partition), len(scene.train_frames)
    owner = np.zeros(len(scene.points), dtype=np.int64)
    seen = np.unique(visibility.point)
    owner[seen] = partition.owner(scene.points[seen])
    shares = np.zeros((views, blocks))
    starts = np.searchsorted(visibility.frame, np.arange(views + 1))
    for view in range(views):
        mine = slice(starts[view], starts[view + 1])
        pairs = visibility.bin[mine] * blocks + owner[visibility.point[mine]]
        counts = np.bincount(pairs, minlength=GRID * GRID * blocks).reshape(GRID * GRID, blocks)
        covered = counts[counts.any(axis=1)]
        if len(covered):
            shares[view] = (covered / covered.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def view_spots(scene: Scene, partition: Partition, visibility: Visibility) -> np.ndarray:
    """The spot each train view looks at, world [V, 3].

    Where its optical axis meets the ground, if it does within `FAR_DEPTHS` of the view's median depth; else the point
    at its median depth on the axis; else (a view that sees no point) the ground below it.
    """
    space = partition.space
    spots = []
    for frame, depth in zip(scene.train_frames, visibility.depth_m, strict=True):
        center, forward = frame.camera.center, frame.camera.cam_from_world[2, :3]
        above, fall = float(space.axes[2] @ center) - space.ground, -float(space.axes[2] @ forward)
        reach = above / fall if abs(fall) > 1e-9 else np.inf
        if 0 < reach <= FAR_DEPTHS * depth:
            spots.append(center + reach * forward)
        elif np.isfinite(depth):
            spots.append(center + depth * forward)
        else:
            spots.append(center - above * space.axes[2])
    return np.stack(spots)


def empty_blocks(assignment: np.ndarray) -> tuple[int, ...]:
    """Blocks of an assignment [V, K] that no view trains: named in reports, they train and merge nothing."""
    return tuple(int(block) for block in np.flatnonzero(~assignment.any(axis=0)))


def initial_points(
    scene: Scene, partition: Partition, assignment: np.ndarray, block: int, visibility: Visibility | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(own_ids, context_ids), sorted indices into ``scene.points``: what a block starts from.

    Own points lie in the block's cell; context points lie outside and are seen by the views that train the block, so
    that those photographs can be explained whole while the block is alone in memory. With
    ``visibility=observe(scene, by_projection=True)`` the context is all that their frustums hold, tracked or not.
    """
    visibility = visibility if visibility is not None else observe(scene)
    finite = np.flatnonzero(np.isfinite(scene.points).all(axis=1))
    own = finite[partition.owns(scene.points[finite], block)]
    mine = assignment[visibility.frame, block]
    context = np.setdiff1d(visibility.point[mine], own)
    return own, context


def point_spacing(points: np.ndarray, neighbours: int = 3, samples: int = 20_000) -> float:
    """Median over points of the mean distance to the ``neighbours`` nearest other points, in the points' unit.

    points [P, 3]; non-finite points and exact duplicates are removed first. From ``samples`` on, a fixed random subset
    asks (all points answer). Raises `UserError` when fewer than two distinct points remain.
    """
    from scipy.spatial import cKDTree

    points = np.asarray(points, dtype=np.float64)
    distinct = np.unique(points[np.isfinite(points).all(axis=1)], axis=0)
    if len(distinct) < 2:
        raise UserError("the spacing of fewer than two distinct points is undefined; check the scene's point cloud")
    asking = distinct
    if len(distinct) > samples:
        chosen = seeds.numpy_generator("point spacing").choice(len(distinct), samples, replace=False)
        asking = distinct[np.sort(chosen)]
    count = min(neighbours, len(distinct) - 1)
    distances, _ = cKDTree(distinct).query(asking, k=count + 1)
    return float(np.median(distances[:, 1:].mean(axis=1)))


@dataclass(frozen=True)
class BlockSummary:
    """One row of the partition's table; the extent (length, width, height) holds 98 % of the own points per axis."""

    block: int
    own_points: int
    context_points: int
    views: int
    work_share: float
    extent: tuple[float, float, float]


def summarize(
    scene: Scene, partition: Partition, assignment: np.ndarray, visibility: Visibility | None = None
) -> tuple[BlockSummary, ...]:
    """What each block holds and costs, in block order; ``work_share`` is its share of all observations of points."""
    visibility = visibility if visibility is not None else observe(scene)
    weights = visibility.weights(len(scene.points))
    rows = []
    for block in range(len(partition)):
        own, context = initial_points(scene, partition, assignment, block, visibility)
        extent = (0.0, 0.0, 0.0)
        if len(own):
            low, high = np.quantile(partition.space.ground_from_world(scene.points[own]), [0.01, 0.99], axis=0)
            extent = tuple((high - low).tolist())
        share = float(weights[own].sum() / weights.sum())
        rows.append(BlockSummary(block, len(own), len(context), int(assignment[:, block].sum()), share, extent))
    return tuple(rows)


def describe(scene: Scene, partition: Partition, assignment: np.ndarray, visibility: Visibility | None = None) -> str:
    """The partition as a text table, one line a block, with how the bounds were found; for ``--dry-run``."""
    unit = "m" if scene.metadata.get("unit") == "metre" else "units"
    views = len(assignment)
    lines = [
        f"{len(partition)} blocks ({partition.scheme}), {views} training views, "
        f"each in {assignment.sum() / views:.1f} blocks",
        f"bounds: {partition.space.how}",
        f"{'block':>5} {'own points':>11} {'context':>9} {'views':>6} {'share':>6}  extent ({unit})",
    ]
    for row in summarize(scene, partition, assignment, visibility):
        extent = " x ".join(f"{side:.4g}" for side in row.extent)
        note = extent if row.views else f"{extent}  empty: no view sees it, it trains nothing"
        counts = f"{row.block:>5} {row.own_points:>11,} {row.context_points:>9,} {row.views:>6} {row.work_share:>6.1%}"
        lines.append(f"{counts}  {note}")
    empty = empty_blocks(assignment)
    if empty:
        names = ", ".join(str(block) for block in empty)
        lines.append(
            f"no view sees block {names}; fewer blocks (--blocks {len(partition) - len(empty)}) leave none empty"
        )
    return "\n".join(lines)
