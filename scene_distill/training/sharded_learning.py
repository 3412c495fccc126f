"""One network that learns from shards of a data set, as a method of `blocks.runtime`.

Unit:    a shard; what it keeps is how its losses were spread over bins (of t, for flows).
Shared:  the network, its AdamW moments, the moving average of its weights, and the window of gradient norms.
Step:    every lane's unit draws a batch of its shard by (seed, stage, unit, step) and returns gradients; their mean
         over lanes makes one update. So lanes times batch is the batch of an update, on any number of workers.

The schedule gives all shards the same number of steps, and unlike scenes' blocks no unit needs the shared weights to
stand still at the end: they learn to the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from scene_distill.blocks.runtime import Shared
from scene_distill.blocks.schedule import Round, Visit, make_schedule
from scene_distill.blocks.store import State
from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.objectives.transport_times import TimeBins
from scene_distill.training.picture_networks import Schedule

BETAS, EPSILON = (0.9, 0.99), 1e-8

QUANTILE = 0.95
"""Of the last gradient norms, above which one is clipped (published code of MDT-dist)."""


@dataclass(frozen=True)
class Learning:
    """How a network is trained. ``steps``: updates; ``clip``: largest gradient norm; ``window``: norms whose 95th
    percentile clips too, once there are as many, 0 for none."""

    steps: int
    rate: float
    batch: int = 64
    warmup: int = 100
    ema: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    window: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """A batch's loss with its graph, figures for the log, and, for flows, losses [B] and their times [B]."""

    loss: Tensor
    figures: dict[str, float]
    each: Tensor | None = None
    t: Tensor | None = None


class Lesson(Protocol):
    """What differs between networks: data and loss. Times and batches come from ``generator`` alone."""

    @property
    def bins(self) -> TimeBins:
        """How losses are told apart by t."""
        ...

    def read(self, shard: int) -> object:
        """A shard's data in memory."""
        ...

    def outcome(self, data: object, batch: int, progress: float, generator: torch.Generator) -> Outcome:
        """The loss of a drawn batch, ``progress`` in [0, 1) of the way."""
        ...


class SharedNetwork:
    """The network and everything that its updates need (`blocks.runtime.Shared`)."""

    def __init__(self, network: nn.Module, learning: Learning) -> None:
        self.network, self.learning = network, learning
        self.schedule = Schedule(learning.rate, learning.steps, learning.warmup)
        self._weights: list[Tensor] = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._first = [torch.zeros_like(weight) for weight in self._weights]
        self._second = [torch.zeros_like(weight) for weight in self._weights]
        self._average = [weight.detach().clone() for weight in self._weights]
        self._norms = torch.zeros(max(learning.window, 1), dtype=torch.float64)
        self.done = 0

    def parameters(self) -> Sequence[Tensor]:
        """The trained weights."""
        return self._weights

    def begin_step(self, shared_step: int, frozen: bool) -> None:
        """Nothing to prepare."""

    @torch.no_grad()
    def apply(self, gradients: Sequence[Tensor], shared_step: int) -> None:
        """AdamW on clipped gradients, then the moving average; `UserError` for gradients that are not numbers."""
        learning, step = self.learning, shared_step + 1
        found = [gradient.clone() for gradient in gradients]
        norm = float(torch.linalg.vector_norm(torch.stack([g.double().norm() for g in found])))
        if not norm < float("inf"):
            raise UserError(f"the gradient of step {shared_step} is not a number; lower the learning rate")
        torch._foreach_mul_(found, min(1.0, self._limit() / max(norm, 1e-12)))
        self._norms[self.done % len(self._norms)] = norm
        torch._foreach_lerp_(self._first, found, 1 - BETAS[0])
        torch._foreach_mul_(self._second, BETAS[1])
        torch._foreach_addcmul_(self._second, found, found, 1 - BETAS[1])
        rate = self.schedule.at(shared_step)
        if learning.weight_decay:
            torch._foreach_mul_(self._weights, 1 - rate * learning.weight_decay)
        scale = torch._foreach_div(self._second, 1 - BETAS[1] ** step)
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, EPSILON)
        torch._foreach_addcdiv_(self._weights, self._first, scale, -rate / (1 - BETAS[0] ** step))
        decay = min(learning.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)
        self.done += 1

    def _limit(self) -> float:
        if self.learning.window and self.done >= self.learning.window:
            return min(self.learning.clip, float(self._norms.quantile(QUANTILE)))
        return self.learning.clip

    def publish(self, unit: int, scores: dict[str, float]) -> None:
        """Nobody reads scores."""

    def _named(self) -> dict[str, list[Tensor]]:
        return {"weight": self._weights, "first": self._first, "second": self._second, "average": self._average}

    def state(self) -> State:
        """All of it, copied."""
        found = {f"{name}.{i:03d}": t.detach().clone() for name, ts in self._named().items() for i, t in enumerate(ts)}
        return found | {"norms": self._norms.clone(), "done": torch.tensor(self.done)}

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Take over a state."""
        for name, tensors in self._named().items():
            for i, tensor in enumerate(tensors):
                tensor.copy_(state[f"{name}.{i:03d}"])
        self._norms.copy_(state["norms"])
        self.done = int(state["done"])

    @torch.no_grad()
    def averaged(self) -> dict[str, Tensor]:
        """The network's tensors by name, with the moving average in place of the trained weights."""
        average = {id(weight): mean for weight, mean in zip(self._weights, self._average, strict=True)}
        named = self.network.state_dict(keep_vars=True)
        return {name: average.get(id(value), value).detach().clone() for name, value in named.items()}


