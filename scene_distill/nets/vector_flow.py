"""Velocity of a flow over vectors, under words and another vector: a residual perceptron with adaptive norms.

Every block: h <- h + W2 gelu(W1 (LN(h) (1 + scale) + shift)), where scale and shift come from the condition (time,
words, vector). About 2 width^2 multiplications a block and item, so that thousands of steps take minutes on one core.

Times are in [0, 1]. The angular frequencies of their embedding rise geometrically from 1 to ``highest_frequency`` per
unit of time; feeding 1000 t to the usual sinusoids is 1000 here. High ones make exact time derivatives useless
(objectives.transport), so the small world takes a low one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class VectorFlowConfig:
    """Sizes. ``slots``: how many numbers each word of the condition has; ``given``: length of the vector it is
    conditioned on, 0 for none."""

    dimensions: int
    slots: tuple[int, ...]
    given: int = 0
    width: int = 256
    depth: int = 4
    condition: int = 128
    frequencies: int = 32
    highest_frequency: float = 64.0


class VectorFlow(nn.Module):
    """v(x, t | words, given) of x [B, D]; the output starts at zero."""

    frequency: Tensor

    def __init__(self, config: VectorFlowConfig) -> None:
        super().__init__()
        self.config = config
        width, condition = config.width, config.condition
        exponents = torch.arange(config.frequencies) / max(config.frequencies - 1, 1)
        self.register_buffer("frequency", config.highest_frequency**exponents, persistent=False)
        self.time = nn.Sequential(
            nn.Linear(2 * config.frequencies, condition), nn.SiLU(), nn.Linear(condition, condition)
        )
        self.words = nn.ModuleList([nn.Embedding(count, condition) for count in config.slots])
        self.given = nn.Linear(config.given, condition) if config.given else None
        self.enter = nn.Linear(config.dimensions, width)
        self.blocks = nn.ModuleList([Block(width, condition) for _ in range(config.depth)])
        self.leave = nn.Linear(width, config.dimensions)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, t: Tensor, words: Tensor, given: Tensor | None = None) -> Tensor:
        """x [B, D]; t [B] or one number; words [B, len(slots)] int64, 0 where nothing is said; given [B, G]."""
        angle = t.reshape(-1, 1) * self.frequency.to(x.dtype)
        condition = self.time(torch.cat([angle.cos(), angle.sin()], 1))
        for column, embedding in enumerate(self.words):
            condition = condition + embedding(words[:, column])
        if self.given is not None:
            assert given is not None
            condition = condition + self.given(given)
        condition = functional.silu(condition)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        return self.leave(functional.layer_norm(h, h.shape[-1:]))


class Block(nn.Module):
    """One residual step."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition, 2 * width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.normal_(self.down.weight, std=0.5 / math.sqrt(width))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """h [B, W] under a condition [B, K]."""
        scale, shift = self.modulation(condition).chunk(2, dim=1)
        normal = functional.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        return h + self.down(functional.gelu(self.up(normal)))
