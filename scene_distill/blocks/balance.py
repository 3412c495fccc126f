"""What a block costs, cuts that balance it, and an order of the blocks in which neighbours cost alike.

A step of a block draws a whole photograph, whatever part of it the block owns: its cost is that of the primitives in
the view plus that of its pixels. A block's epoch is one step with each of its views. The cut of `partition` gives every
block the same share of the observations; but a photograph along a border trains both sides, so blocks with long borders
cost more than their share. `cost_partition` weighs the points until the epochs cost the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scene_distill.blocks.assignment import AREA_THRESHOLD, assign_views
from scene_distill.blocks.bounds import automatic_bounds
from scene_distill.blocks.partition import Partition, partition
from scene_distill.blocks.visibility import Visibility, observe
from scene_distill.core import seeds
from scene_distill.data.scene import Scene

PRIMITIVES_PER_PIXEL = 0.1
"""How many points in a view cost as much as one of its pixels. Measured on first steps of aerial_sheffield at 128, 256
and 384 px on one core: 0.20 for splats (0.40 us a splat, 0.08 us a pixel), 0.02 for Momentum-GS (6.8 us an anchor)."""

CUTS = 16
"""Cuts that `cost_partition` tries; most of the gain comes from the first eight."""

SAMPLED_POINTS = 20_000
"""Points that stand for the scene's when those in a view are counted."""


@dataclass(frozen=True, eq=False)
class BlockCosts:
    """What K blocks cost, in the unit of `view_costs`: ``epoch`` [K], one step with each of a block's views; ``views``
    [K], their number; ``step`` [K], the mean step (0 for a block without views)."""

    epoch: np.ndarray
    views: np.ndarray

    @property
    def step(self) -> np.ndarray:
        """Mean cost of a step [K]: with equal steps per block, what makes a lane a straggler."""
        return self.epoch / np.maximum(self.views, 1)


def view_costs(scene: Scene, width: int = 0) -> np.ndarray:
    """Cost of a step with each train view, [V], in points: points inside the image plus `PRIMITIVES_PER_PIXEL` times
    its pixels, photos shrunk to ``width`` (0 keeps their size).

    Points are counted in the image whether or not the view's tracks hold them: a block draws all that it has there.
    """
    points = scene.points[np.isfinite(scene.points).all(axis=1)]
    scale = max(len(points) / SAMPLED_POINTS, 1.0)
    if scale > 1:
        chosen = seeds.numpy_generator("view costs").choice(len(points), SAMPLED_POINTS, replace=False)
        points = points[np.sort(chosen)]
    costs = []
    for frame in scene.train_frames:
        camera = frame.camera.resized(min(width, frame.camera.width)) if width else frame.camera
        pixels, depth = camera.project(points)
        inside = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < [camera.width, camera.height]).all(axis=1)
        costs.append(scale * inside.sum() + PRIMITIVES_PER_PIXEL * camera.width * camera.height)
    return np.array(costs)


def block_costs(assignment: np.ndarray, costs: np.ndarray) -> BlockCosts:
    """Costs of the blocks of an assignment [V, K], from those of the views [V]."""
    return BlockCosts(costs @ assignment, assignment.sum(axis=0))


def imbalance(costs: np.ndarray) -> float:
    """Largest over mean, 1 when all are equal: how much longer a round takes than its lanes' mean."""
    return float(costs.max() / costs.mean())


def cost_partition(
    scene: Scene,
    blocks: int,
    *,
    threshold: float = AREA_THRESHOLD,
    width: int = 0,
    visibility: Visibility | None = None,
) -> Partition:
    """``blocks`` cells whose epochs cost about the same; raises what `partition` and `assign_views` raise.

    A fixed-point iteration: cut by weight, assign the views, multiply the weight of each block's points by the block's
    cost over the mean (at most 2 or 1/2 a time), and cut again. Of `CUTS` cuts the one with the smallest `imbalance` is
    kept; the first is the "balanced" one, so the result is never worse than that.
    """
    visibility = visibility if visibility is not None else observe(scene)
    space = automatic_bounds(scene, visibility)
    weights, costs = visibility.weights(len(scene.points)), view_costs(scene, width)
    seen = np.flatnonzero(weights)
    best, least = None, np.inf
    for _ in range(CUTS if blocks > 1 else 1):
        cells = partition(scene, blocks, space=space, visibility=visibility, weights=weights)
        epochs = block_costs(assign_views(scene, cells, threshold=threshold, visibility=visibility), costs).epoch
        if imbalance(epochs) < least:
            best, least = cells, imbalance(epochs)
        weights = weights.copy()
        weights[seen] *= np.clip(epochs / epochs.mean(), 0.5, 2.0)[cells.owner(scene.points[seen])]
    assert best is not None
    return replace(best, scheme="cost")


def order_by_cost(costs: np.ndarray, lanes: int, seed: int = 0) -> np.ndarray:
    """A cyclic order of the blocks in which the ``lanes`` blocks of a round cost about the same, [K].

    Rounds are runs of the cycle. Where lanes divide K they always start at the same places and the sorted costs are the
    best order; else they drift, and the order rises over every other block of the sorted costs and falls over the rest,
    so that there is no jump at the end of the cycle. It starts at a place keyed by ``seed``.
    """
    order = np.argsort(costs, kind="stable")
    if len(order) % lanes:
        order, step = np.concatenate([order[::2], order[1::2][::-1]]), 1
    else:
        step = lanes
    return np.roll(order, step * int(seeds.numpy_generator(seed, "unit order").integers(len(order) // step)))
