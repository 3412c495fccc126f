"""A Gaussian per prompt: the prior on which every objective has a closed form.

    x0 | c ~ N(m_c, s^2 I)      eps(z, sigma, c) = sigma (z - m_c) / (s^2 + sigma^2)

s = 0 is a point mass: the score of a single render, which is what a perfectly trained VSD particle model knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.prior import Condition, require_prompts
from scene_distill.priors.schedules import NoiseSchedule


@dataclass(frozen=True)
class GaussianPrior:
    """``means``: prompt -> mean, shaped as x0; '' is the empty prompt. ``std``: s, the same for all. Images are x0."""

    means: Mapping[str, Tensor]
    std: float
    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        """Raise UserError for means of different shapes, or a negative spread."""
        shapes = {tuple(mean.shape) for mean in self.means.values()}
        if len(shapes) != 1 or self.std < 0:
            raise UserError(f"a Gaussian prior needs means of one shape and std >= 0, got {shapes} and {self.std}")

    @property
    def x0_shape(self) -> tuple[int, ...]:
        """Shape of the means."""
        return tuple(next(iter(self.means.values())).shape)

    def describe(self, prompts: Sequence[str]) -> Condition:
        """Means as pooled vectors [B, D]; mixing two conditions mixes their means."""
        require_prompts(prompts)
        unknown = sorted(set(prompts) - set(self.means))
        if unknown:
            raise UserError(f"this Gaussian prior knows {sorted(self.means)}, not {unknown}")
        return Condition(pooled=torch.stack([self.means[prompt].flatten() for prompt in prompts]))

    @torch.no_grad()
    def eps(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """sigma (z - m_c) / (s^2 + sigma^2)."""
        assert condition.pooled is not None
        sigma = self.schedule.sigma(level, z)
        mean = condition.pooled.to(z.device, z.dtype).reshape(z.shape)
        return sigma * (z - mean) / (self.std**2 + sigma**2)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images themselves."""
        return images

    def decode(self, x0: Tensor) -> Tensor:
        """The states themselves."""
        return x0
