"""Plain 3D Gaussian splatting, wired: a scene becomes blocks of splats that share nothing and merge into one scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scene_distill.blocks.runtime import SavedState
from scene_distill.blocks.schedule import Round, Visit, make_schedule
from scene_distill.blocks.splitting import Split, StateRows
from scene_distill.blocks.store import State
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Scene
from scene_distill.methods.splats.block import BlockSetting, BlockTraining, first_block_state, splats_of
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.methods.splats.merged import MergedSplats
from scene_distill.representations.births import births_of
from scene_distill.representations.splat_densification import DensificationRules
from scene_distill.representations.splats import Splats
from scene_distill.training.estimates import Growth
from scene_distill.training.scene_blocks import SceneBlocks

FLOATS_PER_SPLAT = 11 + 3 * 16
"""Means, log-scales, quaternion, opacity and colours of degree 3."""

BYTES_PER_SPLAT = 4 * (3 * FLOATS_PER_SPLAT + 3)
"""Parameters, two moments, densification statistics and birth, four bytes each."""

BYTES_PER_VISIBLE_SPLAT = 4 * (5 * FLOATS_PER_SPLAT + 60)
"""Gathered rows of a step, their gradients and moments, projection and tile pairs."""


ROWS = StateRows("splats.means", "splats.log_scales", ("splats.", "moments.", "growth."))
"""What a block's state has of every splat."""


class NothingShared:
    """The shared state of units that share nothing."""

    def parameters(self) -> Sequence[Tensor]:
        """None."""
        return ()

    def begin_step(self, shared_step: int, frozen: bool) -> None:
        """Nothing to prepare."""

    def apply(self, gradients: Sequence[Tensor], shared_step: int) -> None:
        """Never called: the units return no gradients."""

    def publish(self, unit: int, scores: dict[str, float]) -> None:
        """Nobody reads scores."""

    def state(self) -> State:
        """Empty."""
        return {}

    def restore(self, state: State) -> None:
        """Nothing to take over."""


class PlainSplats:
    """The method as the runtime sees it (`blocks.runtime.Method`), plus planning and merging."""

    rows = ROWS

    def __init__(self, config: SplatsConfig, scene: Scene, images: ImageCache) -> None:
        self.config, self.scene, self.images = config, scene, images
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.blocks = SceneBlocks(scene, images, config.blocks, config.partition, config.view_threshold, self.device)
        self.rounds = make_schedule(config.blocks, config.lanes, config.iterations, config.visits, config.seed)
        self.shared = NothingShared()

    @property
    def growth(self) -> Growth:
        """Blocks are expected to reach their limit, which is approached linearly."""
        config = self.config
        return Growth(config.grow_from, config.grow_until, config.growth_limit, config.growth_events)

    def first_state(self, unit: int) -> State:
        """A splat at every point of the block and at what its views see beyond the cell; fresh moments."""
        ids = self.blocks.first_points(unit)
        points = self.scene.points[ids] - self.blocks.origin
        splats = Splats.from_points(points, self.scene.colors[ids])
        largest = torch.tensor(self.config.max_size * self.blocks.spacing / 2).log()
        return first_block_state(splats, self.config.sh_degree, float(largest))

    def open(self, unit: int, state: State, visit: Visit, round_: Round) -> BlockTraining:
        """A block ready for one visit."""
        blocks = self.blocks
        setting = BlockSetting(
            unit, blocks.views(unit), self._rules(unit), blocks.spacing, lambda means: blocks.owns(unit, means)
        )
        return BlockTraining(self.config, setting, {name: tensor.to(self.device) for name, tensor in state.items()})

    @property
    def state_limit(self) -> int:
        """Bytes of a state above which its block is split (`blocks.runtime.DivisibleMethod`)."""
        return self.blocks.state_limit(self.config.max_block_memory, BYTES_PER_SPLAT, BYTES_PER_VISIBLE_SPLAT)

    def cut(self, unit: int, state: State) -> tuple[int, float] | None:
        """The cut that halves a block."""
        return self.blocks.cut(unit, state, ROWS)

    def split(self, split: Split) -> None:
        """From now on a block is two."""
        self.blocks.split(split)

    def part(self, unit: int, state: State) -> State:
        """What a block takes of a state that was made before it was split."""
        return self.blocks.part(unit, state, ROWS)

    def merge(self, states: Mapping[int, SavedState]) -> MergedSplats:
        """One scene: of each block the splats inside its own cell (cells are disjoint, nothing is blended)."""
        kept, owners, born = [], [], []
        for unit in sorted(states):
            state = {name: tensor.cpu() for name, tensor in states[unit]().items()}
            splats = splats_of(state)
            mine = self.blocks.owns(unit, splats.means)
            kept.append(splats.select(mine))
            born.append(births_of(state, "splats.means")[mine])
            owners.append(torch.full((len(kept[-1]),), unit, dtype=torch.int32))
        metadata = {"blocks": self.blocks.partition.to_dict(), "up": self.scene.up.tolist()} | self.scene.metadata
        merged = MergedSplats(Splats.cat(kept), torch.cat(owners), self.blocks.origin, metadata, torch.cat(born))
        return merged.to(self.device)

    def plan(self) -> dict[str, Any]:
        """What will be trained, before it is: a text table, and bytes of a round."""
        most = self.state_limit // BYTES_PER_SPLAT or None
        rules = (self._rules(unit) for unit in range(self.config.blocks))
        limits = sorted((min(rule.max_splats, most or rule.max_splats) for rule in rules), reverse=True)
        lanes = limits[: min(self.config.lanes, self.config.blocks)]
        working_set = BYTES_PER_SPLAT * sum(lanes) + BYTES_PER_VISIBLE_SPLAT * limits[0]
        return {"table": self.blocks.table(), "working_set_bytes": working_set, "spacing": self.blocks.spacing}

    def _rules(self, unit: int) -> DensificationRules:
        config, spacing = self.config, self.blocks.spacing
        return DensificationRules(
            gradient=config.growth_gradient,
            split_size=config.split_size * spacing,
            max_size=config.max_size * spacing,
            min_opacity=config.min_opacity,
            min_views=config.growth_views,
            max_splats=int(config.growth_limit * len(self.blocks.first_points(unit))),
        )


build = PlainSplats
load = MergedSplats.load
