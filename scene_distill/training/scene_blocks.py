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
from scene_distill.blocks.partition import Partition, partition
from scene_distill.blocks.visibility import Visibility, observe
from scene_distill.core import seeds
from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Frame, Scene


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

    def __init__(self, scene: Scene, images: ImageCache, blocks: int, scheme: Literal["balanced", "grid"],
                 view_threshold: float, device: torch.device) -> None:  # fmt: skip
        self.scene, self.images, self.device = scene, images, device
        self.visibility: Visibility = observe(scene)
        self.partition: Partition = partition(scene, blocks, scheme=scheme, visibility=self.visibility)
        self.assignment = assigning.assign_views(
            scene, self.partition, threshold=view_threshold, visibility=self.visibility
        )
        self.spacing = assigning.point_spacing(scene.points)
        self.origin = np.round(np.median(scene.points, axis=0), 3)

    def first_points(self, unit: int) -> np.ndarray:
        """Indices of the block's own points and of what its views see beyond the cell; `UserError` when there are
        none."""
        own, context = assigning.initial_points(self.scene, self.partition, self.assignment, unit, self.visibility)
        if len(own) + len(context) == 0:
            raise UserError(f"block {unit} has no points to start from; use fewer --blocks")
        return np.concatenate([own, context])

    def owns(self, unit: int, positions: Tensor) -> Tensor:
        """Which positions [N, 3] of the training frame lie in the block's own cell, [N] bool."""
        mine = self.partition.owns(positions.double().cpu().numpy() + self.origin, unit)
        return torch.from_numpy(mine).to(positions.device)

    def views(self, unit: int) -> tuple[View, ...]:
        """The views that train a block."""
        return tuple(self._views[row] for row in np.flatnonzero(self.assignment[:, unit]))

    def table(self) -> str:
        """The blocks as text, one line a block."""
        return assigning.describe(self.scene, self.partition, self.assignment, self.visibility)

    @cached_property
    def _views(self) -> tuple[View, ...]:
        return tuple(self._view(index, frame) for index, frame in enumerate(self.scene.train_frames))

    def _view(self, index: int, frame: Frame) -> View:
        def photo() -> Tensor:
            return self.images.get(frame).to(self.device, torch.float32) / 255.0

        return View(index, self.images.camera(frame).moved(self.origin), photo)
