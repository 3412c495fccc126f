"""A mixture of equal Gaussians: a prior with many modes whose score, guidance and truth are known exactly.

    x0 | c ~ sum_k w_k(c) N(m_k, s^2 I)
    eps(z, sigma, c) = sigma / (s^2 + sigma^2) (z - sum_k r_k m_k),   r = softmax_k( log w_k - |z - m_k|^2 / (2 (s^2 + sigma^2)) )

A condition is the vector of weights w: a prompt chooses components, the empty prompt takes all of them. Mixing two
conditions mixes their weights. Cost per evaluation: two products of [B, D] with [D, K].
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.prior import Condition, require_prompts
from scene_distill.priors.schedules import NoiseSchedule


@dataclass(frozen=True)
class MixturePrior:
    """``centres`` [K, *x0_shape]; ``weights``: prompt -> [K] adding up to 1, '' the empty prompt; ``std``: s."""

    centres: Tensor
    weights: Mapping[str, Tensor]
    std: float
    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        """Raise UserError for weights that are no distribution over the centres, or a negative spread."""
        for prompt, weight in self.weights.items():
            sound = weight.shape == (len(self.centres),) and bool((weight >= 0).all())
            if not sound or abs(float(weight.sum()) - 1) > 1e-5:
                raise UserError(f"weights of {prompt!r} must be {len(self.centres)} numbers >= 0 that add up to 1")
        if self.std < 0:
            raise UserError(f"the spread of a mixture must be >= 0, got {self.std}")

    @property
    def x0_shape(self) -> tuple[int, ...]:
        """Shape of a centre."""
        return tuple(self.centres.shape[1:])

    def describe(self, prompts: Sequence[str]) -> Condition:
        """Weights as pooled vectors [B, K]."""
        require_prompts(prompts)
        unknown = sorted(set(prompts) - set(self.weights))
        if unknown:
            raise UserError(f"this mixture knows {sorted(self.weights)}, not {unknown}")
        return Condition(pooled=torch.stack([self.weights[prompt] for prompt in prompts]))

    @torch.no_grad()
    def eps(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The exact noise of the noised mixture."""
        sigma = self.schedule.sigma(level, z)
        variance = self.std**2 + sigma**2
        flat = z.flatten(1)
        mean = responsibilities(flat, self._flat(z), self._weights(condition, z), variance.reshape(-1, 1))
        return sigma / variance * (z - (mean @ self._flat(z)).reshape(z.shape))

    def log_density(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """log p(z) [B] of the noised mixture: what eps = -sigma grad log p is the gradient of."""
        variance = (self.std**2 + self.schedule.sigma(level, z) ** 2).reshape(-1, 1)
        flat, centres = z.flatten(1), self._flat(z)
        square = (flat * flat).sum(1, keepdim=True) + _logit_squares(flat, centres)
        logits = torch.log(self._weights(condition, z)) - square / (2 * variance)
        return torch.logsumexp(logits, 1) - 0.5 * flat.shape[1] * torch.log(2 * math.pi * variance[:, 0])

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The images themselves."""
        return images

    def decode(self, x0: Tensor) -> Tensor:
        """The states themselves."""
        return x0

    def _flat(self, like: Tensor) -> Tensor:
        return self.centres.to(like.device, like.dtype).flatten(1)

    @staticmethod
    def _weights(condition: Condition, like: Tensor) -> Tensor:
        assert condition.pooled is not None
        return condition.pooled.to(like.device, like.dtype)


def _logit_squares(flat: Tensor, centres: Tensor) -> Tensor:
    """|m_k|^2 - 2 z m_k [B, K]: the squared distance without |z|^2, which is the same for every component."""
    return (centres * centres).sum(1) - 2 * flat @ centres.T


def responsibilities(flat: Tensor, centres: Tensor, weights: Tensor, variance: Tensor) -> Tensor:
    """Posterior probability [B, K] of every centre [K, D] given flat [B, D]; weights [B, K], variance [B, 1]."""
    return torch.softmax(torch.log(weights) - _logit_squares(flat, centres) / (2 * variance), 1)
