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

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scene_distill.blocks.runtime import SavedState
from scene_distill.blocks.store import State
from scene_distill.representations.births import BORN, births_of
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


class _Light(NamedTuple):
    """What says which anchors a state has copies of, and which of them count: 24 bytes of an anchor's 1,200."""

    keys: Tensor
    owner: Tensor
    stamp: Tensor
    steps: Tensor


Owners = Callable[[int, State], Tensor]
"""(block, its state or the light part of it) -> the block that owns each anchor [A]."""


def stored_owners(block: int, state: State) -> Tensor:
    """The owners as the state has them."""
    return state[OWNER]


def exchanged(unit: int, own: State, around: Mapping[int, SavedState], region: Callable[[Tensor], Tensor],
              owners: Owners = stored_owners) -> State:  # fmt: skip
    """The state a block opens with: membership from the owners, values from the newest copies.

    own: the block's newest state; around: those of its neighbours that were visited; region: positions -> mask of
    the halo. Tensors of the result are new. First the light parts of all states say which rows are wanted; then every
    state is loaded once, one at a time. Rows come in the order of the states they are taken from, own first; those that
    were averaged are last.
    """
    light = {unit: _light_part(unit, own, owners)}
    members = [_members(unit, own["anchors.positions"], light[unit], around, region)]
    for neighbour in sorted(around):
        part = around[neighbour].some("anchors.positions", OWNER, STAMP, STEPS)
        light[neighbour] = _light_part(neighbour, part, owners)
        rows = (light[neighbour].owner == neighbour).nonzero().squeeze(1)
        members.append((neighbour, rows[region(part["anchors.positions"][rows])]))
    order = list(light)
    wanted = torch.cat([light[block].keys[rows] for block, rows in members])
    at = torch.cat([torch.full((len(rows),), order.index(block)) for block, rows in members])
    rows_at = torch.cat([rows for _, rows in members])
    newest = _newest(wanted, list(light.values()), at, rows_at)
    names = [name for name in own if name.startswith(("anchors.", "moments.", "growth."))]
    return own | _gathered(names, newest, [own, *(around[block] for block in order[1:])], {
        OWNER: torch.cat([light[block].owner[rows] for block, rows in members])[newest.order].to(own[OWNER].dtype),
        STAMP: newest.stamp, STEPS: newest.steps,
    })  # fmt: skip


def _light_part(block: int, state: State, owners: Owners) -> _Light:
    return _Light(_position_keys(state["anchors.positions"]), owners(block, state), state[STAMP], state[STEPS])


def _members(unit: int, positions: Tensor, light: _Light, around: Mapping[int, SavedState],
             region: Callable[[Tensor], Tensor]) -> tuple[int, Tensor]:  # fmt: skip
    """(block, rows) of the block's own anchors, and of neighbours that were never visited the copies it began with."""
    known = torch.tensor(sorted(around), dtype=light.owner.dtype)
    return unit, ((light.owner == unit) | ~torch.isin(light.owner, known)).nonzero().squeeze(1)


class _Newest(NamedTuple):
    """Which rows to take. order [W]: the wanted anchors in the order of the result; stamp, steps [W] in that order;
    single: rows of each state, one after the other, that make the result's first rows; shared: (places counted from the
    end of those, rows, weights) of each state in the rest, which are weighted sums."""

    order: Tensor
    stamp: Tensor
    steps: Tensor
    single: list[Tensor]
    shared: list[tuple[Tensor, Tensor, Tensor]]


def _newest(wanted: Tensor, states: list[_Light], at: Tensor, rows_at: Tensor) -> _Newest:
    """Of every wanted anchor (keys [W]) the trained copies with the newest stamp; where there are none, the copy of its
    member, row ``rows_at`` of state ``at``. Means of copies are all alike, so one of them is enough."""
    count, stamp = torch.zeros_like(at), torch.full((len(wanted),), -1, dtype=torch.int32)
    steps, source, row = torch.zeros(len(wanted)), at.clone(), rows_at.clone()
    found = _copies(wanted, states)
    for state, (places, rows) in zip(states, found, strict=True):
        stamp[places] = torch.maximum(stamp[places], state.stamp[rows])
    for number, (state, (places, rows)) in enumerate(zip(states, found, strict=True)):
        counts = (state.stamp[rows] == stamp[places]) & ((count[places] == 0) | (stamp[places] % 2 == 0))
        newest_at, newest_rows = places[counts], rows[counts]
        found[number] = (newest_at, newest_rows)
        count[newest_at] += 1
        steps[newest_at] += state.steps[newest_rows]
        source[newest_at], row[newest_at] = number, newest_rows
    several = count > 1
    order = torch.argsort(torch.where(several, len(states), source), stable=True)
    singles = len(wanted) - int(several.sum())
    parts = source[order[:singles]]
    single = [row[order[:singles][parts == number]] for number in range(len(states))]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - singles
    shared = []
    for state, (places, rows) in zip(states, found, strict=True):
        mean, parts_of_it = places[several[places]], rows[several[places]]
        shared.append((place[mean], parts_of_it, state.steps[parts_of_it] / steps[mean]))
    return _Newest(order, torch.where(several, stamp + 1, stamp)[order], steps[order], single, shared)


def _copies(wanted: Tensor, states: list[_Light]) -> list[tuple[Tensor, Tensor]]:
    """For every state (places in ``wanted``, rows of the state) of its trained copies of wanted anchors."""
    order = wanted.argsort()
    ordered = wanted[order]
    found = []
    for state in states:
        rows = (state.stamp >= 0).nonzero().squeeze(1)
        at = torch.searchsorted(ordered, state.keys[rows]).clamp(max=len(ordered) - 1)
        match = ordered[at] == state.keys[rows]
        found.append((order[at[match]], rows[match]))
    return found


def _gathered(names: list[str], newest: _Newest, states: Sequence[State | SavedState], rest: State) -> State:
    """The named tensors of the result beside ``rest``; of ``states`` one at a time is loaded."""
    size, singles = len(newest.order), sum(len(rows) for rows in newest.single)
    result, begin = dict(rest), 0
    for source, rows, (places, shared_rows, weight) in zip(states, newest.single, newest.shared, strict=True):
        state = source if isinstance(source, dict) else source()
        for name in names:
            tensor = births_of(state, "anchors.positions") if name == BORN else state[name]
            if name not in result:
                result[name] = tensor.new_zeros((size, *tensor.shape[1:]))
            torch.index_select(tensor, 0, rows, out=result[name][begin : begin + len(rows)])
            mean, part = result[name][singles:], tensor.index_select(0, shared_rows)
            if name in ("anchors.positions", BORN):
                mean.index_copy_(0, places, part)
            else:
                mean.index_add_(0, places, part.mul_(weight.reshape(-1, *[1] * (tensor.dim() - 1))))
        begin += len(rows)
    return result


def _position_keys(positions: Tensor) -> Tensor:
    """An int64 [N] for each position [N, 3] float32: its bits, mixed so that no two positions of a city meet."""
    bits = positions.contiguous().view(torch.int32).to(torch.int64)
    key = torch.zeros(len(bits), dtype=torch.int64)
    for axis in range(3):
        key = (key ^ bits[:, axis]) * -7046029254386353131
        key = key ^ (key >> 29)
    return key
