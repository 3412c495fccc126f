"""Named parameters with their moments: stepped together, saved and restored together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.methods.consistent3d.config import Consistent3DConfig
from scene_distill.objectives.score_teacher import Progress
from scene_distill.training.adan import AdanMoments
from scene_distill.training.optimisers import AdamMoments, log_linear

Moments = AdamMoments | AdanMoments


class Parameters:
    """Tensors in training by name. Those without a gradient after a backward pass stay as they are."""

    def __init__(self, config: Consistent3DConfig, state: State) -> None:
        kind = AdamMoments if config.optimiser == "adam" else AdanMoments
        self.limit = config.gradient_norm
        self.values = {n.removeprefix("value."): t for n, t in state.items() if n.startswith("value.")}
        self.moments: dict[str, Moments] = {n: kind.from_state(state, f"moments.{n}") for n in self.values}
        self.steps = int(state["steps"])
        for value in self.values.values():
            value.requires_grad_()

    @staticmethod
    def first_state(config: Consistent3DConfig, values: Mapping[str, Tensor]) -> State:
        """The state of parameters that were never stepped."""
        kind = AdamMoments if config.optimiser == "adam" else AdanMoments
        state: State = {"steps": torch.tensor(0)}
        for name, value in values.items():
            state[f"value.{name}"] = value.detach().clone()
            state |= kind.zeros_like(value).state(f"moments.{name}")
        return state

    def state(self) -> State:
        """Values, moments and the count of steps, as tensors that later steps do not change."""
        state: State = {"steps": torch.tensor(self.steps)}
        for name, value in self.values.items():
            state[f"value.{name}"] = value.detach().clone()
            state |= self.moments[name].state(f"moments.{name}")
        return state

    @torch.no_grad()
    def step(self, rates: Mapping[str, tuple[float, float]], progress: Progress) -> dict[str, float]:
        """One update with learning rates (first, last) by name; gradients are cleared. The gradient's norm."""
        found = {name: value.grad for name, value in self.values.items() if value.grad is not None}
        for gradient in found.values():
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        norm = sum(float(torch.linalg.vector_norm(gradient)) ** 2 for gradient in found.values()) ** 0.5
        factor = min(1.0, self.limit / norm) if self.limit > 0 and norm > 0 else 1.0
        for name, gradient in found.items():
            value = self.values[name]
            value.grad = None
            plain = value.detach()
            self.moments[name].step(
                plain, gradient * factor, log_linear(rates[name], progress.fraction), self.steps + 1
            )
        self.steps += 1
        return {"gradient norm": norm}
