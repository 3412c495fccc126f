"""Marginal-data transport: a student that knows how far a flow goes from here to the data, in one evaluation.

Teacher:   a frozen velocity v(x, t) of a rectified flow, x_t = (1 - t) x0 + t z, data at t = 0 (specs: MDT-dist,
           arXiv 2509.04406, and its published code).
Student:   phi(x, t), the average velocity of the teacher's path from x_t to t = 0: x0 = x_t - t phi(x_t, t).
Gradient:  velocity matching (VM) asks that u = phi + t dphi/dt equals v, where dphi/dt is the total derivative along
           the teacher's path and takes no gradient; velocity distillation (VD) lets r = u - v, measured at noised
           samples of the student, pull those samples. Nothing flows into the teacher, the derivative, or x_t.
Cost:      VM: 1 velocity of the teacher (2 evaluations with guidance), 2 forward and 1 backward of the student;
           VD: as many again and 1 forward more.

VM is MeanFlow's identity with r = 0 and the teacher's velocity (`transport_meanflow`), and consistency distillation
weighs the same residual by t (`transport_consistency`). What the paper and its code do differently are switches:
`Derivative.normalise`, `VDWeight`, and, in `transport_times`, how t is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.transport_items import DENSE, Items
from scene_distill.priors.flow import SIGMA_MIN, state

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], t [B]) -> velocity of the shape of x; its condition is bound. t in [0, 1], not times 1000."""

DerivativeKind = Literal["difference", "jvp"]
VDWeight = Literal["code", "paper", "kl"]

NORMALISE_OFFSET = 0.1
"""Added to the norm that derivatives are divided by (published code)."""


@dataclass(frozen=True)
class Derivative:
    """How dphi/dt is found along the teacher's step.

    kind: 'difference', (phi(x, t) - phi(x - delta v, t - delta)) / delta (paper and code; needs t >= delta), or 'jvp',
    exact, which high-frequency time embeddings make enormous. normalise: divide by the derivative's own norm + 0.1, as
    both published settings do and the paper does not say; it leaves at most 1 / sqrt(D) an element of the correction,
    so that little but regression on v remains.
    """

    kind: DerivativeKind = "difference"
    delta: float = 0.01
    normalise: bool = False

    @property
    def earliest(self) -> float:
        """The smallest t that it can be taken at."""
        return self.delta if self.kind == "difference" else 0.0


DIFFERENCE, EXACT = Derivative(), Derivative("jvp")


@dataclass(frozen=True)
class Transported:
    """Losses of one batch. ``each`` [B] has the graph to the student; the others are detached."""

    each: Tensor
    residual: Tensor
    """u - v where the loss was measured, of the shape of x."""
    derivative: Tensor
    """dphi/dt, after normalisation."""

    @property
    def loss(self) -> Tensor:
        """The mean over items."""
        return self.each.mean()


@torch.no_grad()
def total_derivative(student: Velocity, x: Tensor, t: Tensor, v: Tensor, how: Derivative,
                     here: Tensor | None = None, items: Items = DENSE) -> Tensor:  # fmt: skip
    """dphi/dt = d_t phi + (d_x phi) v at x [B, ...], t [B], detached.

    ``here``: phi(x, t) where it is known already. Raises `UserError` for times before ``how.earliest``.
    """
    if how.kind == "jvp":
        slope = torch.func.jvp(student, (x, t), (v, torch.ones_like(t)))[1]
    else:
        if float(t.min()) < how.delta * (1 - 1e-6):
            raise UserError(
                f"a step back of {how.delta:g} from t = {float(t.min()):.4g} leaves the path; draw t from "
                "`transport_times`, or take a smaller delta"
            )
        here = student(x, t) if here is None else here
        before = student(x - how.delta * v, (t - how.delta).clamp_min(0.0))
        slope = (here - before) / how.delta
    slope = slope.detach()
    if not how.normalise:
        return slope
    return slope / (items.spread(items.norm(slope), slope) + NORMALISE_OFFSET)


def velocity_matching(student: Velocity, teacher: Velocity, x: Tensor, t: Tensor, how: Derivative = DIFFERENCE,
                      items: Items = DENSE) -> Transported:  # fmt: skip
    """| phi + t sg[dphi/dt] - v |^2, mean over an item's elements, at x = x_t [B, ...] and t [B].

    The gradient is 2 (u - v) dphi/dtheta / D: target v - t dphi/dt.
    """
    with torch.no_grad():
        v = teacher(x, t)
    phi = student(x, t)
    slope = total_derivative(student, x, t, v, how, phi.detach(), items)
    residual = phi + items.spread(t, x) * slope - v
    return Transported(items.mean(residual.square()), residual.detach(), slope)


def velocity_distillation(student: Velocity, teacher: Velocity, start: Tensor, noise: Tensor, t: Tensor,
                          how: Derivative = DIFFERENCE, weight: VDWeight = "code",
                          items: Items = DENSE, sigma_min: float = SIGMA_MIN) -> Transported:  # fmt: skip
    """The marginals of one-step samples against the teacher's: a loss whose gradient is 2 c r dphi(z', 1)/dtheta / D.

    start: z' [B, ...], what samples x' = z' - phi(z', 1) are made of; noise: z'' (fresh in the paper, the noise of VM
    again in the code); r = sg[u - v] at x'_t. There is no second network: u is the student's own.

    weight: 'code', c = 1; 'paper', 2 c = 1 - t, from dx'_t/dtheta; 'kl', 2 c = (1 - t)^2 / t, the weight in the
    gradient of KL(p_t || q_t). It is not quite that gradient: u differentiates along the teacher's path, so that
    r = (dx0/dx_t) (w - v) with w the velocity of the student's samples and x0 = x_t - t phi.
    """
    ones = torch.ones_like(t)
    phi = student(start, ones)
    with torch.no_grad():
        x = state(start - phi, noise, items.rows(t), sigma_min)
        v = teacher(x, t)
        here = student(x, t)
        slope = total_derivative(student, x, t, v, how, here, items)
        residual = here + items.spread(t, x) * slope - v
        pull = items.spread(vd_weights(weight, t), x) * residual
    return Transported(items.mean((pull + phi - phi.detach()).square()), residual, slope)


def vd_weights(weight: VDWeight, t: Tensor) -> Tensor:
    """c [B] of `velocity_distillation`."""
    weights: dict[str, Callable[[], Tensor]] = {
        "code": lambda: torch.ones_like(t),
        "paper": lambda: (1 - t) / 2,
        "kl": lambda: (1 - t).square() / (2 * t),
    }
    if weight not in weights:
        raise UserError(f"weights of velocity distillation are {', '.join(weights)}, got {weight!r}")
    return weights[weight]()


def largest_correction(elements: int) -> float:
    """What a normalised derivative can be per element at most, root-mean-square, for D elements: 1 / sqrt(D)."""
    return 1 / math.sqrt(elements)
