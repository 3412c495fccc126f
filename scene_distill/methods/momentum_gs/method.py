"""Momentum-GS, wired: a scene becomes blocks, blocks share a decoder with a momentum teacher, and merge into one
city."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene_distill.blocks import assignment as assigning
from scene_distill.blocks.partition import Partition
from scene_distill.blocks.runtime import SavedState
from scene_distill.blocks.schedule import Round, Visit, make_schedule
from scene_distill.blocks.splitting import Split, StateRows, split_rounds
from scene_distill.blocks.store import State
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Scene
from scene_distill.methods.momentum_gs import seam_finish
from scene_distill.methods.momentum_gs.block import BlockSetting, BlockTraining, first_block_state
from scene_distill.methods.momentum_gs.coarse import render_difference, train_coarse
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.decoder_training import DecoderClock, DecoderTraining
from scene_distill.methods.momentum_gs.far_views import detail_of
from scene_distill.methods.momentum_gs.halo import OWNER, HaloRegion, exchanged, stored_owners
from scene_distill.methods.momentum_gs.merged import MergedCity
from scene_distill.nets.gaussian_decoder import decoder_from_state
from scene_distill.representations.anchors import LEARNED, Anchors, anchors_from_points, voxelise
from scene_distill.representations.births import births_of
from scene_distill.representations.densification import GrowthRules
from scene_distill.representations.levels import CoarserVoxels
from scene_distill.training.estimates import Growth
from scene_distill.training.scene_blocks import SceneBlocks

ROWS = StateRows(
    "anchors.positions", "anchors.log_scales",
    ("anchors.", "growth.", "halo.", *(f"moments.{name}." for name in LEARNED)),
)  # fmt: skip
"""What a block's state has of every anchor."""

EXPECTED_GROWTH = 1.7
"""Anchors of a block at its end for one at its start: 1.4 after 120 steps, 2.1 after 3,200 (aerial_sheffield)."""

BYTES_PER_ANCHOR = 4 * (71 + 2 * 68 + 68 + 22)
"""Parameters, two moments, gradients and growth statistics of one anchor in float32."""

STATE_BYTES_PER_ANCHOR = 4 * (71 + 2 * 68 + 22 + 3 + 1)
"""What a state holds of an anchor: parameters, moments, growth statistics, its halo's numbers and its birth."""

BYTES_PER_VISIBLE_ANCHOR = 10 * 4 * (2 * 14 + 2 * 14 + 40)
"""Measured order of a step's scratch per visible anchor: decoded slots and their gradients, projection, tile pairs."""


