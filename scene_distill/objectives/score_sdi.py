"""Score distillation via inversion (SDI, Lukoianov et al. 2024): SDS with the noise that DDIM would have used.

Teacher:   the guided prediction at z_t = x0 + sigma_t kappa, kappa found by inverting x0.
Student:   x0.
Gradient:  sigma_t (e^g(z_t, y) - kappa) = x0 - D(z_t): regress the render on the denoised state.
Cost:      2 ceil(t / stride) + 2 evaluations per image.

With kappa cached from the step before, x0 <- x0 - G is DDIM sampling itself, exactly.

``state``: 'formula' noises x0 to t with kappa, as the paper; 'port' feeds a state that was inverted somewhat past t
into the prediction at t, as threestudio's port does. The port also writes guidance as c + s (c - u): its 7.5 and -7.5
are 8.5 and -6.5 here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score import Pair
from scene_distill.objectives.score_noise import Inverted, NoiseSource
from scene_distill.objectives.score_teacher import Scheduled, Teacher, Times
from scene_distill.objectives.score_weights import Weighting, weight_of
from scene_distill.priors.guidance import Request


@dataclass(frozen=True)
class SDI:
    """SDI's objective."""

    guidance: Scheduled = 7.5
    noise: NoiseSource = field(default_factory=Inverted)
    weighting: Weighting = "sigma"
    state: Literal["formula", "port"] = "formula"

    def __post_init__(self) -> None:
        """Raise UserError for a switch that is none."""
        if self.state not in ("formula", "port") or (self.state == "port" and not isinstance(self.noise, Inverted)):
            raise UserError("state is formula or port, and port needs an inverted noise")

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """The guided prediction, and the inverted noise."""
        t, guided = times.t, teacher.guided(self.guidance)
        if self.state == "formula":
            kappa = self.noise.sample(x0, t, teacher)
            return Pair(Request(x0 + teacher.sigma(t, x0) * kappa, t, guided), kappa)
        assert isinstance(self.noise, Inverted)
        past = replace(self.noise, overshoot=True)
        _, end = inverted = past.inverted(x0, t, teacher)
        kappa = past.read(x0, *inverted, t, teacher)
        # The network is fed the VP state of `end` but told t: in VE terms z is rescaled from one to the other.
        z = x0 + teacher.sigma(end, x0) * kappa
        scale = (teacher.schedule.abar(end, x0) / teacher.schedule.abar(t, x0)).sqrt()
        return Pair(Request(z * scale, t, guided), kappa)

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """w(t) by name."""
        return weight_of(self.weighting, times.t, teacher.schedule)
