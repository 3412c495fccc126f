"""The halo of a block: anchors of its neighbours that its photographs show, trained by all who see them.

A photograph shows more than the block it trains. In the paper every block trains private copies of what lies outside
its cell and throws them away at the merge: on 150 nadir photos in 8 blocks that is 70 % of all anchor updates. Because
the decoder is shared, an anchor means the same in every block, so the updates can be kept:

- An anchor is owned by the block whose cell it lies in. The owner alone grows and removes it.
- A block opens with its own anchors and, of its neighbours', those in its halo: the coarse cells around the points its
  photographs show. Of every anchor it takes the copy that was trained in the latest round; copies trained side by side
  in that round are averaged, weighted by the number of steps that drew them. Adam's moments and the growth statistics
  travel with the anchor.
- The merge takes the same newest copies.

An anchor is known by its position, which never moves. All reads are of states closed before the round began, so the
result does not depend on who runs which lane.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.representations.densification import cell_keys

OWNER, STAMP, STEPS = "halo.owner", "halo.stamp", "halo.steps"
"""State, [A] each: the block that owns the anchor (int32); when this copy was trained last, 2 x round, 2 x round + 1
for the mean of copies of that round, -1 for never (int32); the steps of that round that drew it (float32)."""

CELL = 4.0
"""Edge of the halo's coarse cells in point spacings: wide enough to hold what a neighbour grows between its points."""


def first_halo(owner: Tensor) -> State:
    """The halo's part of the state of a block that was never visited, from the owner [A] of each of its anchors."""
    never = torch.full((len(owner),), -1, dtype=torch.int32)
    return {OWNER: owner.to(torch.int32), STAMP: never, STEPS: torch.zeros(len(owner))}


class HaloRegion:
    """Which places a block takes neighbours' anchors from: coarse cells that hold ``points`` [P, 3]."""

    def __init__(self, points: Tensor, spacing: float) -> None:
        self.edge = CELL * spacing
        self.keys = torch.unique(cell_keys(points, self.edge))

    def holds(self, positions: Tensor) -> Tensor:
        """Mask [N] of positions [N, 3] in the region."""
        return torch.isin(cell_keys(positions, self.edge), self.keys)

    def meets(self, other: HaloRegion) -> bool:
        """Whether two regions share a cell."""
        return bool(torch.isin(self.keys, other.keys).any())


class _Copies(NamedTuple):
    """One block's copies: row ``rows[i]`` of ``state`` is a copy of the wanted anchor ``places[i]``."""

    state: State
    places: Tensor
    rows: Tensor

    def select(self, mask: Tensor) -> _Copies:
        return _Copies(self.state, self.places[mask], self.rows[mask])


def exchanged(unit: int, own: State, around: Mapping[int, State], region: Callable[[Tensor], Tensor]) -> State:
    """The state a block opens with: membership from the owners, values from the newest copies.

    own: the block's newest state; around: those of its neighbours that were visited; region: positions -> mask of
    the halo. Tensors of the result are new.
    """
    fields = [name for name in own if name.startswith(("anchors.", "moments.", "growth."))]
    members = _members(unit, own, around, region)
    names = (*fields, OWNER, STAMP, STEPS)
    result = {name: torch.cat([state[name][rows] for state, rows in members]) for name in names}
    sources = [own, *(around[neighbour] for neighbour in sorted(around))]
    copies, stamp = _newest(_position_keys(result["anchors.positions"]), sources)
    count, steps = torch.zeros(len(stamp), dtype=torch.int32), torch.zeros(len(stamp))
    for part in copies:
        count[part.places] += 1
        steps[part.places] += part.state[STEPS][part.rows]
    several = count > 1
    learned = [name for name in fields if name != "anchors.positions"]
    for name in learned:
        result[name][several] = 0.0
    for part in copies:
        only, shared = part.select(~several[part.places]), part.select(several[part.places])
        weight = part.state[STEPS][shared.rows] / steps[shared.places]
        for name in learned:
            source, target = part.state[name], result[name]
            target[only.places] = source[only.rows]
            target[shared.places] += weight.reshape(-1, *[1] * (source.dim() - 1)) * source[shared.rows]
    result[STAMP] = torch.where(several, stamp + 1, stamp)
    result[STEPS] = steps
    return own | result


def _members(unit: int, own: State, around: Mapping[int, State],
             region: Callable[[Tensor], Tensor]) -> list[tuple[State, Tensor]]:  # fmt: skip
    """(state, rows) of the anchors a block opens with: its own, its neighbours' in the halo, and of neighbours that
    were never visited the copies it began with."""
    owner = own[OWNER]
    known = torch.tensor(sorted(around), dtype=owner.dtype)
    members = [(own, ((owner == unit) | ~torch.isin(owner, known)).nonzero().squeeze(1))]
    for neighbour in sorted(around):
        state = around[neighbour]
        rows = (state[OWNER] == neighbour).nonzero().squeeze(1)
        members.append((state, rows[region(state["anchors.positions"][rows])]))
    return members


def _newest(wanted: Tensor, sources: list[State]) -> tuple[list[_Copies], Tensor]:
    """Of every wanted anchor (keys [W]) the trained copies with the newest stamp, and that stamp [W], -1 where there
    are none. Means of copies are all alike, so one of them is enough."""
    order = wanted.argsort()
    ordered = wanted[order]
    stamp = torch.full((len(wanted),), -1, dtype=torch.int32)
    found = []
    for state in sources:
        trained = (state[STAMP] >= 0).nonzero().squeeze(1)
        keys = _position_keys(state["anchors.positions"][trained])
        at = torch.searchsorted(ordered, keys).clamp(max=len(ordered) - 1)
        match = ordered[at] == keys
        part = _Copies(state, order[at[match]], trained[match])
        stamp[part.places] = torch.maximum(stamp[part.places], state[STAMP][part.rows])
        found.append(part)
    taken = torch.zeros(len(wanted), dtype=torch.bool)
    newest = []
    for part in found:
        current = part.state[STAMP][part.rows] == stamp[part.places]
        again = taken[part.places] & (stamp[part.places] % 2 == 1)
        newest.append(part.select(current & ~again))
        taken[newest[-1].places] = True
    return newest, stamp


def _position_keys(positions: Tensor) -> Tensor:
    """An int64 [N] for each position [N, 3] float32: its bits, mixed so that no two positions of a city meet."""
    bits = positions.contiguous().view(torch.int32).to(torch.int64)
    key = torch.zeros(len(bits), dtype=torch.int64)
    for axis in range(3):
        key = (key ^ bits[:, axis]) * -7046029254386353131
        key = key ^ (key >> 29)
    return key
