"""Consistency distillation and its relatives, as baselines of transport: the same student, other weights of u - v.

Teacher:   a frozen velocity v(x, t).
Student:   phi, with f(x, t) = x - t phi(x, t), the end of the teacher's path through x.
Gradient:  f should be the same here and one teacher's step nearer to the data; only f here takes gradient.
           CM (Song et al. 2023)   | f(x_t, t) - sg f(x_s, s) |^2, s = t - delta: 2 t delta (u - v) dphi + O(delta^2)
           sCM (Lu and Song 2025)  delta -> 0: | phi - sg[phi + g] |^2, g = -(u - v) / (rms + 0.1); without that
                                   normalisation its gradient is exactly that of VM
           PCM (Wang et al. 2024)  CM inside phases: from t in (e_k, e_k+1] to e_k instead of to 0
           The gradients of CM and PCM are of the size of delta; who trains with them beside the others divides their
           loss by delta, or clipping and Adam's epsilon treat them otherwise.
Cost:      of velocity matching.

sCM is written for the linear path, not for TrigFlow, and without adaptive weights or tangent warm-up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.transport import EXACT, Derivative, Transported, Velocity, total_derivative
from scene_distill.objectives.transport_items import DENSE, Items

TANGENT_OFFSET = 0.1
"""c of sCM's tangent normalisation (Lu and Song 2025, section 4.1)."""


def consistency_distillation(student: Velocity, teacher: Velocity, x: Tensor, t: Tensor, delta: float = 0.01,
                             items: Items = DENSE) -> Transported:  # fmt: skip
    """CM: | f(x_t, t) - sg f(x_t - delta v, t - delta) |^2, mean over an item's elements, for t >= delta."""
    return phased_consistency(student, teacher, x, t, delta, 1, items)


def phased_consistency(student: Velocity, teacher: Velocity, x: Tensor, t: Tensor, delta: float = 0.01,
                       phases: int = 2, items: Items = DENSE) -> Transported:  # fmt: skip
    """PCM with equal phases: f goes from t to its phase's beginning e, and a step back stops there.

    A student of ``phases`` > 1 is sampled by Euler with as many steps, at the phases' edges.
    """
    if phases < 1:
        raise UserError(f"phased consistency needs at least 1 phase, got {phases}")
    if float(t.min()) <= 0:
        raise UserError("consistency needs t above 0")
    begins = ((t * phases).ceil() - 1).clamp_min(0) / phases
    before = torch.maximum(t - delta, begins)
    with torch.no_grad():
        v = teacher(x, t)
        back = x - items.spread(t - before, x) * v
        other = student(back, before)
        target = back - items.spread(before - begins, x) * other
    phi = student(x, t)
    gap = x - items.spread(t - begins, x) * phi - target
    with torch.no_grad():
        slope = (phi - other) / items.spread(t - before, x)
        residual = phi + items.spread(t - begins, x) * slope - v
    return Transported(items.mean(gap.square()), residual, slope)


def continuous_consistency(student: Velocity, teacher: Velocity, x: Tensor, t: Tensor,
                           how: Derivative = EXACT, normalise: bool = True,
                           items: Items = DENSE) -> Transported:  # fmt: skip
    """sCM: | phi - sg[phi + g] |^2 with the tangent g = v - phi - t dphi/dt, divided by its root-mean-square + 0.1."""
    with torch.no_grad():
        v = teacher(x, t)
    phi = student(x, t)
    slope = total_derivative(student, x, t, v, how, phi.detach(), items)
    residual = phi.detach() + items.spread(t, x) * slope - v
    tangent = -residual
    if normalise:
        size = items.mean(tangent.square()).sqrt()
        tangent = tangent / (items.spread(size, x) + TANGENT_OFFSET)
    gap = phi - (phi.detach() + tangent)
    return Transported(items.mean(gap.square()), residual, slope)
