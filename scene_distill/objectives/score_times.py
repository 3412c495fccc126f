"""Which noise levels a step looks at. Papers count in thousandths of the schedule; so do the numbers here.

The schedule of t decides more than the loss does, so it is separate from it: `IntervalTimes` gives any of these a
cleaner level s below t, and every method can be run on every schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score_teacher import Progress, Ramp, Scheduled, Times, at
from scene_distill.priors.schedules import NoiseSchedule


class TimeSampler(Protocol):
    """Draws the levels of a step."""

    def sample(self, progress: Progress, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> Times:
        """Levels int64 [B] each."""
        ...


def _level(thousandths: float, schedule: NoiseSchedule) -> int:
    """The level of a time in thousandths of the training steps, held inside the schedule."""
    return min(max(_steps(thousandths, schedule), 0), schedule.n_levels - 1)


def _steps(thousandths: float, schedule: NoiseSchedule) -> int:
    return int(thousandths * len(schedule.abars) / 1000 + 1e-9)


def _draw(low: int, high: int, batch: int, per_image: bool, generator: torch.Generator) -> Tensor:
    """int64 [B] from low to high, both included."""
    drawn = torch.randint(low, high + 1, (batch if per_image else 1,), generator=generator)
    return drawn.expand(batch).clone()


@dataclass(frozen=True)
class UniformTimes:
    """t ~ U{low .. high}; one t for the whole batch, or one per image.

    SDS, SJC: 20 to 980. VSD: high 980, then 500 (`Switch`). ISM, TSM: high from 980 down to 500 in the warm-up
    (`Ramp`).
    """

    low: Scheduled = 20
    high: Scheduled = 980
    per_image: bool = True

    def sample(self, progress: Progress, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> Times:
        """Uniform levels."""
        low, high = (_level(at(bound, progress), schedule) for bound in (self.low, self.high))
        if low > high:
            raise UserError(f"noise levels must rise from low to high, got {low} to {high}")
        return Times(_draw(low, high, batch, self.per_image, generator))


@dataclass(frozen=True)
class AnnealedTimes:
    """t falls with training from ``first`` to ``last``, the same for the batch (SDS-anneal, DreamTime, SDI)."""

    first: float = 980
    last: float = 20
    curve: Literal["linear", "sqrt"] = "linear"

    def sample(self, progress: Progress, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> Times:
        """One level, fixed by the step."""
        level = _level(Ramp(self.first, self.last, curve=self.curve).at(progress), schedule)
        return Times(torch.full((batch,), level))


@dataclass(frozen=True)
class IntervalTimes:
    """A cleaner level s = max(t - d, 0) below each t of ``base`` (ISM, TSM: d from 100 to 80 in the warm-up).

    ``rounding``: 'floor' of d, as the code's plain path; 'ceil', as its Perp-Neg path.
    """

    base: TimeSampler
    interval: Scheduled = 80
    rounding: Literal["floor", "ceil"] = "floor"

    def sample(self, progress: Progress, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> Times:
        """Levels t of the base and s below them."""
        width = at(self.interval, progress) * len(schedule.abars) / 1000
        steps = int(width + 1e-9) if self.rounding == "floor" else math.ceil(width - 1e-9)
        t = self.base.sample(progress, batch, schedule, generator).t
        return Times(t, (t - max(steps, 1)).clamp(min=0))


@dataclass(frozen=True)
class ConsistencyTimes:
    """Consistent3D's two levels: s annealed and the same for the batch, t = s + U{gap .. gap + jitter - 1} per image.

    s is held in [low, high - gap], t in [low, high], so that t > s always. Defaults: the coarse stage of the code. Its
    option named 'sqrt' switches only the annealing of s; the jitter is uniform in every setting.
    """

    s_start: float = 700
    s_end: float = 100
    anneal: Literal["linear", "sqrt"] = "sqrt"
    gap: float = 100
    jitter: float = 200
    low: float = 100
    high: float = 980

    def sample(self, progress: Progress, batch: int, schedule: NoiseSchedule, generator: torch.Generator) -> Times:
        """Levels t and s."""
        gap, jitter = max(_steps(self.gap, schedule), 1), max(_steps(self.jitter, schedule), 1)
        low, high = _level(self.low, schedule), _level(self.high, schedule)
        if high - gap < low:
            raise UserError(f"a gap of {gap} levels does not fit between {low} and {high}")
        s = _steps(Ramp(self.s_start, self.s_end, curve=self.anneal).at(progress), schedule)
        cleaner = torch.full((batch,), min(max(s, low), high - gap))
        t = cleaner + _draw(gap, gap + jitter - 1, batch, True, generator)
        return Times(t.clamp(low, high), cleaner)


def on_schedule(method_times: TimeSampler, base: TimeSampler) -> TimeSampler:
    """The sampler of a method moved onto the schedule ``base``, its interval kept: for comparisons at equal levels."""
    if isinstance(method_times, IntervalTimes):
        return IntervalTimes(base, method_times.interval, method_times.rounding)
    if isinstance(method_times, ConsistencyTimes):
        return IntervalTimes(base, method_times.gap)
    return base
