"""Rectified flows: straight states between data (t = 0) and noise (t = 1), and how they are sampled.

    state      x_t = (1 - t) x0 + (s + (1 - s) t) n          s = `SIGMA_MIN`, n unit noise
    velocity   v = (1 - s) n - x0 = dx_t / dt                what a network predicts; it points from data to noise
    clean      x0 = (1 - s) x_t - (s + (1 - s) t) v          noise    n = x_t + (1 - t) v
    euler      x <- x - (t - t') v                           follows the flow; for velocities at a point
    renoise    x0 = x - t v;  x <- state(x0, fresh n, t')    for average velocities over [0, t], as students of
                                                             transport predict: a state of theirs at t' must be new
    times      t_i = r u_i / (1 + (r - 1) u_i)               u_i from 1 to 0 evenly, r = ``rescale_t``: r > 1 spends
                                                             more steps near noise
    guidance   v = (1 + w) v_wanted - w v_negative           w = 0: none; only where lo <= t <= hi, both ends included,
                                                             t at the start of the step; elsewhere v_wanted alone

Note the convention of w: g = 1 + w of `guidance`. Networks are fed 1000 t; that is their wrapper's business: here t is
in [0, 1] everywhere. With one step both samplers are the same. Source: Liu et al. 2023; the conventions are those of
TRELLIS (Xiang et al. 2024), so that its settings can be used as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from scene_distill.core.errors import UserError

SIGMA_MIN = 1e-5
"""Noise left at t = 0 (TRELLIS)."""

Sampler = Literal["euler", "renoise"]
Combine = Literal["mean", "cycle"]

C_contra = TypeVar("C_contra", contravariant=True)
C = TypeVar("C")


class VelocityField(Protocol[C_contra]):
    """What a flow network is to a sampler: velocities of states under a condition.

    x: a batch of dense states [B, ...], or the features [N, C] of sparse ones whose places the field knows. t: float32,
    one number for all or [B]; in [0, 1]. Returns v, shaped and typed as x.
    """

    def __call__(self, x: Tensor, t: Tensor, condition: C_contra) -> Tensor:
        """v(x, t, condition)."""
        ...


@dataclass(frozen=True)
class Guidance(Generic[C]):
    """What a sample is steered by.

    ``conditions``: one or several descriptions of the same object, such as pictures; several are averaged in velocity
    ('mean', one evaluation each a step) or take turns ('cycle', one a step). ``negative``: what guidance leads away
    from, may be None where ``weight`` (w above) is 0. ``interval`` (lo, hi): the times that are guided.
    """

    conditions: tuple[C, ...]
    negative: C | None = None
    weight: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    combine: Combine = "mean"

    def __post_init__(self) -> None:
        if not self.conditions:
            raise UserError("sampling a flow needs at least one condition")
        if self.weight and self.negative is None:
            raise UserError(f"guidance of weight {self.weight:g} needs a negative condition; give one or use weight 0")
        if self.combine not in ("mean", "cycle"):
            raise UserError(f"several conditions are combined by 'mean' or 'cycle', not {self.combine!r}")
        low, high = self.interval
        if not low <= high:
            raise UserError(f"the guided interval runs from low to high, not from {low:g} to {high:g}")

    def guides(self, t: float) -> bool:
        """Whether a step that starts at t is guided."""
        return self.weight != 0 and self.interval[0] <= t <= self.interval[1]

    def wanted(self, step: int) -> tuple[C, ...]:
        """The conditions that step number ``step`` looks at."""
        return self.conditions if self.combine == "mean" else (self.conditions[step % len(self.conditions)],)

    def velocity(self, field: VelocityField[C], x: Tensor, t: float, step: int = 0) -> Tensor:
        """v at x and t, guided where t lies in the interval."""
        time = torch.tensor(t, dtype=torch.float32, device=x.device)
        wanted = self.wanted(step)
        v = torch.stack([field(x, time, condition) for condition in wanted]).mean(0)
        if self.weight == 0 or self.negative is None or not self.guides(t):
            return v
        return (1 + self.weight) * v - self.weight * field(x, time, self.negative)

    def evaluations(self, times: Sequence[float]) -> int:
        """Calls of the field for a run through these times (the last one is not evaluated)."""
        return sum(len(self.wanted(i)) + int(self.guides(t)) for i, t in enumerate(times[:-1]))


@dataclass(frozen=True)
class FlowSteps:
    """How a flow is walked from noise to data: number of steps, their spacing and the sampler."""

    steps: int = 25
    rescale_t: float = 1.0
    sampler: Sampler = "euler"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"a flow needs at least 1 step, not {self.steps}")
        if not self.rescale_t > 0:
            raise UserError(f"rescale_t must be positive, not {self.rescale_t:g}")
        if self.sampler not in ("euler", "renoise"):
            raise UserError(f"flow samplers are 'euler' and 'renoise', not {self.sampler!r}")

    @property
    def times(self) -> tuple[float, ...]:
        """steps + 1 falling times from 1 to 0."""
        even = [1 - i / self.steps for i in range(self.steps)] + [0.0]
        return tuple(self.rescale_t * u / (1 + (self.rescale_t - 1) * u) for u in even)


Generators = torch.Generator | Sequence[torch.Generator] | None
"""One for a whole batch, or one for each of its items."""


def sample(
    field: VelocityField[C],
    noise: Tensor,
    guidance: Guidance[C],
    steps: FlowSteps = FlowSteps(),
    generator: Generators = None,
    watch: Callable[[int, float, Tensor], None] | None = None,
    rows: Sequence[int] | None = None,
) -> Tensor:
    """Clean states shaped as ``noise``; no gradient. ``generator`` draws the fresh noise of 'renoise' (see
    `fresh_noise`, also for ``rows``).

    ``watch`` is shown (step, t, predicted clean state) before every step.
    """
    times = steps.times
    with torch.no_grad():
        x = noise
        for i, (t, following) in enumerate(itertools.pairwise(times)):
            v = guidance.velocity(field, x, t, i)
            if watch is not None:
                watch(i, t, x - t * v)
            if steps.sampler == "euler" or following == 0:
                x = x - (t - following) * v
            else:
                x = state(x - t * v, fresh_noise(x, generator, rows), torch.tensor(following))
        return x


def fresh_noise(like: Tensor, generator: Generators = None, rows: Sequence[int] | None = None) -> Tensor:
    """Unit noise shaped, typed and placed as ``like`` [B, ...]; drawn on the CPU, so that devices agree. With a
    generator for every item an item's noise does not depend on its company; ``rows``: how many rows each item has,
    default one."""
    if isinstance(generator, Sequence):
        parts = like.split([1] * len(generator) if rows is None else list(rows))
        return torch.cat([fresh_noise(part, each) for part, each in zip(parts, generator, strict=True)])
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)


def rows_of(t: Tensor, like: Tensor) -> Tensor:
    """t (one number, or one per row of ``like``) shaped to multiply ``like``."""
    t = t.to(like)
    return t.reshape(-1, *[1] * (like.ndim - 1)) if t.ndim else t


def state(x0: Tensor, noise: Tensor, t: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """x_t of clean states [B, ...], noise of the same shape and t (one number or [B])."""
    t = rows_of(t, x0)
    return (1 - t) * x0 + (sigma_min + (1 - sigma_min) * t) * noise


def velocity(x0: Tensor, noise: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """The velocity that a network learns, dx_t / dt: the same at every t."""
    return (1 - sigma_min) * noise - x0


def clean(x: Tensor, v: Tensor, t: Tensor, sigma_min: float = SIGMA_MIN) -> Tensor:
    """x0 that a state and the velocity at a point agree on."""
    t = rows_of(t, x)
    return (1 - sigma_min) * x - (sigma_min + (1 - sigma_min) * t) * v


def noise_of(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Noise that a state and the velocity at a point agree on."""
    return x + (1 - rows_of(t, x)) * v


def logit_normal_times(
    count: int, mean: float = 1.0, std: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Times [count] of training, sigmoid of normal numbers; mean 1 and spread 1 are TRELLIS's."""
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator))
