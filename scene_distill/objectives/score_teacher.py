"""What a score-distillation objective may ask for: predictions of the prior, random numbers, and where training stands.

Teacher:   a diffusion prior (`priors.prior.NoisePrior`), frozen, counted.
Student:   whatever made the picture; objectives see only its clean state x0.
Gradient:  none passes through anything in this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.guidance import Combination, Guided, Prompts, Request, ask
from scene_distill.priors.prior import Counted
from scene_distill.priors.schedules import NoiseSchedule


@dataclass(frozen=True)
class Progress:
    """Step number ``step`` of ``total``, from 0."""

    step: int = 0
    total: int = 1

    @property
    def fraction(self) -> float:
        """0 at the first step, 1 after the last."""
        return min(max(self.step / self.total, 0.0), 1.0)


@dataclass(frozen=True)
class Ramp:
    """A number that goes from ``first`` to ``last`` over the first ``over`` of training and stays there.

    curve: 'linear' in the step, or 'sqrt' (fast first: first + (last - first) sqrt(m / M)).
    """

    first: float
    last: float
    over: float = 1.0
    curve: Literal["linear", "sqrt"] = "linear"

    def at(self, progress: Progress) -> float:
        """The number at this step."""
        share = min(progress.fraction / self.over, 1.0)
        return self.first + (self.last - self.first) * (math.sqrt(share) if self.curve == "sqrt" else share)


@dataclass(frozen=True)
class Switch:
    """``first`` until the fraction ``when`` of training, then ``last``."""

    first: float
    last: float
    when: float

    def at(self, progress: Progress) -> float:
        """The number at this step."""
        return self.first if progress.fraction < self.when else self.last


Scheduled = float | Ramp | Switch
"""A number, or one that changes while training."""


def at(value: Scheduled, progress: Progress) -> float:
    """The number that a scheduled value is at this step."""
    return value.at(progress) if isinstance(value, (Ramp, Switch)) else float(value)


@dataclass(frozen=True)
class Times:
    """Noise levels of one step, int64 [B]: t, and for objectives with two levels the cleaner s < t."""

    t: Tensor
    s: Tensor | None = None

    @property
    def cleaner(self) -> Tensor:
        """s; UserError where the time sampler draws none."""
        if self.s is None:
            raise UserError("this objective compares two noise levels; give it IntervalTimes or ConsistencyTimes")
        return self.s


@dataclass
class Teacher:
    """The prior for one step of one batch of views.

    ``prompts``: conditions by role ('wanted', 'empty', 'unwanted'). ``combine`` makes the guidance of a scale:
    `Guided`, or one with negative prompts per view. ``view_ids`` int64 [B] name the views, ``cameras`` [B, 16] are
    their flattened world_from_cam matrices (only VSD looks at them). ``own_evaluations``: of networks that an
    objective brings itself.
    """

    prior: Counted
    prompts: Prompts
    generator: torch.Generator
    progress: Progress = field(default_factory=Progress)
    view_ids: Tensor | None = None
    cameras: Tensor | None = None
    combine: Callable[[float], Combination] = Guided
    own_evaluations: int = 0

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise at every level."""
        return self.prior.schedule

    def ask(self, *requests: Request) -> list[Tensor]:
        """The predictions of all requests from one call of the prior."""
        return ask(self.prior, self.prompts, requests)

    def guided(self, scale: Scheduled) -> Combination:
        """Guidance at this step's scale (standard form)."""
        return self.combine(at(scale, self.progress))

    def sigma(self, level: Tensor, like: Tensor) -> Tensor:
        """sigma of levels [B], shaped to multiply ``like``."""
        return self.schedule.sigma(level, like)

    def normal(self, like: Tensor) -> Tensor:
        """Fresh unit noise shaped like ``like``, the same on every device."""
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype).to(like.device)
