"""The partition of space into blocks: every point of space has exactly one owner.

Cells are half-open boxes [min, max) in contracted coordinates (`bounds.ContractedSpace`) that tile the unit cube. Two
schemes: "balanced" cuts the footprint recursively so that each block holds the same share of what the photographs see,
for any number of blocks; "grid" is the paper's nx x ny of equal cells in contracted space.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from scene_distill.blocks.bounds import ContractedSpace, automatic_bounds, weighted_quantiles
from scene_distill.blocks.visibility import Visibility, observe
from scene_distill.core.errors import UserError
from scene_distill.data.scene import Scene

__all__ = ["Cell", "ContractedSpace", "Partition", "Scheme", "automatic_bounds", "partition"]

Scheme = Literal["balanced", "grid"]

CUT_TOLERANCE = 0.02
"""A cut across the longer axis may miss its share of the weight by this much before the shorter axis is tried."""


@dataclass(frozen=True)
class Cell:
    """A half-open box [min, max) in contracted coordinates."""

    min: tuple[float, float, float]
    max: tuple[float, float, float]

    def contains(self, contracted: np.ndarray) -> np.ndarray:
        """Which contracted points [P, 3] lie in the box, [P] bool."""
        return ((contracted >= self.min) & (contracted < self.max)).all(axis=1)

    def split(self, axis: int, at: float) -> tuple[Cell, Cell]:
        """The two cells below and above ``at`` on an axis; ``at`` must lie strictly inside."""
        if not self.min[axis] < at < self.max[axis]:
            raise UserError(f"a block {self.max[axis] - self.min[axis]:.1e} wide cannot be cut again; use fewer blocks")
        low_max, high_min = list(self.max), list(self.min)
        low_max[axis] = high_min[axis] = at
        return Cell(self.min, (low_max[0], low_max[1], low_max[2])), Cell(
            (high_min[0], high_min[1], high_min[2]), self.max
        )


@dataclass(frozen=True, eq=False)
class Partition:
    """K cells that tile the contracted space, in block order."""

    space: ContractedSpace
    cells: tuple[Cell, ...]
    scheme: str

    def __len__(self) -> int:
        return len(self.cells)

    def owner(self, points: np.ndarray) -> np.ndarray:
        """The one block that owns each world point [P, 3], [P] int64."""
        contracted = self.space.contract(points)
        owner = np.full(len(contracted), -1, dtype=np.int64)
        for block, cell in enumerate(self.cells):
            owner[cell.contains(contracted)] = block
        if (owner < 0).any():
            raise ValueError("the cells do not cover space; this partition was not made by partition()")
        return owner

    def owns(self, points: np.ndarray, block: int) -> np.ndarray:
        """Which world points [P, 3] belong to one block, [P] bool; cheaper than `owner` when one block asks."""
        return self.cells[block].contains(self.space.contract(points))

    def outline(self, block: int, samples: int = 32) -> np.ndarray:
        """The cell's border on the ground as a closed world polyline [4 * samples + 1, 3], cut off at twice the box.

        For maps and viewers. Twice the box is [1/8, 7/8] in contracted coordinates.
        """
        cell = self.cells[block]
        low, high = (np.clip(np.asarray(corner[:2]), 0.125, 0.875) for corner in (cell.min, cell.max))
        corners = np.array([low, [high[0], low[1]], high, [low[0], high[1]], low])
        steps = np.linspace(0, 1, samples, endpoint=False)[:, None]
        border = np.concatenate([a + (b - a) * steps for a, b in pairwise(corners)] + [corners[:1]])
        level = np.full((len(border), 1), 0.5)
        ground = self.space.ground_from_world(self.space.expand(np.concatenate([border, level], axis=1)))
        ground[:, 2] = self.space.ground
        return self.space.world_from_ground(ground)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and floats; through JSON and back nothing changes by a bit."""
        cells = [{"min": list(cell.min), "max": list(cell.max)} for cell in self.cells]
        return {"scheme": self.scheme, "space": self.space.to_dict(), "cells": cells}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Partition:
        """The partition that `to_dict` wrote."""
        cells = tuple(Cell(tuple(cell["min"]), tuple(cell["max"])) for cell in data["cells"])
        return cls(ContractedSpace.from_dict(data["space"]), cells, str(data["scheme"]))


