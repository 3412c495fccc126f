"""Momentum-GS, wired: a scene becomes blocks, blocks share a decoder with a momentum teacher, and merge into one
city."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene_distill.blocks import assignment as assigning
from scene_distill.blocks.partition import Partition, partition
from scene_distill.blocks.schedule import Round, Visit, make_schedule, shared_steps
from scene_distill.blocks.store import State
from scene_distill.blocks.visibility import observe
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Frame, Scene
from scene_distill.methods.momentum_gs.block import BlockSetting, BlockTraining, View, first_block_state
from scene_distill.methods.momentum_gs.coarse import render_difference, train_coarse
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.decoder_training import DecoderTraining
from scene_distill.methods.momentum_gs.merged import FIELDS, MergedCity
from scene_distill.nets.gaussian_decoder import decoder_from_state
from scene_distill.representations.anchors import Anchors, anchors_from_points, voxelise
from scene_distill.representations.densification import GrowthRules

BYTES_PER_ANCHOR = 4 * (71 + 2 * 68 + 68 + 22)
"""Parameters, two moments, gradients and growth statistics of one anchor in float32."""

BYTES_PER_VISIBLE_ANCHOR = 10 * 4 * (2 * 14 + 2 * 14 + 40)
"""Measured order of a step's scratch per visible anchor: decoded slots and their gradients, projection, tile pairs."""


class MomentumGS:
    """The method as the runtime sees it (`blocks.runtime.Method`), plus planning and merging."""

    def __init__(self, config: MomentumGSConfig, scene: Scene, images: ImageCache) -> None:
        self.config, self.scene, self.images = config, scene, images
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.visibility = observe(scene)
        self.partition: Partition = partition(scene, config.blocks, scheme=config.partition, visibility=self.visibility)
        self.assignment = self._assign()
        self.spacing = assigning.point_spacing(scene.points)
        self.origin = np.round(np.median(scene.points, axis=0), 3)
        self.rounds = make_schedule(config.blocks, config.lanes, config.iterations, config.visits, config.seed)
        self.shared: DecoderTraining = DecoderTraining(
            config, max(shared_steps(self.rounds), 1), self.device, config.seed, "shared"
        )

    def _assign(self) -> np.ndarray:
        """Which train view trains which block, [V, K] bool."""
        config = self.config
        if config.assignment == "points":
            return assigning.assign_views(
                self.scene, self.partition, threshold=config.view_threshold, visibility=self.visibility
            )
        coarse = replace(
            config, blocks=1, lanes=1, iterations=config.coarse_iterations, consistency=0.0, assignment="points"
        )
        whole = MomentumGS(coarse, self.scene, self.images)
        difference = render_difference(whole, train_coarse(whole), self.partition)
        return assigning.assign_views_by_render(
            self.scene, self.partition, difference, threshold=config.render_threshold, visibility=self.visibility
        )

    def first_state(self, unit: int) -> State:
        """Anchors at the block's own points and at what its views see beyond the cell; fresh moments and statistics."""
        ids = np.concatenate(self._points(unit))
        if len(ids) == 0:
            raise UserError(f"block {unit} has no points to start from; use fewer --blocks")
        size = self.spacing * self.config.points_per_voxel
        points, colors = voxelise(self.scene.points[ids] - self.origin, self.scene.colors[ids] / 255.0, size)
        picture = self.config.start == "picture"
        anchors = anchors_from_points(
            torch.from_numpy(points).float(), torch.from_numpy(colors).float(),
            spread=0.3 if picture else 0.0, color_init=picture, seed_parts=(self.config.seed, unit),
        )  # fmt: skip
        state = first_block_state(anchors)
        if not self.config.share_decoder:
            state |= DecoderTraining(self.config, self.config.iterations, self.device, self.config.seed, unit).state()
        return state

    def open(self, unit: int, state: State, visit: Visit, round_: Round) -> BlockTraining:
        """A block ready for one visit."""
        shared = self.shared if self.config.share_decoder else None
        state = {name: tensor.to(self.device) for name, tensor in state.items()}
        return BlockTraining(self.config, self._setting(unit), state, shared, visit, round_)

    def merge(self, states: Mapping[int, Callable[[], State]]) -> MergedCity:
        """One city: of each block the anchors inside its own cell (cells are disjoint, nothing is blended)."""
        kept, blocks, decoders = [], [], []
        for unit in sorted(states):
            state = states[unit]()
            anchors = Anchors(*(state[f"anchors.{name}"].cpu() for name in FIELDS))
            mine = anchors.select(self._owns(unit)(anchors.positions))
            kept.append(mine)
            blocks.append(torch.full((len(mine),), unit, dtype=torch.int32))
            if not self.config.share_decoder:
                decoders.append(decoder_from_state(state, "student"))
        shared = (self.shared.student.copy(),) if self.config.share_decoder else tuple(decoders)
        fields = (torch.cat([getattr(part, name) for part in kept]) for name in FIELDS)
        metadata = {"blocks": self.partition.to_dict(), "up": self.scene.up.tolist()} | self.scene.metadata
        city = MergedCity(Anchors(*fields), torch.cat(blocks), shared, self.origin, metadata)
        return city.to(self.device)

    def _points(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        return assigning.initial_points(self.scene, self.partition, self.assignment, unit, self.visibility)

    def _owns(self, unit: int) -> Callable[[Tensor], Tensor]:
        def owns(positions: Tensor) -> Tensor:
            mine = self.partition.owns(positions.double().cpu().numpy() + self.origin, unit)
            return torch.from_numpy(mine).to(positions.device)

        return owns

    @cached_property
    def _views(self) -> tuple[View, ...]:
        return tuple(self._view(frame) for frame in self.scene.train_frames)

    def _view(self, frame: Frame) -> View:
        def photo() -> Tensor:
            return self.images.get(frame).to(self.device, torch.float32) / 255.0

        return View(self.images.camera(frame).moved(self.origin), photo)

    def _setting(self, unit: int) -> BlockSetting:
        views = tuple(self._views[row] for row in np.flatnonzero(self.assignment[:, unit]))
        return BlockSetting(unit, views, self._rules(unit), self.spacing, self._owns(unit))

    def _rules(self, unit: int) -> GrowthRules:
        config = self.config
        return GrowthRules(
            cells=tuple(cell * self.spacing for cell in config.growth_cells),
            gradient=config.growth_gradient,
            min_views=config.growth_views,
            min_opacity=config.min_opacity,
            max_size=4.0 * self.spacing,
            max_anchors=int(config.growth_limit * sum(map(len, self._points(unit)))),
        )

    def plan(self) -> dict[str, Any]:
        """What will be trained, before it is: a text table, the anchors of the largest lanes, and bytes of a round."""
        limits = sorted((self._rules(unit).max_anchors for unit in range(self.config.blocks)), reverse=True)
        lanes = limits[: min(self.config.lanes, self.config.blocks)]
        working_set = BYTES_PER_ANCHOR * sum(lanes) + BYTES_PER_VISIBLE_ANCHOR * limits[0]
        table = assigning.describe(self.scene, self.partition, self.assignment, self.visibility)
        return {"table": table, "working_set_bytes": working_set, "spacing": self.spacing}


build = MomentumGS
load = MergedCity.load
