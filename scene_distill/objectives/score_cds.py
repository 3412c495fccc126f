"""Consistency distillation sampling (Consistent3D 2024): the curvature of the sampling path.

Teacher:   the guided prediction at z_s, one ODE step below z_t.
Student:   x0, noised with one fixed noise: z_t = x0 + sigma_t n*.
Gradient:  w (e^g(z_t, y) - e^g(z_s, y)), the same guidance on both sides.
Cost:      4 evaluations per image (6 with Heun's step).

On a Gaussian G / w = s^2 (b - a) / ((s^2 + a^2)(s^2 + b^2)) (x0 + b n* - m_g): it vanishes with the interval and for a
point mass, its fixed point does not depend on the interval, and a fixed noise biases it by b n*.

Sign. A consistency loss |D(z_t) - stopgrad D(z_s)|^2 with dD/dx0 taken for the identity gives D(z_t) - D(z_s) =
sigma_s (e_s - e_t): the opposite of the released code. On a Gaussian the code's sign contracts and the literal one
expands, so 'literal' is a negative control and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score import Pair
from scene_distill.objectives.score_noise import FixedShared, NoiseSource
from scene_distill.objectives.score_teacher import Ramp, Scheduled, Teacher, Times
from scene_distill.objectives.score_weights import Weighting, weight_of
from scene_distill.priors.ddim import moved
from scene_distill.priors.guidance import Request


@dataclass(frozen=True)
class CDS:
    """Consistent3D's objective; guidance in standard form (its published 100 to 50 is 101 to 51 here)."""

    guidance: Scheduled = field(default_factory=lambda: Ramp(101.0, 51.0))
    weighting: Weighting = "uniform"
    noise: NoiseSource = field(default_factory=FixedShared)
    solver: Literal["euler", "heun"] = "euler"
    sign: Literal["code", "literal"] = "code"

    def __post_init__(self) -> None:
        """Raise UserError for a switch that is none."""
        if self.solver not in ("euler", "heun") or self.sign not in ("code", "literal"):
            raise UserError(
                f"solver is euler or heun and sign is code or literal, got {self.solver!r} and {self.sign!r}"
            )

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """Guided predictions at t and, one step down, at s."""
        s, t, schedule = times.cleaner, times.t, teacher.schedule
        guided = teacher.guided(self.guidance)
        z_t = x0 + teacher.sigma(t, x0) * self.noise.sample(x0, t, teacher)
        e_t = teacher.ask(Request(z_t, t, guided))[0]
        z_s = moved(z_t, e_t, schedule, t, s)
        if self.solver == "heun":
            corrector = teacher.ask(Request(z_s, s, guided))[0]
            z_s = moved(z_t, (e_t + corrector) / 2, schedule, t, s)
        return Pair(e_t, Request(z_s, s, guided))

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """w(t); times -sigma_s for the literal sign."""
        w = weight_of(self.weighting, times.t, teacher.schedule)
        return w if self.sign == "code" else -teacher.schedule.sigma(times.cleaner) * w
