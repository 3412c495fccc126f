"""Score distillation sampling and its variance-reduced sibling (DreamFusion 2022; Score Jacobian Chaining 2022).

Teacher:   the guided prediction at z_t = x0 + sigma_t kappa, kappa fresh noise.
Student:   x0.
Gradient:  w (e^g(z_t, y) - kappa): the prior's noise minus the noise that was put in.
Cost:      2 evaluations per image.

On a Gaussian E[G / w] = b (x0 - m_g) / (s^2 + b^2): SDS seeks the guided mean m_g whatever t is, and m_g moves away
from the data linearly in g. SJC is SDS with w = 1; without variance reduction it drops kappa, which has the same mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scene_distill.objectives.score import Pair
from scene_distill.objectives.score_noise import Fresh, NoiseSource
from scene_distill.objectives.score_teacher import Scheduled, Teacher, Times
from scene_distill.objectives.score_weights import Weighting, weight_of
from scene_distill.priors.guidance import Request


@dataclass(frozen=True)
class SDS:
    """DreamFusion. ``guidance`` in standard form: threestudio's 100 is 101 here."""

    guidance: Scheduled = 100.0
    weighting: Weighting = "one_minus_abar"
    noise: NoiseSource = field(default_factory=Fresh)

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """The guided prediction, and the noise."""
        kappa = self.noise.sample(x0, times.t, teacher)
        z = x0 + teacher.sigma(times.t, x0) * kappa
        return Pair(Request(z, times.t, teacher.guided(self.guidance)), kappa)

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """w(t) by name."""
        return weight_of(self.weighting, times.t, teacher.schedule)


@dataclass(frozen=True)
class SJC:
    """Score Jacobian Chaining; ``variance_reduction`` subtracts the noise that was put in."""

    guidance: Scheduled = 100.0
    variance_reduction: bool = True
    noise: NoiseSource = field(default_factory=Fresh)

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """The guided prediction, and the noise or nothing."""
        whole = SDS(self.guidance, "uniform", self.noise).pair(x0, times, teacher)
        return whole if self.variance_reduction else Pair(whole.a, torch.zeros_like(x0))

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """1."""
        return weight_of("uniform", times.t, teacher.schedule)
