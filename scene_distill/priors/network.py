"""A network as a prior: VE states in, noise out, whatever the network was trained to predict.

Networks are fed VP states x_t = z / sqrt(1 + sigma^2) and a timestep. What comes back is turned into noise:

    epsilon:  eps = prediction
    v:        eps = sqrt(abar) v + sqrt(1 - abar) x_t           (Salimans and Ho 2022)
    x0:       eps = (z - prediction) / sigma

The division by sigma amplifies errors about 34 times at level 0 of Stable Diffusion's schedule, which is why every step
outside the network is done in the dtype of z (float32 or float64) and only the network itself in its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scene_distill.priors.pixels import PixelCodec
from scene_distill.priors.prior import Condition
from scene_distill.priors.schedules import NoiseSchedule

Predicts = Literal["epsilon", "v", "x0"]
Network = Callable[[Tensor, Tensor, Condition], Tensor]
"""(x_t [B, ...] VP, timestep int64 [B], condition) -> prediction [B, ...]."""


def noise_of(prediction: Tensor, x_t: Tensor, abar: Tensor, predicts: Predicts) -> Tensor:
    """Predicted noise of a network's output; x_t is the VP state, abar shaped to multiply it."""
    if predicts == "epsilon":
        return prediction
    if predicts == "v":
        return abar.sqrt() * prediction + (1 - abar).sqrt() * x_t
    return (x_t - abar.sqrt() * prediction) / (1 - abar).sqrt()


@dataclass
class NetworkPrior:
    """A pixel-space prior (`prior.NoisePrior`) around a network.

    ``network`` gets VP states in ``network_dtype``; ``describe_prompts`` turns prompts into a condition.
    """

    network: Network
    schedule: NoiseSchedule
    codec: PixelCodec
    describe_prompts: Callable[[Sequence[str]], Condition]
    predicts: Predicts = "epsilon"
    network_dtype: torch.dtype = torch.float32

    @property
    def x0_shape(self) -> tuple[int, ...]:
        """(3, H, W)."""
        return self.codec.shape

    def describe(self, prompts: Sequence[str]) -> Condition:
        """The condition of prompts, one row each."""
        return self.describe_prompts(prompts)

    @torch.no_grad()
    def eps(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The predicted noise at VE states z [B, 3, H, W]."""
        return self.predicted(z, level, condition)

    def predicted(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The same with the graph through the network, for training it."""
        abar = self.schedule.abar(level, z)
        x_t = z * abar.sqrt()
        timestep = self.schedule.timestep(level).to(z.device)
        prediction = self.network(x_t.to(self.network_dtype), timestep, condition).to(z.dtype)
        return noise_of(prediction, x_t, abar, self.predicts)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images in [0, 1] as x0 in [-1, 1]."""
        return self.codec.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """x0 in [-1, 1] as images in [0, 1]."""
        return self.codec.decode(x0)
