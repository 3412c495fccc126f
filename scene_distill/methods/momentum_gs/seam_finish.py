"""The seam finish: blocks with private halos train what lies around their borders jointly in their last visits.

With a private halo every block fits copies of its surroundings, and the merge puts anchors side by side that were never
drawn together. In the finish a block opens with the anchors themselves: its own and, of its neighbours', those in its
halo, each in the copy that was trained last (`halo.exchanged`). So the merged city is trained along its borders, by the
same rounds and lanes as before.

A block joins with its first visit that begins in the last ``seam_finish`` of its steps. Its private copies are dropped
then, and those of neighbours that did not join yet count for nothing. A state says how far its block is, so a run that
was stopped goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.blocks.runtime import SavedState
from scene_distill.blocks.schedule import Visit
from scene_distill.blocks.store import State
from scene_distill.core.errors import UserError
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.halo import Owners, exchanged

PHASE = "seam.phase"
"""State [1] int32: how far a block is on its way into the finish; only in runs that have one."""

PRIVATE, BEFORE, JOINED = 0, 1, 2
"""Values of PHASE: the next visit is private too, the next visit is the first of the finish, it has begun."""

_OF_ANCHORS = ("anchors.", "growth.", "halo.", "moments.")


def check(config: MomentumGSConfig) -> None:
    """Refuse settings that make no finish; raises `UserError`."""
    fraction = config.seam_finish
    if fraction == 0:
        return
    if not 0 < fraction < 1:
        raise UserError(f"--seam-finish is {fraction:g}; it is a fraction of a block's steps, between 0 and 1")
    if config.halo == "shared":
        raise UserError(
            "--seam-finish needs --halo private: with a shared halo blocks train along their borders jointly anyway"
        )
    if not config.share_decoder:
        raise UserError("--seam-finish needs a shared decoder: leave out --no-share-decoder")
    visits = max(1, min(config.visits, config.iterations))
    last = config.iterations * (visits - 1) // visits
    if not _begins_in_finish(config, last) or last == 0:
        raise UserError(
            f"--seam-finish {fraction:g} is shorter than a visit; give at least {1 - last / config.iterations:.3g}"
            if last else "--seam-finish needs at least two visits; give more --visits or --iterations"
        )  # fmt: skip


def first_phase(config: MomentumGSConfig) -> State:
    """What the state of a block before its first visit has besides."""
    return {PHASE: torch.tensor([PRIVATE], dtype=torch.int32)} if config.seam_finish > 0 else {}


def phase_after(config: MomentumGSConfig, visit: Visit) -> State:
    """What the state of a block has besides when a visit ends."""
    if config.seam_finish == 0:
        return {}
    after = visit.first_step + visit.steps
    phase = JOINED if _begins_in_finish(config, visit.first_step) else PRIVATE
    if phase == PRIVATE and _begins_in_finish(config, after):
        phase = BEFORE
    return {PHASE: torch.tensor([phase], dtype=torch.int32)}


def _begins_in_finish(config: MomentumGSConfig, first_step: int) -> bool:
    return first_step >= (1.0 - config.seam_finish) * config.iterations - 1e-6


def opened(unit: int, own: State, around: Mapping[int, SavedState], region: Callable[[Tensor], Tensor],
           cells: Owners) -> State:  # fmt: skip
    """The state a block opens with: as it was closed while it is private, in the finish as `halo.exchanged` has it.

    ``cells`` says in which block's cell each anchor lies.
    """
    if int(own[PHASE]) == PRIVATE:
        return {name: tensor.clone() for name, tensor in own.items()}
    settled = {block: _WithoutCopies(block, state, cells) for block, state in around.items()}
    return exchanged(unit, _without_copies(unit, own, own, cells), settled, region, cells)


def _without_copies(block: int, state: State, light: State, cells: Owners) -> State:
    """Of a state the anchors in the block's own cell; all once the block has joined. ``light``: positions, phase."""
    if int(light[PHASE]) == JOINED:
        return state
    keep = cells(block, light) == block
    return {name: tensor[keep] if name.startswith(_OF_ANCHORS) else tensor for name, tensor in state.items()}


@dataclass(frozen=True)
class _WithoutCopies:
    """A saved state without the private copies of a block that has not joined yet."""

    block: int
    saved: SavedState
    cells: Owners

    def __call__(self) -> State:
        state = self.saved()
        return _without_copies(self.block, state, state, self.cells)

    def some(self, *names: str) -> State:
        found = self.saved.some(*dict.fromkeys((*names, "anchors.positions", PHASE)))
        return _without_copies(self.block, {name: found[name] for name in names}, found, self.cells)
