"""Classifier score distillation (CSD, Yu et al. 2023): guidance alone, without its reference.

Teacher:   what the prompt adds to the prediction at z_t: the score of an implicit classifier p(y | z_t).
Student:   x0.
Gradient:  w g (eps(z_t, y) - eps(z_t, neg)).
Cost:      2 evaluations per image.

TSM with mu = t is this at the inverted z_t, for every prior.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from scene_distill.objectives.score import Pair
from scene_distill.objectives.score_noise import Fresh, NoiseSource
from scene_distill.objectives.score_teacher import Scheduled, Teacher, Times, at
from scene_distill.objectives.score_weights import Weighting, weight_of
from scene_distill.priors.guidance import Alone, Request


@dataclass(frozen=True)
class CSD:
    """``guidance`` only scales the gradient: the direction is pure; g = 1 is the published reading."""

    guidance: Scheduled = 1.0
    weighting: Weighting = "one_minus_abar"
    noise: NoiseSource = field(default_factory=Fresh)

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """Prediction for the prompt, and for the negative prompt, at the same state."""
        z = x0 + teacher.sigma(times.t, x0) * self.noise.sample(x0, times.t, teacher)
        return Pair(Request(z, times.t, Alone("wanted")), Request(z, times.t, Alone("unwanted")))

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """g w(t)."""
        return at(self.guidance, teacher.progress) * weight_of(self.weighting, times.t, teacher.schedule)
