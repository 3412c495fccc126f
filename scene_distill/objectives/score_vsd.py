"""Variational score distillation (ProlificDreamer 2023): the score of the renders as reference.

Teacher:   the guided prediction of the prior at z_t, against that of a second model that knows the current renders.
Student:   x0; and the second model psi, which learns by denoising renders, once per step.
Gradient:  w (e^g(z_t, y) - eps_psi(z_t)) into x0; the denoising loss into psi only.
Cost:      2 evaluations of the prior and 2 of psi (predict, learn) per image, plus psi's backward.

With a psi that knows one render exactly this is SDS with the same noise; with psi = the prior only the guidance part is
left. Uni-Instruct (2025) multiplies the same residual by an importance weight W_f(r) of the ratio r = q_t / p_t between
renders and prior, so that it descends another divergence than KL(q || p):

    W_f = r f''(r):   kl 1,   reverse-kl 1 / r,   jeffreys 1 + 1 / r,   chi2 2 r
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score import Pair
from scene_distill.objectives.score_noise import Fresh, NoiseSource
from scene_distill.objectives.score_teacher import Scheduled, Teacher, Times
from scene_distill.objectives.score_weights import Weighting, weight_of
from scene_distill.priors.guidance import Request

Divergence = Literal["kl", "reverse-kl", "jeffreys", "chi2"]
Ratio = Callable[[Tensor, Tensor], Tensor]
"""(z [B, ...], level [B]) -> r = q_t(z) / p_t(z), [B]."""


class RenderScore(Protocol):
    """psi: a prior of the current renders."""

    def eps(self, z: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """The noise it sees in z, without gradient; it may look at the teacher's prompts and cameras."""
        ...

    def learn(self, x0: Tensor, teacher: Teacher) -> float:
        """One update of its parameters on renders; the denoising loss."""
        ...


def importance(divergence: Divergence, ratio: Tensor) -> Tensor:
    """W_f(r) of r [B]."""
    weights: dict[str, Callable[[Tensor], Tensor]] = {
        "kl": torch.ones_like,
        "reverse-kl": lambda r: 1 / r,
        "jeffreys": lambda r: 1 + 1 / r,
        "chi2": lambda r: 2 * r,
    }
    if divergence not in weights:
        raise UserError(f"divergences are {', '.join(weights)}, got {divergence!r}")
    return weights[divergence](ratio)


@dataclass(frozen=True)
class VSD:
    """ProlificDreamer's objective, or with ``divergence`` and ``ratio`` Uni-Instruct's.

    Importance weights are divided by their mean over the batch, so they shift attention between views and leave the
    size of the step alone; a batch of one is therefore not changed by them unless ``normalised`` is off.
    """

    renders: RenderScore
    guidance: Scheduled = 7.5
    weighting: Weighting = "one_minus_abar"
    noise: NoiseSource = field(default_factory=Fresh)
    divergence: Divergence = "kl"
    ratio: Ratio | None = None
    normalised: bool = True

    def __post_init__(self) -> None:
        """Raise UserError for a divergence that needs a ratio and has none."""
        importance(self.divergence, torch.ones(1))
        if self.divergence != "kl" and self.ratio is None:
            raise UserError(f"the divergence {self.divergence!r} needs the ratio between renders and prior")

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """The prior's guided prediction, and psi's; both times the importance weight."""
        z = x0 + teacher.sigma(times.t, x0) * self.noise.sample(x0, times.t, teacher)
        teacher.own_evaluations += len(z)
        seen = self.renders.eps(z, times.t, teacher)
        if self.divergence == "kl" or self.ratio is None:
            return Pair(Request(z, times.t, teacher.guided(self.guidance)), seen)
        w = importance(self.divergence, self.ratio(z, times.t))
        w = (w / w.mean() if self.normalised else w).to(z).reshape(-1, *[1] * (z.ndim - 1))
        known = teacher.ask(Request(z, times.t, teacher.guided(self.guidance)))[0]
        return Pair(w * known, w * seen)

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """w(t) by name."""
        return weight_of(self.weighting, times.t, teacher.schedule)

    def learn(self, x0: Tensor, teacher: Teacher) -> float:
        """psi's update on these renders; it is one step behind when the next gradient is taken."""
        teacher.own_evaluations += len(x0)
        return self.renders.learn(x0, teacher)
