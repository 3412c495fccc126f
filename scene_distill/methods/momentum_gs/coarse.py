"""The paper's coarse pre-run: one small model of the whole scene that says what a view loses without a block.

A view trains a block when 1 - SSIM(full render, render without the block's anchors) exceeds a threshold (spec
momentum_gs.md, section 2). It costs a training of the whole scene and views x blocks renders, which is why the
default asks the
points instead; it follows from the config and the scene alone, so a resumed run finds the same assignment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from scene_distill.blocks.partition import Partition
from scene_distill.blocks.runtime import ComputedState
from scene_distill.core.console import progress
from scene_distill.objectives import photometric

if TYPE_CHECKING:
    from scene_distill.methods.momentum_gs.merged import MergedCity
    from scene_distill.methods.momentum_gs.method import MomentumGS


def train_coarse(whole: MomentumGS) -> MergedCity:
    """Train a method of one block from start to end in memory."""
    visit_of = [(round_, visit) for round_ in whole.rounds for visit in round_.visits]
    state = whole.first_state(0)
    with progress("coarse model", whole.config.iterations) as meter:
        for round_, visit in visit_of:
            block = whole.open(0, state, visit, round_)
            for offset in range(visit.steps):
                whole.shared.begin_step(round_.shared_step + offset, round_.final)
                gradients, _ = block.step(visit.first_step + offset)
                if gradients is not None:
                    whole.shared.apply(gradients, round_.shared_step + offset)
            state, _ = block.close()
            meter.update(visit.first_step + visit.steps)
    return whole.merge({0: ComputedState(lambda: state)})


def render_difference(whole: MomentumGS, city: MergedCity, partition: Partition) -> Callable[[int, int], float]:
    """A function (train view, block) -> 1 - SSIM between the city's render and the render without the block's
    anchors."""
    world = city.anchors.positions.double().numpy() + city.origin
    owned = replace(city, block=torch.from_numpy(partition.owner(world)).to(torch.int32))
    everyone = frozenset(range(len(partition)))
    cameras = [whole.images.camera(frame) for frame in whole.scene.train_frames]
    full: dict[int, torch.Tensor] = {}

    def difference(view: int, block: int) -> float:
        if view not in full:
            full.clear()
            full[view] = city.render(cameras[view]).image
        without = owned.render(cameras[view], blocks=everyone - {block}).image
        return 1.0 - float(photometric.reconstruction(without, full[view], 1.0)[2])

    return difference
