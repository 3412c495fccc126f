"""What an item of a batch is: a row of a dense tensor, or the rows of a sparse one that belong to an object.

Means and norms of objectives are taken per item, so that a large sparse object does not outweigh a small one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Items:
    """Dense tensors [B, ...] without ``item``; with ``item`` [N] int64 (0 .. B-1) sparse ones [N, C]."""

    item: Tensor | None = None
    count: int = 0

    def spread(self, per_item: Tensor, like: Tensor) -> Tensor:
        """Values [B] so that they multiply a tensor of the shape of ``like``."""
        return self.rows(per_item).reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)

    def rows(self, per_item: Tensor) -> Tensor:
        """Values [B] as one for every row of the tensors."""
        return per_item if self.item is None else per_item[self.item]

    def mean(self, values: Tensor) -> Tensor:
        """Means [B] over an item's elements."""
        if self.item is None:
            return values.flatten(1).mean(1)
        return self._sum(values) / (self._rows(values) * values[0].numel())

    def norm(self, values: Tensor) -> Tensor:
        """L2 norms [B] over an item's elements."""
        if self.item is None:
            return values.flatten(1).norm(dim=1)
        return self._sum(values.square()).sqrt()

    def _sum(self, values: Tensor) -> Tensor:
        assert self.item is not None
        return values.new_zeros(self.count).index_add(0, self.item, values.flatten(1).sum(1))

    def _rows(self, values: Tensor) -> Tensor:
        assert self.item is not None
        return torch.bincount(self.item, minlength=self.count).clamp_min(1).to(values.dtype)


DENSE = Items()
"""Tensors whose first axis counts the items."""
