"""DDIM without noise (eta = 0): Euler steps of the probability-flow ODE in sigma, down to sample, up to invert.

    z_b = z_a + (sigma_b - sigma_a) eps(z_a)        (Song et al. 2021; in VE the same formula goes either way)

`invert` is what ISM, TSM and SDI start from. Its large steps make a real error: on a Gaussian of spread s the distance
to the mean grows by (s^2 + ab) / (s^2 + a^2) per step from sigma a to b, where the exact flow gives the root of
(s^2 + b^2) / (s^2 + a^2).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.guidance import Combination, Prompts, Request, ask
from scene_distill.priors.prior import NoisePrior, levels_of
from scene_distill.priors.schedules import NoiseSchedule


def moved(z: Tensor, eps: Tensor, schedule: NoiseSchedule, start: Tensor, end: Tensor) -> Tensor:
    """z [B, ...] taken from levels start to levels end (int64 [B]) along eps."""
    return z + (schedule.sigma(end, z) - schedule.sigma(start, z)) * eps


def denoised(z: Tensor, eps: Tensor, schedule: NoiseSchedule, level: Tensor) -> Tensor:
    """D = z - sigma eps: the clean state that eps points to."""
    return z - schedule.sigma(level, z) * eps


def spaced(first: int, last: int, count: int) -> list[int]:
    """``count`` distinct levels from first to last, evenly spaced, both ends included."""
    if count < 2 or abs(last - first) < count - 1:
        raise UserError(f"cannot place {count} distinct noise levels between {first} and {last}")
    return [round(first + (last - first) * i / (count - 1)) for i in range(count)]


def sample(
    prior: NoisePrior,
    prompts: Prompts,
    combination: Combination,
    noise: Tensor,
    levels: Sequence[int],
    watch: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Clean states [B, *x0_shape] from unit noise of the same shape, through falling levels and from the last to clean.

    The start is z = sqrt(1 + sigma^2) noise, so that the VP state has unit variance. ``watch`` is shown every level
    and the clean state that is predicted there.
    """
    if any(b >= a for a, b in itertools.pairwise(levels)) or not levels:
        raise UserError(f"sampling needs falling noise levels, got {list(levels)}")
    schedule = prior.schedule
    z = noise * torch.sqrt(1 + schedule.sigma(levels_of(levels[0], noise), noise) ** 2)
    for i, number in enumerate(levels):
        level = levels_of(number, z)
        eps = ask(prior, prompts, [Request(z, level, combination)])[0]
        clean = denoised(z, eps, schedule, level)
        if watch is not None:
            watch(number, clean)
        z = moved(z, eps, schedule, level, levels_of(levels[i + 1], z)) if i + 1 < len(levels) else clean
    return z


def invert(
    prior: NoisePrior, prompts: Prompts, combination: Combination, z: Tensor, start: Tensor, end: Tensor, stride: int
) -> Tensor:
    """z [B, ...] at levels start int64 [B] taken up to levels end, in steps of ``stride`` levels.

    The last step is cut to land on its end exactly. Rows that have arrived are not evaluated any more, so the cost is
    ceil((end - start) / stride) evaluations per role and row.
    """
    if stride < 1 or bool((end < start).any()):
        raise UserError(f"inversion goes up by at least one level per step, got stride {stride}")
    schedule = prior.schedule
    level, end = start.clone(), end.to(start.device)
    while bool((level < end).any()):
        active = torch.nonzero(level < end).flatten()
        target = torch.minimum(level + stride, end)
        mine = {role: prompts[role].repeated(len(z)).select(active) for role in combination.roles if role in prompts}
        here, now = z[active.to(z.device)], level[active]
        eps = ask(prior, mine, [Request(here, now, combination)])[0]
        z = z.index_copy(0, active.to(z.device), moved(here, eps, schedule, now, target[active]))
        level = target
    return z
