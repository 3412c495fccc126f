"""Interval score matching (LucidDreamer 2023): a path of inversion instead of fresh noise.

Teacher:   the guided prediction at z_t, one DDIM step above z_s.
Student:   x0, inverted to z_s with the empty prompt.
Gradient:  w (e^g(z_t, y) - eps(z_s, s, empty)); the reference is the prediction at s, not at t.
Cost:      ceil(s / stride) + 1 + 2 evaluations per image.

With D the clean states of the two predictions, (e_A - e_B) = (D_s - D_t) / sigma_t for every prior: it is D_s, the
prior's own idea of the render, that is pulled, so what the prior overlooks in a render at level s has no gradient. At
s = 0 D_s is the render.

Level 0 is not a clean picture (sigma 0.029 in Stable Diffusion), so the render is first noised to it, with an offset
per channel: the only fresh noise. Guidance's reference is the negative prompt, the inversion's prompt is the empty
one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scene_distill.objectives.score import Pair
from scene_distill.objectives.score_teacher import Scheduled, Teacher, Times
from scene_distill.objectives.score_weights import Weighting, weight_of
from scene_distill.priors.ddim import invert, moved
from scene_distill.priors.guidance import Alone, Request


@dataclass(frozen=True)
class Inversion:
    """From a render to z_s: ``stride`` levels a step; ``first_noise`` noises the render to level 0 with N(0, I) plus
    ``offset`` times one normal number per channel, shared by the batch (False: the render is taken for level 0)."""

    stride: int = 200
    first_noise: bool = True
    offset: float = 0.1

    def start(self, x0: Tensor, level: Tensor, teacher: Teacher) -> tuple[Tensor, Tensor]:
        """z_s at levels s, and eps(z_s, s, empty); used by every branch, asked for once."""
        first = torch.zeros_like(level)
        z = x0
        if self.first_noise:
            per_channel = torch.randn(x0.shape[1], generator=teacher.generator, dtype=x0.dtype).to(x0.device)
            per_channel = per_channel.reshape(1, -1, *[1] * (x0.ndim - 2))
            z = x0 + teacher.sigma(first, x0) * (teacher.normal(x0) + self.offset * per_channel)
        z = invert(teacher.prior, teacher.prompts, Alone("empty"), z, first, level, self.stride)
        return z, teacher.ask(Request(z, level, Alone("empty")))[0]


@dataclass(frozen=True)
class ISM:
    """LucidDreamer's objective. ``strength`` is the code's lambda, 0.1 in every shipped config."""

    guidance: Scheduled = 7.5
    weighting: Weighting = "sigma"
    strength: float = 0.1
    inversion: Inversion = field(default_factory=Inversion)

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """The guided prediction at t, and the empty one at s."""
        z_s, e_s = self.inversion.start(x0, times.cleaner, teacher)
        z_t = moved(z_s, e_s, teacher.schedule, times.cleaner, times.t)
        return Pair(Request(z_t, times.t, teacher.guided(self.guidance)), e_s)

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """lambda w(t)."""
        return self.strength * weight_of(self.weighting, times.t, teacher.schedule)
