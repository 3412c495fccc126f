"""psi of VSD without a network: an exact mixture around the last renders, for priors that have no network to copy.

Teacher:   the last ``count`` renders, each a Gaussian of spread ``std`` in x0, seen from where they were drawn.
Student:   none; remembering is learning.
Gradient:  none.
Cost:      two products of [B, D] with [D, count].

A render counts the more the nearer its camera was: weights exp(kappa cos) of the angle between the directions of view,
which is psi's condition on the camera. Before the first update psi knows nothing: it is the unit Gaussian around 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score_teacher import Teacher
from scene_distill.priors.mixture import responsibilities


@runtime_checkable
class KeepsState(Protocol):
    """A model of the renders that a resumed run must have back."""

    def state(self) -> dict[str, Tensor]:
        """Everything it learned, copied."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        ...


class RenderMemory:
    """A `score_vsd.RenderScore` that remembers ``count`` renders. ``kappa``: how sharply it looks at the camera."""

    def __init__(self, count: int = 64, std: float = 0.1, kappa: float = 8.0) -> None:
        if count < 1 or std <= 0:
            raise UserError(f"a memory of renders needs a count of at least 1 and a spread above 0, got {count}, {std}")
        self.count, self.std, self.kappa = count, std, kappa
        self.renders: Tensor | None = None
        self.directions: Tensor | None = None

    def eps(self, z: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """The exact noise of the mixture of remembered renders at z [B, ...]."""
        sigma = teacher.schedule.sigma(level, z)
        if self.renders is None or self.directions is None:
            return sigma * z / (1 + sigma**2)
        variance = self.std**2 + sigma**2
        centres = self.renders.to(z)
        near = self._directions(z, teacher) @ self.directions.to(z).T
        weights = torch.softmax(self.kappa * near, 1).clamp(min=1e-12)
        share = responsibilities(z.flatten(1), centres.flatten(1), weights, variance.reshape(-1, 1))
        return sigma / variance * (z - (share @ centres.flatten(1)).reshape(z.shape))

    def learn(self, x0: Tensor, teacher: Teacher) -> float:
        """Remember renders x0; how far they are from the last that was remembered (mean square), 0 at first."""
        fresh, seen = x0.detach().clone(), self._directions(x0, teacher)
        if self.renders is None or self.directions is None:
            self.renders, self.directions = fresh, seen
            return 0.0
        change = float((fresh - self.renders[-len(fresh) :].to(fresh)).square().mean())
        self.renders = torch.cat([self.renders, fresh])[-self.count :]
        self.directions = torch.cat([self.directions, seen])[-self.count :]
        return change

    def state(self) -> dict[str, Tensor]:
        """The renders and their directions."""
        if self.renders is None or self.directions is None:
            return {}
        return {"renders": self.renders.clone(), "directions": self.directions.clone()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.renders, self.directions = state["renders"].clone(), state["directions"].clone()

    @staticmethod
    def _directions(like: Tensor, teacher: Teacher) -> Tensor:
        """Viewing directions [B, 3], world frame; all the same where no cameras are known."""
        if teacher.cameras is None:
            return torch.tensor([[0.0, 0.0, 1.0]]).repeat(len(like), 1).to(like)
        return teacher.cameras.reshape(-1, 4, 4)[:, :3, 2].to(like)
