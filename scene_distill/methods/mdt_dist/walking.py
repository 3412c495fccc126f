"""Flows walked so that what an object becomes depends on its own noise alone, also where steps draw noise again.

`priors.flow.sample` draws the noise of 'renoise' for the whole batch, so that an object's depends on its place in it.
Here every object has a generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from scene_distill.priors.flow import FlowSteps, Guidance, VelocityField, fresh_noise, sample, state

C = TypeVar("C")


def noise_of_objects(generators: Sequence[torch.Generator], size: int) -> Tensor:
    """Unit noise [B, size] float32, a row from each generator."""
    return torch.cat([fresh_noise(torch.empty(1, size), generator) for generator in generators])


@torch.no_grad()
def walked(field: VelocityField[C], noise: Tensor, guidance: Guidance[C], steps: FlowSteps,
           again: Sequence[torch.Generator]) -> Tensor:  # fmt: skip
    """Clean states [B, D] as of `priors.flow.sample`; ``again`` [B] draw the fresh noise of 'renoise'."""
    if steps.sampler == "euler":
        return sample(field, noise, guidance, steps)
    x = noise
    for i, (t, following) in enumerate(itertools.pairwise(steps.times)):
        x = x - t * guidance.velocity(field, x, t, i)
        if following > 0:
            x = state(x, noise_of_objects(again, x.shape[1]), torch.tensor(following))
    return x
