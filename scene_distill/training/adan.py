"""Adan (Xie et al. 2022, algorithm 1 with bias correction): Adam with the change of the gradient as a third moment.

m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) (g - g')          n <- b3 n + (1 - b3) (g + b2 (g - g'))^2
x <- (x - r (m^ + b2 v^) / (sqrt(n^) + eps)) / (1 + r decay)           ^: divided by 1 - b^step, g': the last g
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BETAS = (0.98, 0.92, 0.99)
EPSILON, DECAY = 1e-8, 2e-8
"""Consistent3D's settings."""


@dataclass(frozen=True, eq=False)
class AdanMoments:
    """Three moments and the last gradient of one parameter, each of its shape."""

    first: Tensor
    change: Tensor
    second: Tensor
    last: Tensor

    @staticmethod
    def zeros_like(parameter: Tensor) -> AdanMoments:
        """Moments of a parameter that was never stepped."""
        return AdanMoments(*(torch.zeros_like(parameter).detach() for _ in range(4)))

    @torch.no_grad()
    def step(self, parameter: Tensor, gradient: Tensor, rate: float, step: int) -> None:
        """One update in place, ``step`` counting from 1."""
        b1, b2, b3 = BETAS
        change = gradient - self.last if step > 1 else torch.zeros_like(gradient)
        self.first.lerp_(gradient, 1 - b1)
        self.change.lerp_(change, 1 - b2)
        self.second.lerp_((gradient + b2 * change).square(), 1 - b3)
        self.last.copy_(gradient)
        wanted = self.first / (1 - b1**step) + b2 / (1 - b2**step) * self.change
        size = (self.second / (1 - b3**step)).sqrt() + EPSILON
        parameter.sub_(rate * wanted / size).div_(1 + rate * DECAY)

    def state(self, prefix: str) -> dict[str, Tensor]:
        """'<prefix>.first' and so on."""
        return {f"{prefix}.{name}": tensor.clone() for name, tensor in vars(self).items()}

    @staticmethod
    def from_state(state: dict[str, Tensor], prefix: str) -> AdanMoments:
        """Moments saved under a prefix."""
        return AdanMoments(*(state[f"{prefix}.{name}"] for name in ("first", "change", "second", "last")))
