"""A scene cut into blocks: which views train a block, which points it starts from, and which positions it owns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scene_distill.blocks import assignment as assigning
from scene_distill.blocks.balance import block_costs, cost_partition, order_by_cost, view_costs
from scene_distill.blocks.partition import Partition, partition
from scene_distill.blocks.splitting import (
    Split,
    StateRows,
    cut_of,
    part_of_state,
    part_rows,
    split_assignment,
    split_partition,
)
from scene_distill.blocks.store import State
from scene_distill.blocks.visibility import Visibility, observe
from scene_distill.core import memory, seeds
from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.stages import Stage
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Frame, Scene

WORTHWHILE = 0.9
"""A block is not split when one of the parts would keep more than this share of its rows."""

FEWEST_ROWS = 64
"""... nor when it has fewer rows of its own."""

PICTURES = 12
"""Pictures of three float32 channels that a training step holds: photo, rendering, gradients, windows of the loss."""


@dataclass(frozen=True, eq=False)
class View:
    """A training view: its number among the scene's train frames, its camera (training frame and size) and a function
    that loads its photo [H, W, 3] in [0, 1]."""

    index: int
    camera: Camera
    photo: Callable[[], Tensor]


def view_of_step(views: tuple[View, ...], step: int, *seed_parts: int | str) -> View:
    """The view of a unit's own step: every view once an epoch, in an order keyed by the parts and the epoch."""
    epoch, position = divmod(step, len(views))
    order = seeds.numpy_generator(*seed_parts, epoch).permutation(len(views))
    return views[int(order[position])]


class SceneBlocks:
    """K blocks of a scene, their photos on ``device``.

    ``origin`` [3] is where the training frame has its zero, in the world; ``spacing`` is the median distance of
    neighbouring points in the scene's unit.
    """

    def __init__(self, scene: Scene, images: ImageCache, blocks: int, scheme: Literal["balanced", "cost", "grid"],
                 view_threshold: float, device: torch.device) -> None:  # fmt: skip
        self.scene, self.images, self.device, self.view_threshold = scene, images, device, view_threshold
        self.visibility: Visibility = observe(scene)
        self.partition = self._cells(blocks, scheme)
        self.assignment = assigning.assign_views(
            scene, self.partition, threshold=view_threshold, visibility=self.visibility
        )
        self.spacing = assigning.point_spacing(scene.points)
        self.origin = np.round(np.median(scene.points, axis=0), 3)

    def _cells(self, blocks: int, scheme: Literal["balanced", "cost", "grid"]) -> Partition:
        if scheme == "cost":
            return cost_partition(
                self.scene, blocks, threshold=self.view_threshold, width=self._width, visibility=self.visibility
            )
        return partition(self.scene, blocks, scheme=scheme, visibility=self.visibility)

    @property
    def _width(self) -> int:
        """Pixels in width of the widest photo as it is trained on."""
        return max(self.images.camera(frame).width for frame in self.scene.train_frames)

    def order_by_cost(self, lanes: int, seed: int) -> np.ndarray:
        """An order of the blocks in which the blocks of a round cost about the same."""
        return order_by_cost(block_costs(self.assignment, view_costs(self.scene, self._width)).step, lanes, seed)

    def first_points(self, unit: int) -> np.ndarray:
        """Indices of the block's own points and of what its views see beyond the cell; `UserError` when there are
        none."""
        own, context = assigning.initial_points(self.scene, self.partition, self.assignment, unit, self.visibility)
        if len(own) + len(context) == 0:
            raise UserError(f"block {unit} has no points to start from; use fewer --blocks")
        return np.concatenate([own, context])

    def cut(self, unit: int, state: State, rows: StateRows) -> tuple[int, float] | None:
        """Axis and contracted position of the cut that halves a block; None where it holds too little to be cut, or one
        of the parts would keep more than `WORTHWHILE` of its rows."""
        positions = self._world(state, rows)
        if int(self.partition.owns(positions, unit).sum()) < FEWEST_ROWS:
            return None
        axis, at = cut_of(self.partition, unit, positions)
        split = Split(0, unit, len(self.partition), axis, at, "")
        cells, assignment = self._after(split)
        sizes = [self._part_rows(positions, cells, assignment, part).sum() for part in (unit, split.added)]
        return None if max(sizes) > WORTHWHILE * len(positions) else (axis, at)

    def split(self, split: Split) -> None:
        """From now on a block is two."""
        self.partition, self.assignment = self._after(split)

    def part(self, unit: int, state: State, rows: StateRows) -> State:
        """What a block takes of a state that was made before it was split."""
        keep = self._part_rows(self._world(state, rows), self.partition, self.assignment, unit)
        return part_of_state(state, rows, torch.from_numpy(keep).to(state[rows.positions].device))

    def _after(self, split: Split) -> tuple[Partition, np.ndarray]:
        cells = split_partition(self.partition, split)
        threshold, seen = self.view_threshold, self.visibility
        return cells, split_assignment(self.scene, cells, self.assignment, split, seen, threshold)

    def _world(self, state: State, rows: StateRows) -> np.ndarray:
        return state[rows.positions].double().cpu().numpy() + self.origin

    def _part_rows(self, positions: np.ndarray, cells: Partition, assignment: np.ndarray, unit: int) -> np.ndarray:
        frames = self.scene.train_frames
        return part_rows(positions, cells, unit, [frames[row].camera for row in np.flatnonzero(assignment[:, unit])])

    def owns(self, unit: int, positions: Tensor) -> Tensor:
        """Which positions [N, 3] of the training frame lie in the block's own cell, [N] bool."""
        mine = self.partition.owns(positions.double().cpu().numpy() + self.origin, unit)
        return torch.from_numpy(mine).to(positions.device)

    def views(self, unit: int) -> tuple[View, ...]:
        """The views that train a block."""
        return tuple(self._views[row] for row in np.flatnonzero(self.assignment[:, unit]))

    def state_limit(self, limit: str, state_bytes: int, scratch_bytes: int) -> int:
        """Bytes of the largest state that trains within ``limit`` ('500MB'; empty: 0, no limit), when a row takes
        ``state_bytes`` and, drawn, ``scratch_bytes`` more. Raises `UserError` when a step's pictures alone exceed it.
        """
        if not limit:
            return 0
        sizes = (self.images.camera(frame) for frame in self.scene.train_frames)
        pictures = 12 * PICTURES * max(camera.width * camera.height for camera in sizes)
        rows = (memory.parse_bytes(limit) - pictures) // (state_bytes + scratch_bytes)
        if rows < FEWEST_ROWS:
            raise UserError(
                f"--max-block-memory {limit} is too small: a step's pictures take {memory.format_bytes(pictures)}; "
                "give more, or smaller pictures with --image-width"
            )
        return rows * state_bytes

    def table(self) -> str:
        """The blocks as text, one line a block."""
        return assigning.describe(self.scene, self.partition, self.assignment, self.visibility)

    @cached_property
    def _views(self) -> tuple[View, ...]:
        return tuple(self._view(index, frame) for index, frame in enumerate(self.scene.train_frames))

    def _view(self, index: int, frame: Frame) -> View:
        def photo() -> Tensor:
            with Stage("photo"):
                return self.images.get(frame).to(self.device, torch.float32) / 255.0

        return View(index, self.images.camera(frame).moved(self.origin), photo)
