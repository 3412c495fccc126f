"""A prior whose batches are cut into parts, each part one thread's work.

Small networks gain little from several threads inside one layer; whole parts side by side do. How a batch is cut
depends on its size only, and a part is always computed on one thread, so the same bits come out of any number of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.prior import Condition, NoisePrior
from scene_distill.priors.schedules import NoiseSchedule


class InParts:
    """A `prior.NoisePrior` that asks ``prior`` for at most ``rows`` pictures at a time, on ``threads`` threads.

    A batch of B pictures is cut into at least ``parts`` parts of nearly equal size, more where ``rows`` asks for it,
    never into more than there are pictures.
    """

    def __init__(self, prior: NoisePrior, rows: int, threads: int = 1, parts: int = 1) -> None:
        if min(rows, threads, parts) < 1:
            raise UserError(f"a prior in parts needs at least 1 row, thread and part, got {rows}, {threads}, {parts}")
        self.prior, self.rows, self.parts = prior, rows, parts
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise at every level."""
        return self.prior.schedule

    @property
    def x0_shape(self) -> tuple[int, ...]:
        """Shape of one clean state."""
        return self.prior.x0_shape

    def describe(self, prompts: Sequence[str]) -> Condition:
        """The condition of prompts, one row each."""
        return self.prior.describe(prompts)

    def eps(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The predicted noise, from all parts."""
        count = min(max(-(-len(z) // self.rows), self.parts), len(z))
        if count <= 1:
            return self.prior.eps(z, level, condition)
        cuts = [len(z) * k // count for k in range(count + 1)]
        parts = [torch.arange(a, b) for a, b in itertools.pairwise(cuts)]
        asked = [(z[part.to(z.device)], level[part.to(level.device)], condition.select(part)) for part in parts]
        if self._pool is None:
            return torch.cat([self.prior.eps(*part) for part in asked])
        return torch.cat(list(self._pool.map(lambda part: self.prior.eps(*part), asked)))

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x0 of images, with gradient to them."""
        return self.prior.encode(images, generator)

    def decode(self, x0: Tensor) -> Tensor:
        """Images of x0."""
        return self.prior.decode(x0)