class MomentumGS:
    """The method as the runtime sees it (`blocks.runtime.Method`), plus planning and merging."""

    rows = ROWS

    def __init__(
        self, config: MomentumGSConfig, scene: Scene, images: ImageCache, prepared: np.ndarray | None = None
    ) -> None:
        if config.halo == "shared" and not config.share_decoder:
            raise UserError("--no-share-decoder needs --halo private: only its own decoder can read an anchor")
        seam_finish.check(config)
        self.config, self.scene, self.images = config, scene, images
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._near: dict[int, tuple[int, ...]] = {}
        self.blocks = SceneBlocks(scene, images, config.blocks, config.partition, config.view_threshold, self.device)
        self.detail = detail_of(config, self.blocks.spacing)
        if config.assignment == "render":
            self.blocks.assignment = self._assigned_by_render() if prepared is None else prepared
        self.rounds = make_schedule(config.blocks, config.lanes, config.iterations, config.visits, config.seed)
        if config.block_order == "contiguous":
            self.rounds = reordered(self.rounds, range(config.blocks))
        elif config.block_order == "cost":
            self.rounds = reordered(self.rounds, self.blocks.order_by_cost(config.lanes, config.seed).tolist())
        clock = DecoderClock.of_all(self.rounds)
        self.shared = DecoderTraining(config, clock, len(scene.train_frames), self.device, config.seed, "shared")

    def preparation(self) -> np.ndarray | None:
        """The assignment where it took a coarse model to find it (`training.loop.PreparedScene`)."""
        return self.assignment if self.config.assignment == "render" else None

    @property
    def partition(self) -> Partition:
        """The cells of the blocks."""
        return self.blocks.partition

    @property
    def assignment(self) -> np.ndarray:
        """Which train view trains which block, [V, K] bool."""
        return self.blocks.assignment

    @property
    def growth(self) -> Growth:
        """How blocks are expected to grow."""
        config = self.config
        factor = min(EXPECTED_GROWTH, config.growth_limit)
        return Growth(config.grow_from, config.grow_until, factor, config.growth_events)

    def _assigned_by_render(self) -> np.ndarray:
        """The paper's assignment, by the renders of a coarse model of the whole scene."""
        config = self.config
        coarse = replace(
            config,
            blocks=1,
            lanes=1,
            iterations=config.coarse_iterations,
            consistency=0.0,
            assignment="points",
            seam_finish=0.0,
            level_of_detail=0.0,
        )
        whole = MomentumGS(coarse, self.scene, self.images)
        difference = render_difference(whole, train_coarse(whole), self.partition)
        return assigning.assign_views_by_render(
            self.scene, self.partition, difference, threshold=config.render_threshold, visibility=self.blocks.visibility
        )

    def first_state(self, unit: int) -> State:
        """Anchors at the block's own points and at what its views see beyond the cell; fresh moments and statistics."""
        ids = self.blocks.first_points(unit)
        size = self.blocks.spacing * self.config.points_per_voxel
        points, colors = voxelise(self.scene.points[ids] - self.blocks.origin, self.scene.colors[ids] / 255.0, size)
        anchors = anchors_from_points(
            torch.from_numpy(points).float(), torch.from_numpy(colors).float(), **self._start(unit)
        )
        if self.detail is not None:
            anchors = self._with_stand_ins(anchors, ids, unit)
        anchors.log_scales[:, 3:].clamp_(max=math.log(self._rules(unit).max_size))
        state = first_block_state(anchors, self._owners(unit, anchors.positions)) | seam_finish.first_phase(self.config)
        if not self.config.share_decoder:
            setting = self._setting(unit)
            decoder = DecoderTraining(
                self.config, setting.clock, setting.all_views, self.device, self.config.seed, unit
            )
            state |= decoder.state()
        return state

    def _start(self, unit: int) -> dict[str, Any]:
        """How the anchors of a block start, as `anchors_from_points` takes it."""
        picture = self.config.start == "picture"
        return {"spread": 0.3 if picture else 0.0, "color_init": picture, "seed_parts": (self.config.seed, unit)}

    def _with_stand_ins(self, anchors: Anchors, ids: np.ndarray, unit: int) -> Anchors:
        """Anchors of level 0 with the coarser ones of the points ``ids``."""
        fine = replace(anchors, levels=torch.zeros(len(anchors)))
        return fine.append(self._coarser_voxels.anchors(ids, **self._start(unit)))

    @cached_property
    def _coarser_voxels(self) -> CoarserVoxels:
        assert self.detail is not None
        return CoarserVoxels(self.scene.points - self.blocks.origin, self.scene.colors / 255.0, self.detail.edge)

    def _owners(self, unit: int, positions: Tensor) -> Tensor:
        """The block that owns each of a block's anchors [A], int32; with a private halo all are its own."""
        if self.config.halo == "private":
            return torch.full((len(positions),), unit, dtype=torch.int32)
        return self._cells_of(positions)

    def _cells_of(self, positions: Tensor) -> Tensor:
        """The block in whose cell each position lies [A], int32."""
        owners = self.partition.owner(positions.double().cpu().numpy() + self.blocks.origin)
        return torch.from_numpy(owners).to(positions.device, torch.int32)

    def neighbours(self, unit: int) -> tuple[int, ...]:
        """The blocks that train some of the anchors which this block trains."""
        if self.config.halo == "private" and self.config.seam_finish == 0:
            return ()
        if unit not in self._near:
            mine = self._regions[unit]
            meets = (other for other, region in enumerate(self._regions) if other != unit and mine.meets(region))
            self._near[unit] = tuple(meets)
        return self._near[unit]

    def exchanged(self, unit: int, state: State, around: Mapping[int, SavedState]) -> State:
        """A block's state with the newest copies of the anchors it shares with its neighbours (`halo`)."""
        if self.config.seam_finish > 0:
            return seam_finish.opened(unit, state, around, self._regions[unit].holds,
                                      lambda _, light: self._cells_of(light["anchors.positions"]))  # fmt: skip
        was_split = len(self.partition) > self.config.blocks
        return exchanged(
            unit, state, around, self._regions[unit].holds, self._owners_anew if was_split else stored_owners
        )

    def _owners_anew(self, unit: int, state: State) -> Tensor:
        """Owners of a state's anchors, which may have come to others when a block was split."""
        return self._owners(unit, state["anchors.positions"])

    @cached_property
    def _regions(self) -> tuple[HaloRegion, ...]:
        """Where each block takes and trains anchors: around the points it starts from."""
        blocks = self.blocks
        points = (self.scene.points[blocks.first_points(unit)] - blocks.origin for unit in range(len(self.partition)))
        return tuple(HaloRegion(torch.from_numpy(part).float(), blocks.spacing) for part in points)

    @property
    def state_limit(self) -> int:
        """Bytes of a state above which its block is split (`blocks.runtime.DivisibleMethod`)."""
        scratch = BYTES_PER_ANCHOR - STATE_BYTES_PER_ANCHOR + BYTES_PER_VISIBLE_ANCHOR
        return self.blocks.state_limit(self.config.max_block_memory, STATE_BYTES_PER_ANCHOR, scratch)

    def cut(self, unit: int, state: State) -> tuple[int, float] | None:
        """The cut that halves a block."""
        return self.blocks.cut(unit, state, ROWS)

    def split(self, split: Split) -> None:
        """From now on a block is two."""
        self.blocks.split(split)
        self.rounds = split_rounds(self.rounds, split)
        self.__dict__.pop("_regions", None)
        self._near = {}

    def part(self, unit: int, state: State) -> State:
        """What a block takes of a state that was made before it was split."""
        part = self.blocks.part(unit, state, ROWS)
        return part | {OWNER: self._owners_anew(unit, part)}

    def open(self, unit: int, state: State, visit: Visit, round_: Round) -> BlockTraining:
        """A block ready for one visit."""
        shared = self.shared if self.config.share_decoder else None
        state = {name: tensor.to(self.device) for name, tensor in state.items()}
        copies = self._copies_beside(unit, round_, state["anchors.positions"])
        return BlockTraining(self.config, self._setting(unit), state, shared, visit, round_, copies)

    def _copies_beside(self, unit: int, round_: Round, positions: Tensor) -> Tensor | None:
        """How many lanes of a round train each anchor [A], int32, with the block's own; None where none is shared."""
        if self.config.halo == "private" or self.config.copies_rate == 0:
            return None
        copies = torch.ones(len(positions), dtype=torch.int32, device=positions.device)
        for other in {visit.unit for visit in round_.visits} & set(self.neighbours(unit)):
            copies += self._regions[other].holds(positions.cpu()).to(copies)
        return copies

    def merge(self, states: Mapping[int, SavedState]) -> MergedCity:
        """One city: of each block the anchors inside its own cell (cells are disjoint, nothing is blended)."""
        kept, blocks, born, decoders = [], [], [], []
        for unit in sorted(states):
            state = states[unit]()
            around = {other: states[other] for other in self.neighbours(unit)}
            state = self.exchanged(unit, state, around) if around else state
            anchors = Anchors.of_state(state).to("cpu")
            mine = self.blocks.owns(unit, anchors.positions)
            kept.append(anchors.select(mine))
            blocks.append(torch.full((len(kept[-1]),), unit, dtype=torch.int32))
            born.append(births_of(state, "anchors.positions").cpu()[mine])
            if not self.config.share_decoder:
                decoders.append(decoder_from_state(state, "student"))
        shared = (self.shared.student.copy(),) if self.config.share_decoder else tuple(decoders)
        metadata = {"blocks": self.partition.to_dict(), "up": self.scene.up.tolist()} | self.scene.metadata
        if self.detail is not None:
            metadata["level_of_detail"] = self.detail.to_dict()
        if self.config.appearance_dim > 0:
            metadata["appearance_views"] = [frame.name for frame in self.scene.train_frames]
        origin = self.blocks.origin
        city = MergedCity(Anchors.cat(kept), torch.cat(blocks), shared, origin, metadata, torch.cat(born))
        return city.to(self.device)

    def _setting(self, unit: int) -> BlockSetting:
        blocks = self.blocks
        return BlockSetting(
            unit, blocks.views(unit), len(self.scene.train_frames), DecoderClock.of_one(self.rounds, unit),
            self._rules(unit), blocks.spacing, lambda positions: blocks.owns(unit, positions),
        )  # fmt: skip

    def _rules(self, unit: int) -> GrowthRules:
        config, first = self.config, self.blocks.first_points(unit)
        if config.halo == "shared":
            first = first[self.partition.owns(self.scene.points[first], unit)]
        return GrowthRules(
            cells=tuple(cell * self.blocks.spacing for cell in config.growth_cells),
            gradient=config.growth_gradient,
            min_views=config.growth_views,
            min_opacity=config.min_opacity,
            max_size=4.0 * self.blocks.spacing,
            max_anchors=int(config.growth_limit * len(first)),
        )

    def plan(self) -> dict[str, Any]:
        """What will be trained, before it is: a text table, the anchors of the largest lanes, and bytes of a round."""
        firsts = (len(self.blocks.first_points(unit)) for unit in range(self.config.blocks))
        most = self.state_limit // STATE_BYTES_PER_ANCHOR or None
        grown = (int(self.config.growth_limit * first) for first in firsts)
        limits = sorted((min(anchors, most or anchors) for anchors in grown), reverse=True)
        lanes = limits[: min(self.config.lanes, self.config.blocks)]
        working_set = BYTES_PER_ANCHOR * sum(lanes) + BYTES_PER_VISIBLE_ANCHOR * limits[0]
        return {"table": self.blocks.table(), "working_set_bytes": working_set}


def reordered(rounds: tuple[Round, ...], order: Sequence[int]) -> tuple[Round, ...]:
    """The same rounds with the blocks in another order."""
    before = dict.fromkeys(visit.unit for round_ in rounds for visit in round_.visits)
    name = dict(zip(before, order, strict=True))
    return tuple(
        replace(round_, visits=tuple(replace(visit, unit=name[visit.unit]) for visit in round_.visits))
        for round_ in rounds
    )


build = MomentumGS
load = MergedCity.load
