"""The times t that transport objectives look at, and losses told apart by t.

paper: uniform on (0, 1). code: sigmoid(N(1, 1)), more noise than data. Both are then squeezed, as the code does, into
[sigma_min + delta, 1], so that a step back of delta stays on the path.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scene_distill.priors.flow import SIGMA_MIN, logit_normal_times

TimeLaw = Literal["uniform", "logit-normal"]


@dataclass(frozen=True)
class TransportTimes:
    """Draws t; ``earliest``: of the derivative (`Derivative.earliest`)."""

    law: TimeLaw = "uniform"
    earliest: float = 0.01
    sigma_min: float = SIGMA_MIN

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """t [count] float32 in [sigma_min + earliest, 1]."""
        if self.law == "uniform":
            raw = torch.rand(count, generator=generator)
        else:
            raw = logit_normal_times(count, generator=generator)
        first = self.sigma_min + self.earliest
        return first + (1 - first) * raw


@dataclass(frozen=True)
class TimeBins:
    """Equal bins of t in [0, 1]."""

    count: int = 8

    def names(self) -> tuple[str, ...]:
        """'t 0.00-0.12' and so on."""
        edges = [k / self.count for k in range(self.count + 1)]
        return tuple(f"t {a:.2f}-{b:.2f}" for a, b in itertools.pairwise(edges))

    def sums(self, each: Tensor, t: Tensor) -> Tensor:
        """[2, count] float64: sums of the losses ``each`` [B] by bin of t [B], and how many."""
        place = (t.detach() * self.count).long().clamp(0, self.count - 1)
        total = torch.zeros(2, self.count, dtype=torch.float64)
        total[0].index_add_(0, place.cpu(), each.detach().double().cpu())
        total[1] = torch.bincount(place.cpu(), minlength=self.count)
        return total

    def means(self, sums: Tensor) -> dict[str, float]:
        """Mean loss by bin name, of bins that were hit."""
        pairs = zip(self.names(), sums.T.tolist(), strict=True)
        return {name: total / hits for name, (total, hits) in pairs if hits}
