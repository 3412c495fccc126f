"""A unit that outgrew its memory becomes two, and the schedule goes on with one unit more.

The cell is cut where half of what the unit holds lies on either side; the unit keeps the part below, a new unit gets
the part above, so cells go on tiling space and numbers of units stay gapless. Both continue from the same state file:
each takes the rows inside its own cell and those beyond it that its views see. What is inside the two cells is inside
the old one, each row once, so a merged scene does not show that a cut was made. Everything here is a function of states
and schedule, never of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from scene_distill.blocks.assignment import AREA_THRESHOLD, area_shares, assign_views
from scene_distill.blocks.partition import Partition, middle_cut
from scene_distill.blocks.schedule import Round
from scene_distill.blocks.store import State
from scene_distill.blocks.visibility import Visibility
from scene_distill.core.cameras import Camera
from scene_distill.data.scene import Scene

MARGIN = 0.05
"""A row this share of the image outside of it still counts as seen: primitives have a size."""


@dataclass(frozen=True)
class StateRows:
    """Which tensors of a state have one row per primitive: those whose names begin with one of ``prefixes``.
    ``positions`` [N, 3] and ``log_scales`` [N, 3 or more] are the names of two of them."""

    positions: str
    log_scales: str
    prefixes: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether a tensor has one row per primitive."""
        return name.startswith(self.prefixes)


@dataclass(frozen=True)
class Split:
    """Before round ``round``, the cell of ``unit`` was cut at ``at`` (contracted coordinate) across ``axis``; ``unit``
    keeps what lies below, ``added`` gets the rest. ``file`` holds the state of both until each has trained; '' when the
    unit had never trained."""

    round: int
    unit: int
    added: int
    axis: int
    at: float
    file: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


def split_partition(cells: Partition, split: Split) -> Partition:
    """The partition after a split: one cell more, every other cell as it was."""
    if split.added != len(cells):
        raise ValueError(f"the new unit of {len(cells)} must be {len(cells)}, not {split.added}")
    low, high = cells.cells[split.unit].split(split.axis, split.at)
    return replace(cells, cells=(*cells.cells[: split.unit], low, *cells.cells[split.unit + 1 :], high))


def cut_of(cells: Partition, unit: int, positions: np.ndarray) -> tuple[int, float]:
    """(axis, contracted position) that leaves half of the world positions [N, 3] inside the unit's cell on either side,
    across the longer side of what they cover."""
    inside = positions[cells.owns(positions, unit)]
    footprint = cells.space.ground_from_world(inside)[:, :2]
    return middle_cut(cells.cells[unit], cells.space.contract(inside), footprint)


def split_assignment(
    scene: Scene, cells: Partition, before: np.ndarray, split: Split, visibility: Visibility,
    threshold: float = AREA_THRESHOLD,
) -> np.ndarray:  # fmt: skip
    """Which train view trains which block after a split, [V, K + 1] bool; ``cells`` are those after it, ``before``
    [V, K] is the assignment before.

    The unit's views are assigned anew to the two by the rule of `assign_views`; one that neither would get goes to the
    one that fills more of it. Other units keep theirs.
    """
    pair = [split.unit, split.added]
    mine = before[:, split.unit]
    found = assign_views(scene, cells, threshold=threshold, visibility=visibility)[:, pair] & mine[:, None]
    shares = area_shares(scene, cells, visibility)[:, pair]
    left = mine & ~found.any(axis=1)
    found[left, shares[left].argmax(axis=1)] = True
    for child in np.flatnonzero(~found.any(axis=0)):
        found[np.argmax(np.where(mine, shares[:, child], -1.0)), child] = mine.any()
    after = np.concatenate([before, found[:, 1:]], axis=1)
    after[:, split.unit] = found[:, 0]
    return after


def seen_rows(positions: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """Which positions [N, 3] lie in the image of at least one camera, or at most `MARGIN` of it outside, [N] bool."""
    seen = np.zeros(len(positions), dtype=bool)
    for camera in cameras:
        rest = np.flatnonzero(~seen)
        pixels, depth = camera.project(positions[rest])
        size = np.array([camera.width, camera.height])
        inside = ((pixels >= -MARGIN * size) & (pixels <= (1 + MARGIN) * size)).all(axis=1)
        seen[rest[(depth > 0) & inside]] = True
    return seen


def part_of_state(state: State, rows: StateRows, keep: Tensor) -> State:
    """The state with only the rows of a mask [N], where tensors have rows; the others are copied."""
    return {name: tensor[keep] if rows.has(name) else tensor.clone() for name, tensor in state.items()}


def split_rounds(rounds: Sequence[Round], split: Split) -> tuple[Round, ...]:
    """The schedule after a split: earlier rounds as they were, then the visits that were left, each of the unit's
    followed by one of the new unit, in rounds of as many lanes as before.

    The new unit makes as many steps as the unit has left. Visits come in the same cyclic order in every sweep, so no
    round holds a unit twice.
    """
    width = len(rounds[0].visits)
    done, left = rounds[: split.round], rounds[split.round :]
    stream = []
    for visit in (visit for round_ in left for visit in round_.visits):
        stream.append(visit)
        if visit.unit == split.unit:
            stream.append(replace(visit, unit=split.added))
    last = max(visit.sweep for round_ in rounds for visit in round_.visits)
    planned, shared_step = list(done), left[0].shared_step if left else 0
    for start in range(0, len(stream), width):
        visits = tuple(replace(visit, lane=lane) for lane, visit in enumerate(stream[start : start + width]))
        final = last > 0 and any(visit.sweep == last for visit in visits)
        planned.append(Round(len(planned), visits, shared_step, final))
        shared_step += planned[-1].steps
    return tuple(planned)


def part_rows(positions: np.ndarray, cells: Partition, unit: int, cameras: Sequence[Camera]) -> np.ndarray:
    """Which rows ``unit`` takes of a state that was made before its cell was cut, [N] bool: those inside its cell, and
    those beyond it that its views see. positions [N, 3] and ``cameras`` are in the world."""
    keep = cells.owns(positions, unit)
    beyond = np.flatnonzero(~keep)
    keep[beyond[seen_rows(positions[beyond], cameras)]] = True
    return keep
