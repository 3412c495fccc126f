"""When each primitive was made: the number of steps its block had made by then.

Primitives of a block's first state have 0. What grows gets the step after which it appeared, and keeps it whatever
happens to it later: other blocks train copies of it, its block is cut in two, the run is stopped and resumed, the scene
merged. Nothing reads it in training. `UNKNOWN` stands for primitives of a state that was written without.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BORN = "growth.born"
"""The tensor [N] int32 in a block's state, four bytes a primitive."""

UNKNOWN = -1


def first_births(count: int) -> Tensor:
    """Of ``count`` primitives before the first step."""
    return torch.zeros(count, dtype=torch.int32)


def births_of(state: Mapping[str, Tensor], positions: str) -> Tensor:
    """The births in a state; all `UNKNOWN` where it has none. ``positions``: name of a tensor with a row for each."""
    rows = state[positions]
    return state.get(BORN, torch.full((len(rows),), UNKNOWN, dtype=torch.int32, device=rows.device))


def births_after(born: Tensor, keep: Tensor, added: int, step: int) -> Tensor:
    """The births of those kept (mask [N]) followed by ``added`` new ones that appear after step number ``step``."""
    return torch.cat([born[keep], born.new_full((added,), step + 1)])
