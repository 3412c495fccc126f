"""Trajectory score matching (Dreamer XL 2024): two points from one start.

Teacher:   the guided prediction at z_t, and the empty one at z_mu, both one DDIM step along e_s from the same z_s.
Student:   x0, inverted to z_s with the empty prompt.
Gradient:  w (e^g(z_t, y) - eps(z_mu, mu, empty)),  s <= mu <= t.
Cost:      one evaluation per image more than ISM where mu is not s; both predictions go into one call.

mu = s is ISM; mu = t is CSD at the inverted state when the negative prompt is empty, for every prior. In between it
only weakens the restoring term against the guidance term: with D the clean states of the three predictions,

    (e_A - e_B) = (D_s - D_t) / sigma_t  -  (D_s - D_mu) / sigma_mu

for every prior, and the second term pushes D_s away from D_mu, harder than the first pulls where sigma_mu is small.

Paper and code disagree on gamma: the paper has mu = s + gamma (t - s), the code mu = s + sqrt(1 - gamma^2) (t - s), so
that the shipped 0.3 is 30 % of the way in one and 95.4 % in the other. Here ``mu_fraction`` is what it says; make it
with `from_paper_gamma` or `from_code_gamma`. Equations 2, 4, 5 of the paper also print sqrt(1 - abar) of the two
levels swapped; this follows the code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score import Pair
from scene_distill.objectives.score_ism import Inversion
from scene_distill.objectives.score_teacher import Scheduled, Teacher, Times
from scene_distill.objectives.score_weights import Weighting, weight_of
from scene_distill.priors.ddim import moved
from scene_distill.priors.guidance import Alone, Request


def from_paper_gamma(gamma: float) -> float:
    """mu_fraction of the paper's Algorithm 1: gamma itself."""
    return _within(gamma)


def from_code_gamma(gamma: float) -> float:
    """mu_fraction of the released code: sqrt(1 - gamma^2)."""
    return math.sqrt(1 - _within(gamma) ** 2)


def _within(gamma: float) -> float:
    if not 0 <= gamma <= 1:
        raise UserError(f"gamma of trajectory score matching lies between 0 and 1, got {gamma}")
    return gamma


@dataclass(frozen=True)
class TSM:
    """Dreamer XL's objective. ``strength`` is the code's lambda, 0.1 in every shipped config."""

    mu_fraction: float = 0.3
    guidance: Scheduled = 7.5
    weighting: Weighting = "sigma"
    strength: float = 0.1
    inversion: Inversion = field(default_factory=Inversion)

    def __post_init__(self) -> None:
        """Raise UserError for a fraction outside 0 to 1."""
        _within(self.mu_fraction)

    def middle(self, times: Times) -> Tensor:
        """mu, rounded to a level: int64 [B]."""
        s = times.cleaner
        return s + torch.round(self.mu_fraction * (times.t - s)).to(s.dtype)

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """The guided prediction at t, and the empty one at mu."""
        s, mu, t = times.cleaner, self.middle(times), times.t
        z_s, e_s = self.inversion.start(x0, s, teacher)
        z_t, z_mu = (moved(z_s, e_s, teacher.schedule, s, level) for level in (t, mu))
        if torch.equal(mu, s):
            return Pair(Request(z_t, t, teacher.guided(self.guidance)), e_s)
        return Pair(Request(z_t, t, teacher.guided(self.guidance)), Request(z_mu, mu, Alone("empty")))

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """lambda w(t)."""
        return self.strength * weight_of(self.weighting, times.t, teacher.schedule)
