"""Sparse tensors: features on the occupied voxels of a batch of grids.

Many layers work on the same voxels, so what depends on places alone (neighbours, windows, counts) is worked out once
and kept with them: `Voxels` is shared by every `SparseTensor` on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Voxels:
    """N occupied voxels of B grids.

    coords int32 [N, 4]: (item, x, y, z), none negative, the rows of an item together and items in order; every item has
    a voxel and no voxel stands twice. Raises `ValueError` otherwise (doubles are found when neighbours are looked for).
    """

    def __init__(self, coords: Tensor):
        if coords.ndim != 2 or coords.shape[1] != 4 or len(coords) == 0:
            raise ValueError(f"voxels are rows (item, x, y, z), at least one, not {tuple(coords.shape)}")
        if int(coords.min()) < 0:
            raise ValueError("voxels have no negative coordinates")
        self.coords = coords.to(torch.int32)
        items = coords[:, 0].long()
        steps = torch.diff(items, prepend=items.new_tensor([-1]))
        if bool(((steps != 0) & (steps != 1)).any()):
            raise ValueError("voxels of an item stand together, items in order, and no item is empty")
        self._made: dict[Any, Any] = {}

    def __len__(self) -> int:
        return self.coords.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the coordinates are."""
        return self.coords.device

    @cached_property
    def item(self) -> Tensor:
        """Item of every voxel, int64 [N]."""
        return self.coords[:, 0].long()

    @cached_property
    def places(self) -> Tensor:
        """(x, y, z) of every voxel, int64 [N, 3]."""
        return self.coords[:, 1:].long()

    @cached_property
    def counts(self) -> list[int]:
        """Voxels of every item."""
        return torch.bincount(self.item).tolist()

    @cached_property
    def extent(self) -> int:
        """One more than the largest coordinate."""
        return int(self.places.max()) + 1

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returned the first time it was asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def codes(self, places: Tensor | None = None) -> Tensor:
        """One int64 number per voxel, rising with (item, x, y, z); for other ``places`` [N, 3] of the same items, which
        may lie one voxel outside."""
        side = self.extent + 2
        x, y, z = (self.places if places is None else places).unbind(1)
        return (((self.item * side + x + 1) * side) + y + 1) * side + z + 1

    def neighbours(self, offset: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Rows (here, there), int32 [M] each, of all pairs with place(there) = place(here) + offset.

        The offset is -1, 0 or 1 an axis. Raises `ValueError` when a voxel stands twice.
        """
        if offset < (0, 0, 0):  # the same pairs the other way round
            there, here = self.neighbours((-offset[0], -offset[1], -offset[2]))
            return here, there
        return self.kept(("neighbours", offset), lambda: self._find(offset))

    def _find(self, offset: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        known, rows = self.kept("sorted codes", self._sorted)
        wanted = self.codes(self.places + torch.tensor(offset, device=self.device))
        at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        here = torch.nonzero(known[at] == wanted).squeeze(1)
        return here.int(), rows[at[here]].int()

    def _sorted(self) -> tuple[Tensor, Tensor]:
        known, rows = self.codes().sort()
        if bool((torch.diff(known) == 0).any()):
            raise ValueError("a voxel stands twice")
        return known, rows


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """features [N, C] on N voxels."""

    features: Tensor
    voxels: Voxels

    def __post_init__(self) -> None:
        if len(self.features) != len(self.voxels):
            raise ValueError(f"{len(self.features)} rows of features for {len(self.voxels)} voxels")

    def __len__(self) -> int:
        return len(self.voxels)

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features on the same voxels."""
        return SparseTensor(features, self.voxels)

    def items(self) -> list[tuple[Tensor, Tensor]]:
        """Features [N_i, C] and places int64 [N_i, 3] of every item."""
        counts = self.voxels.counts
        return list(zip(self.features.split(counts), self.voxels.places.split(counts), strict=True))
