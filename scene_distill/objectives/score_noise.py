"""Where the noise kappa of z_t = x0 + sigma_t kappa comes from: fresh, fixed, or found by inverting the prior.

A fixed noise is keyed by what it is for, not stored: the same seed and view give the same tensor in every process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.objectives.score_teacher import Scheduled, Teacher
from scene_distill.priors.ddim import invert
from scene_distill.priors.guidance import Request


class NoiseSource(Protocol):
    """Makes the noise of a step."""

    def sample(self, x0: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """kappa, shaped like x0 [B, ...], for levels int64 [B]."""
        ...


@dataclass(frozen=True)
class Fresh:
    """New unit noise for every image of every step (SDS, SJC, VSD)."""

    def sample(self, x0: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """N(0, I)."""
        return teacher.normal(x0)


@dataclass(frozen=True)
class FixedShared:
    """One noise for all views and steps (Consistent3D)."""

    seed: int = 0

    def sample(self, x0: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """The same tensor for every image."""
        drawn = torch.randn(x0.shape[1:], generator=torch_generator(self.seed, "shared noise"), dtype=x0.dtype)
        return drawn.to(x0.device).expand_as(x0).clone()


@dataclass(frozen=True)
class FixedPerView:
    """One noise per view, the same at every step; the teacher must know the views' ids."""

    seed: int = 0

    def sample(self, x0: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """A tensor per view id."""
        if teacher.view_ids is None or len(teacher.view_ids) != len(x0):
            raise UserError("noise per view needs one view id per image")
        generators = [torch_generator(self.seed, "view noise", int(view)) for view in teacher.view_ids]
        drawn = [torch.randn(x0.shape[1:], generator=generator, dtype=x0.dtype) for generator in generators]
        return torch.stack(drawn).to(x0.device)


@dataclass(frozen=True)
class Given:
    """A noise that the caller holds, such as the last step's prediction (which makes SDI the DDIM sampler)."""

    noise: Tensor

    def sample(self, x0: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """That noise."""
        return self.noise.to(x0)


@dataclass(frozen=True)
class Inverted:
    """The noise that DDIM inversion of x0 finds, plus a little fresh noise (SDI, Lukoianov et al. 2024).

        kappa = (z_t - x0) / sigma_t + entropy sqrt(1 - abar_t) n

    ``steps``: strides the whole schedule would take; ``guidance`` is in standard form and negative: it undoes guidance.
    ``overshoot``: invert to t plus up to one stride instead of t, as threestudio's port does.
    """

    steps: int = 10
    guidance: Scheduled = -7.5
    entropy: float = 0.3
    overshoot: bool = False

    def inverted(self, x0: Tensor, level: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
        """z at the level that inversion went to, and that level."""
        stride = math.ceil(teacher.schedule.n_levels / self.steps)
        end = level
        if self.overshoot:
            extra = torch.randint(0, stride, level.shape, generator=teacher.generator).to(level.device)
            end = (level + extra).clamp(max=teacher.schedule.n_levels - 1)
        guided = teacher.guided(self.guidance)
        return invert(teacher.prior, teacher.prompts, guided, x0, torch.zeros_like(end), end, stride), end

    def sample(self, x0: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """The inverted noise."""
        z, end = self.inverted(x0, level, teacher)
        return self.read(x0, z, end, level, teacher)

    def read(self, x0: Tensor, z: Tensor, end: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """kappa of an inversion that reached z at ``end``."""
        kappa = (z - x0) / teacher.sigma(end, x0)
        if self.entropy == 0:
            return kappa
        return kappa + self.entropy * (1 - teacher.schedule.abar(level, x0)).sqrt() * teacher.normal(x0)


@dataclass(frozen=True)
class RootNoise:
    """The noise that predicts itself: kappa = eps(x0 + sigma kappa), by fixed-point iteration from zero.

    What `Inverted` approximates. Converges where the prior's denoiser contracts, as it does for a Gaussian.
    """

    iterations: int = 50
    guidance: Scheduled = 1.0

    def sample(self, x0: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """The root."""
        kappa, sigma = torch.zeros_like(x0), teacher.sigma(level, x0)
        for _ in range(self.iterations):
            kappa = teacher.ask(Request(x0 + sigma * kappa, level, teacher.guided(self.guidance)))[0]
        return kappa
