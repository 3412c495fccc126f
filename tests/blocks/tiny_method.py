"""A method small enough to follow by hand and quick enough to kill a hundred times.

A unit holds rows of numbers that grow; all units share a two-layer network, trained with Adam, that has a momentum
teacher and a scoreboard. Everything a real method relies on is there: gradients through shared weights, moments updated
in place, state that changes size, lanes without a gradient, weights that depend on other units' scores, random numbers.

    python tiny_method.py FOLDER --settings 8x4 5x2 [--workers 1] [--iterations 40] [--visits 5] [--step-ms 0]

trains each UNITSxLANES setting in FOLDER/UNITSxLANES, alone or as one worker of torchrun or `blocks.launch`, and prints
a JSON object of digests on worker 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from scene_distill.blocks.launch import joined
from scene_distill.blocks.runtime import Runtime
from scene_distill.blocks.schedule import make_schedule
from scene_distill.core import seeds
from scene_distill.core.errors import UserError

WIDTH = 6


class TinyShared:
    def __init__(self):
        generator = seeds.torch_generator("tiny", "shared")
        self.weights = [torch.randn(WIDTH, 8, generator=generator), torch.randn(8, 3, generator=generator)]
        self.moments = [torch.zeros_like(w) for w in self.weights for _ in range(2)]
        self.teacher = [w.clone() for w in self.weights]
        self.scores: dict[int, float] = {}
        self.frozen = False

    def parameters(self):
        return self.weights

    def begin_step(self, shared_step, frozen):
        self.frozen = frozen
        if not frozen:
            for mine, weight in zip(self.teacher, self.weights, strict=True):
                mine.lerp_(weight, 0.1)

    def apply(self, gradients, shared_step):
        assert not self.frozen
        for index, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            first, second = self.moments[2 * index : 2 * index + 2]
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient**2, 0.01)
            step = shared_step + 1
            update = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
            weight.sub_(update, alpha=1e-2)

    def publish(self, unit, scores):
        self.scores[unit] = 0.5 * self.scores.get(unit, 1.0) + 0.5 * scores["error"]

    def state(self):
        tensors = {"weight": self.weights, "moment": self.moments, "teacher": self.teacher}
        state = {f"{name}{i}": t.clone() for name, ts in tensors.items() for i, t in enumerate(ts)}
        return state | {"scores": torch.tensor(sorted(self.scores.items()), dtype=torch.float64).reshape(-1, 2)}

    def restore(self, state):
        for name, tensors in (("weight", self.weights), ("moment", self.moments), ("teacher", self.teacher)):
            for i, tensor in enumerate(tensors):
                tensor.copy_(state[f"{name}{i}"])
        self.scores = {int(unit): score for unit, score in state["scores"].tolist()}


class TinyUnit:
    def __init__(self, unit, state, shared, step_s):
        self.unit, self.shared, self.step_s = unit, shared, step_s
        self.rows, self.moment = state["rows"], state["moment"]
        self.weight = 1.0 + shared.scores.get(unit, 0.0) / (1.0 + sum(shared.scores.values()))

    def step(self, step):
        time.sleep(self.step_s)
        if (step + self.unit) % 7 == 3:
            return None, {"rows": float(len(self.rows))}
        weights = [w.detach().clone().requires_grad_() for w in self.shared.weights]
        rows = self.rows.detach().clone().requires_grad_()
        noise = torch.randn(len(rows), WIDTH, generator=seeds.torch_generator("tiny", self.unit, step))
        target = torch.sin((rows.detach() + noise) @ self.shared.teacher[0][:, :3])
        loss = self.weight * ((torch.tanh((rows + 0.1 * noise) @ weights[0]) @ weights[1] - target) ** 2).mean()
        loss.backward()
        self.moment.lerp_(rows.grad, 0.1)
        self.rows = self.rows - 0.1 * self.moment
        if step % 5 == 4:
            self.rows = torch.cat([self.rows, self.rows[-1:] + noise[:1]])
            self.moment = torch.cat([self.moment, torch.zeros(1, WIDTH)])
        return (None if self.shared.frozen else [w.grad for w in weights]), {"loss": loss.item()}

    def close(self):
        return {"rows": self.rows, "moment": self.moment}, {"error": float(self.rows.abs().mean())}


class TinyMethod:
    def __init__(self, step_s=0.0):
        self.shared, self.step_s = TinyShared(), step_s

    def first_state(self, unit):
        generator = seeds.torch_generator("tiny", "unit", unit)
        rows = torch.randn(4 + unit % 3, WIDTH, generator=generator)
        return {"rows": rows, "moment": torch.zeros_like(rows)}

    def open(self, unit, state, visit, round_):
        return TinyUnit(unit, state, self.shared, self.step_s)


class TinyExchangingMethod(TinyMethod):
    """Units on a ring: a unit opens with its first row replaced by the mean of its neighbours' and its own."""

    def __init__(self, units, step_s=0.0):
        super().__init__(step_s)
        self.units = units

    def neighbours(self, unit):
        return sorted({(unit - 1) % self.units, (unit + 1) % self.units} - {unit})

    def exchanged(self, unit, state, around):
        rows = state["rows"].clone()
        rows[0] = torch.stack([rows[0], *(around[other].some("rows")["rows"][0] for other in sorted(around))]).mean(
            dim=0
        )
        return {"rows": rows, "moment": state["moment"].clone()}


def tiny_runtime(folder, units, lanes, *, iterations=40, visits=5, step_s=0.0, exchange=False, **options) -> Runtime:
    """A runtime of the tiny method; ``options`` go to `Runtime`."""
    method = TinyExchangingMethod(units, step_s) if exchange else TinyMethod(step_s)
    return Runtime(method, make_schedule(units, lanes, iterations, visits), folder, **options)


def digest(runtime: Runtime) -> str:
    """All bytes of a trained model."""
    total = hashlib.sha256()
    for load in [runtime.method.shared.state, *runtime.states().values()]:
        for name, tensor in sorted(load().items()):
            total.update(name.encode() + str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def train(folder, units, lanes, **options) -> str:
    """Train from the last commit to the end; the digest on worker 0."""
    runtime = tiny_runtime(folder, units, lanes, **options)
    runtime.resume()
    runtime.run()
    return digest(runtime) if runtime.workers.rank == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--settings", nargs="+", default=["8x4"])
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--exchange", action="store_true")
    parser.add_argument("--reduction", default="ordered")
    o = parser.parse_args()
    torch.set_num_threads(1)
    digests = {}
    command = [sys.executable, *sys.argv]
    with joined(o.workers, lambda: command, timeout_s=o.timeout) as workers:
        for setting in o.settings:
            units, lanes = map(int, setting.split("x"))
            digests[setting] = train(
                o.folder / setting, units, lanes, iterations=o.iterations, visits=o.visits, step_s=o.step_ms / 1000,
                workers=workers, reduction=o.reduction, exchange=o.exchange,
            )  # fmt: skip
        if workers.rank == 0:
            print(json.dumps(digests))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