class ShardUnit:
    """A shard on a lane."""

    def __init__(self, method: ShardedLearning, unit: int, state: State) -> None:
        self._method, self._unit, self._sums = method, unit, state["bins"].clone()
        self._data = method.lesson.read(unit)

    def step(self, step: int) -> tuple[Sequence[Tensor] | None, dict[str, float]]:
        """Gradients of a fresh batch."""
        method = self._method
        generator = torch_generator(method.learning.seed, method.name, self._unit, step)
        progress = step / max(method.steps_of_unit, 1)
        outcome = method.lesson.outcome(self._data, method.learning.batch, progress, generator)
        gradients = torch.autograd.grad(outcome.loss, list(method.shared.parameters()), allow_unused=True)
        figures = {"loss": float(outcome.loss.detach()), **outcome.figures}
        if outcome.each is not None and outcome.t is not None:
            sums = method.lesson.bins.sums(outcome.each, outcome.t)
            self._sums += sums
            figures |= method.lesson.bins.means(sums)
        pairs = zip(gradients, method.shared.parameters(), strict=True)
        return [torch.zeros_like(p) if g is None else g for g, p in pairs], figures

    def close(self) -> tuple[State, dict[str, float]]:
        """The sums of losses by bin."""
        return {"bins": self._sums}, {}


class ShardedLearning:
    """The method that `blocks.runtime.Runtime` runs: ``units`` shards on ``lanes`` lanes."""

    def __init__(self, name: str, network: nn.Module, lesson: Lesson, learning: Learning, units: int, lanes: int,
                 visit: int = 100) -> None:  # fmt: skip
        self.name, self.lesson, self.learning = name, lesson, learning
        self.learner = SharedNetwork(network, learning)
        self.shared: Shared = self.learner
        width = min(lanes, units)
        self.steps_of_unit = -(-learning.steps * width // units)
        rounds = make_schedule(units, lanes, self.steps_of_unit, -(-self.steps_of_unit // visit), learning.seed)
        self.rounds = tuple(replace(round_, final=False) for round_ in rounds)

    def first_state(self, unit: int) -> State:
        """No losses yet."""
        return {"bins": torch.zeros(2, self.lesson.bins.count, dtype=torch.float64)}

    def open(self, unit: int, state: State, visit: Visit, round_: Round) -> ShardUnit:
        """Read the shard."""
        return ShardUnit(self, unit, state)


Told = Callable[[int, dict[str, float]], None]
"""Hears (updates so far, mean figures of the last ones)."""


class Means:
    """Means of what lanes tell, handed on every ``every`` updates and at the ends of rounds, so that no line of a log
    spans a commit."""

    def __init__(self, told: Told, every: int, ends: set[int], done: int) -> None:
        self._told, self._every, self._ends, self._done = told, every, ends, done
        self._sums: dict[str, list[float]] = {}

    def hear(self, lanes: Sequence[dict[str, float]]) -> None:
        """One update's figures, of all its lanes."""
        self._done += 1
        for numbers in lanes:
            for name, value in numbers.items():
                total = self._sums.setdefault(name, [0.0, 0.0])
                total[0], total[1] = total[0] + value, total[1] + 1
        if self._done % self._every == 0 or self._done in self._ends:
            self._told(self._done, {name: total / count for name, (total, count) in self._sums.items()})
            self._sums = {}