def partition(
    scene: Scene,
    blocks: int,
    *,
    scheme: Scheme = "balanced",
    space: ContractedSpace | None = None,
    visibility: Visibility | None = None,
    weights: np.ndarray | None = None,
) -> Partition:
    """``blocks`` cells over the scene, vertical prisms inside the box; any number >= 1, primes included.

    "balanced": a cell that shall become k blocks is cut across the longer side of what it holds, where floor(k/2)/k of
    the weight lies below, and so on. A point weighs as many train observations as it has: their sum over a block is
    the number of primitives its views render, the best proxy of a block's cost (LoBE-GS). Other ``weights`` [P] may be
    given; `balance.cost_partition` finds those that balance what a block costs with the views it is assigned.
    "grid": nx * ny = blocks equal cells in contracted space, the factors that fit the box's aspect best (Momentum-GS
    specification, section 2: with more than two cells on an axis the outer ones lie outside the box, and may be empty).

    Raises `UserError` on fewer than one block, an unknown scheme, or more blocks than there are visible points.
    """
    if blocks < 1:
        raise UserError(f"{blocks} blocks make no scene; use --blocks 1 or more")
    visibility = visibility if visibility is not None else observe(scene)
    space = space if space is not None else automatic_bounds(scene, visibility)
    whole = Cell((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if scheme == "grid":
        return Partition(space, _grid_cells(space, blocks), scheme)
    if scheme != "balanced":
        raise UserError(f"there is no partition scheme '{scheme}'; use balanced or grid")
    weights = visibility.weights(len(scene.points)) if weights is None else weights
    visible = np.flatnonzero(weights)
    if blocks > len(visible):
        raise UserError(
            f"{blocks} blocks are more than the {len(visible)} points that the photos see; use fewer blocks"
        )
    points = scene.points[visible]
    cells = _balanced_cells(
        whole, blocks, space.contract(points), space.ground_from_world(points)[:, :2], weights[visible]
    )
    return Partition(space, tuple(cells), scheme)


def _grid_cells(space: ContractedSpace, blocks: int) -> tuple[Cell, ...]:
    """nx * ny equal cells, x fastest; the factors make the cells' sides as equal as they can be."""
    length, width = (space.box_max - space.box_min)[:2]
    factors = [n for n in range(1, blocks + 1) if blocks % n == 0]
    nx = min(factors, key=lambda n: (abs(np.log(length / n) - np.log(width / (blocks // n))), n))
    ny = blocks // nx
    xs, ys = [i / nx for i in range(nx + 1)], [i / ny for i in range(ny + 1)]
    return tuple(Cell((x0, y0, 0.0), (x1, y1, 1.0)) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs))


def _balanced_cells(
    cell: Cell, blocks: int, contracted: np.ndarray, footprint: np.ndarray, weights: np.ndarray
) -> list[Cell]:
    """``cell`` cut into ``blocks`` of about equal weight; contracted [P, 3], footprint [P, 2], weights [P] inside."""
    if blocks == 1:
        return [cell]
    low_blocks = blocks // 2
    axis, at = _best_cut(cell, low_blocks / blocks, contracted, footprint, weights)
    low, high = cell.split(axis, at)
    below = contracted[:, axis] < at
    return _balanced_cells(low, low_blocks, contracted[below], footprint[below], weights[below]) + _balanced_cells(
        high, blocks - low_blocks, contracted[~below], footprint[~below], weights[~below]
    )


def _best_cut(
    cell: Cell, share: float, contracted: np.ndarray, footprint: np.ndarray, weights: np.ndarray
) -> tuple[int, float]:
    """Axis and contracted position of the cut that leaves ``share`` of the weight below it.

    The longer side of the cell's contents (1 % to 99 % of their weight, in the scene's unit) is cut unless ties there
    miss the share by more than `CUT_TOLERANCE`, and the other side misses it by less. A cell whose points cannot be
    told apart is cut by its own sides.
    """
    if len(weights):
        extents = [np.ptp(weighted_quantiles(footprint[:, axis], weights, [0.01, 0.99])) for axis in range(2)]
        order = (0, 1) if extents[0] >= extents[1] else (1, 0)
        cuts = [(*cut, axis) for axis in order if (cut := _weighted_cut(contracted[:, axis], weights, share))]
        for miss, at, axis in cuts:
            if miss <= CUT_TOLERANCE:
                return axis, at
        if cuts:
            _, at, axis = min(cuts)
            return axis, at
    sides = [cell.max[axis] - cell.min[axis] for axis in range(2)]
    axis = 0 if sides[0] >= sides[1] else 1
    return axis, cell.min[axis] + share * sides[axis]


def middle_cut(cell: Cell, contracted: np.ndarray, footprint: np.ndarray) -> tuple[int, float]:
    """Axis and contracted position of the cut that leaves half of a cell's contents on either side; contracted [P, 3],
    footprint [P, 2] in ground coordinates."""
    return _best_cut(cell, 0.5, contracted, footprint, np.ones(len(contracted)))


def _weighted_cut(values: np.ndarray, weights: np.ndarray, share: float) -> tuple[float, float] | None:
    """(miss, position): the position between two distinct values that leaves the share of weight nearest to ``share``
    strictly below it, and by how much it misses; None when all values are equal."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    gaps = np.flatnonzero(ordered[1:] > ordered[:-1])
    if len(gaps) == 0:
        return None
    below = np.cumsum(weights[order])
    misses = np.abs(below[gaps] / below[-1] - share)
    best = gaps[np.argmin(misses)]
    middle = (ordered[best] + ordered[best + 1]) / 2
    return float(misses.min()), float(middle if middle > ordered[best] else ordered[best + 1])
