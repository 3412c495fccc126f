"""MeanFlow's identity, of which velocity matching is the case r = 0 with a teacher's velocity.

Teacher:   a velocity v(x, t): a frozen flow's here; z - x0 of the pair itself where MeanFlow trains from scratch.
Student:   u(x, r, t), the average velocity of the path between r and t (Geng et al. 2025, arXiv 2505.13447).
Gradient:  (t - r) u = integral of v, so u = v - (t - r) du/dt; the right side takes no gradient.
Cost:      one Jacobian-vector product and one backward of the student.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from scene_distill.objectives.transport import EXACT, Derivative, Transported, total_derivative
from scene_distill.objectives.transport_items import DENSE, Items

TwoTimes = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [B, ...], r [B], t [B]) -> average velocity from r to t, of the shape of x."""


def mean_flow(student: TwoTimes, v: Tensor, x: Tensor, r: Tensor, t: Tensor, how: Derivative = EXACT,
              items: Items = DENSE) -> Transported:  # fmt: skip
    """| u - sg[v - (t - r) du/dt] |^2, mean over an item's elements, for v at x = x_t and 0 <= r <= t.

    du/dt is total along dx/dt = v, with r fixed. ``how`` 'difference' needs t - delta >= 0.
    """
    v, u = v.detach(), student(x, r, t)
    slope = total_derivative(lambda at, time: student(at, r, time), x, t, v, how, u.detach(), items)
    residual = u + items.spread(t - r, x) * slope - v
    return Transported(items.mean(residual.square()), residual.detach(), slope)


def mean_flow_loss(each: Tensor, power: float = 1.0, offset: float = 1e-3) -> Tensor:
    """MeanFlow's adaptive mean over items: each / sg(each + offset)^power; power 0 is the plain mean."""
    return (each / (each.detach() + offset).pow(power)).mean()
