"""Adam with its moments in the open, so that they can be swapped, grown and saved, and log-linear learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.stages import staged
from scene_distill.renderers import ops

BETAS = (0.9, 0.999)
EPSILON = 1e-15
"""3DGS and Momentum-GS use this epsilon."""


@dataclass(frozen=True, eq=False)
class AdamMoments:
    """First and second moment of one parameter, of its shape."""

    first: Tensor
    second: Tensor

    @staticmethod
    def zeros_like(parameter: Tensor) -> AdamMoments:
        """Moments of a parameter that was never stepped."""
        return AdamMoments(torch.zeros_like(parameter).detach(), torch.zeros_like(parameter).detach())

    @staged("Adam")
    @torch.no_grad()
    def step(self, parameter: Tensor, gradient: Tensor, rate: float, step: int, rows: Tensor | None = None) -> None:
        """One Adam update in place (Kingma and Ba, 2015), ``step`` counting from 1.

        ``rows`` [A] uint8 restricts it to the rows that are 1; the others keep their value and moments.
        """
        ops.adam_(parameter, gradient, self.first, self.second, rate, *BETAS, EPSILON, step, rows)

    @staged("Adam")
    def step_rows(self, parameter: Tensor, gradient: Tensor, rate: float, step: int, rows: Tensor,
                  leading: tuple[int, float] = (0, 0.0)) -> None:  # fmt: skip
        """`step` on the rows [V] int64, none twice, that the rows of ``gradient`` [V, ...] belong to; leading = (count,
        rate): so many numbers at the beginning of every row have a learning rate of their own."""
        state = (parameter, gradient, self.first, self.second)
        ops.adam_rows_(state, rows, (rate, *BETAS, EPSILON), step, leading)

    def columns(self, count: int) -> AdamMoments:
        """The moments of the first ``count`` entries of the second axis, not copied."""
        return AdamMoments(self.first[:, :count], self.second[:, :count])

    def select(self, keep: Tensor, added: int) -> AdamMoments:
        """The rows of a mask followed by ``added`` zero rows."""

        def rows(moment: Tensor) -> Tensor:
            return torch.cat([moment[keep], moment.new_zeros(added, *moment.shape[1:])])

        return AdamMoments(rows(self.first), rows(self.second))

    def state(self, prefix: str) -> dict[str, Tensor]:
        """'<prefix>.first' and '<prefix>.second'."""
        return {f"{prefix}.first": self.first.clone(), f"{prefix}.second": self.second.clone()}

    @staticmethod
    def from_state(state: dict[str, Tensor], prefix: str) -> AdamMoments:
        """Moments saved under a prefix."""
        return AdamMoments(state[f"{prefix}.first"], state[f"{prefix}.second"])


def log_linear(rates: tuple[float, float], progress: float) -> float:
    """exp of the linear blend of the logs of (first, last) at progress in [0, 1], constant outside."""
    first, last = rates
    t = min(max(progress, 0.0), 1.0)
    return math.exp((1 - t) * math.log(first) + t * math.log(last))
