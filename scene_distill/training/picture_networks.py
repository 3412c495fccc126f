"""Networks that learn from toy pictures: batches, and training that continues bit by bit where it was stopped.

Everything random about step s is drawn from (seed, purpose, s), so a checkpoint holds weights, moments and a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.core.seeds import torch_generator
from scene_distill.data.captioned_shapes import BACKGROUND
from scene_distill.data.captioned_shapes_pictures import Pictures

PLAIN_SHARE = 0.4
"""Share of pictures over the house background; the others get a random nearly grey one."""


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: a linear rise over ``warmup`` steps, half a cosine down to a twentieth of ``rate``."""

    rate: float
    steps: int
    warmup: int

    def at(self, step: int) -> float:
        """The rate of step ``step`` (from 0)."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        fall = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / max(self.steps, 1)))
        return self.rate * rise * (0.05 + 0.95 * fall)


class Fit:
    """A network in training: AdamW, clipped gradients, a slowly moving average of the weights, checkpoints."""

    def __init__(self, network: nn.Module, schedule: Schedule, ema: float) -> None:
        self.network, self.schedule, self.decay = network, schedule, ema
        self.step = 0
        self.pending: list[dict[str, float]] = []
        self.average = {name: value.detach().clone() for name, value in network.state_dict().items()}
        self._optimiser = torch.optim.AdamW(
            network.parameters(), lr=schedule.rate, betas=(0.9, 0.99), weight_decay=0.01
        )

    def learn(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``; raises `UserError` when it is not a number."""
        if not bool(torch.isfinite(loss.detach())):
            raise UserError(f"the loss of step {self.step} is not a number; lower --rate and start again")
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self._optimiser.param_groups:
            group["lr"] = self.schedule.at(self.step)
        self._optimiser.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        """Write weights, average, moments and step, atomically."""
        state = {"settings": json.dumps(settings), "step": self.step,
                 "pending": json.dumps(self.pending), "network": self.network.state_dict(),
                 "average": self.average, "optimiser": self._optimiser.state_dict()}  # fmt: skip
        write_atomically(path, lambda temporary: torch.save(state, temporary))

    def load(self, path: Path, settings: dict[str, Any]) -> None:
        """Continue from a checkpoint; raises `UserError` when it is damaged or was made with other settings."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            saved = json.loads(state["settings"])
            different = [name for name in settings if saved.get(name) != settings[name]]
            if different:
                was, now = saved.get(different[0]), settings[different[0]]
                raise UserError(
                    f"{path} was trained with {different[0]} {was}, not {now}; keep it or take another folder"
                )
            self.network.load_state_dict(state["network"])
            self._optimiser.load_state_dict(state["optimiser"])
            self.average, self.step = state["average"], state["step"]
            self.pending = json.loads(state["pending"])
        except UserError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} cannot be read ({reason}); delete it and train again") from error


class Log:
    """Lines of JSON about a training, cut back to the step that it continues from."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self.lines: list[dict[str, float]] = []
        if step and path.exists():
            self.lines = [line for line in read_log(path) if line["step"] <= step]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: dict[str, float]) -> None:
        """Add a line."""
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_log(path: Path) -> list[dict[str, float]]:
    """The whole lines of a log (a run that was killed may leave half of one); `UserError` when there is none."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no log of a training ({error})") from error


class Batches:
    """Batches of a picture set over plain backgrounds, each a function of its number."""

    def __init__(self, pictures: Pictures, size: int, seed: int, purpose: str) -> None:
        self._pictures, self._size, self._key = pictures, size, (seed, purpose)

    def generator(self, step: int) -> torch.Generator:
        """The random numbers of a step."""
        return torch_generator(*self._key, step)

    def draw(self, generator: torch.Generator) -> tuple[np.ndarray, Tensor]:
        """Indices [B] of drawn pictures and the pictures [B, 3, S, S] in [0, 1] over their backgrounds."""
        chosen = torch.randint(len(self._pictures), (self._size,), generator=generator).numpy()
        return chosen, composed(self._pictures.images[chosen], backgrounds(self._size, generator))


def backgrounds(count: int, generator: torch.Generator) -> Tensor:
    """Plain backgrounds [count, 3] in [0, 1]: the house's own, or a grey of 0.2 to 1 with a slight tint."""
    grey = 0.2 + 0.8 * torch.rand(count, 1, generator=generator)
    tinted = (grey + 0.06 * (torch.rand(count, 3, generator=generator) - 0.5)).clamp(0, 1)
    plain = torch.rand(count, 1, generator=generator) < PLAIN_SHARE
    return torch.where(plain, torch.tensor(BACKGROUND), tinted)


def composed(images: np.ndarray, background: Tensor) -> Tensor:
    """Pictures [B, S, S, 4] uint8 over backgrounds [B, 3]: [B, 3, S, S] float32 in [0, 1]."""
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    color, alpha = values[:, :3], values[:, 3:]
    return color * alpha + background[:, :, None, None] * (1 - alpha)


def run_fit(fit: Fit, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]], log: Log,
            every: int, told: Callable[[int, dict[str, float]], None]) -> Iterable[int]:  # fmt: skip
    """Train to the end of the schedule; yields the number of finished steps after each.

    ``loss_of`` gives a step's loss and figures; their means over ``every`` steps go to the log and to ``told``.
    """
    while fit.step < fit.schedule.steps:
        loss, figures = loss_of(fit.step)
        fit.learn(loss)
        since = fit.pending
        since.append({"loss": float(loss.detach()), **figures})
        if fit.step % every == 0 or fit.step == fit.schedule.steps:
            names = dict.fromkeys(name for line in since for name in line)
            means = {n: float(np.mean([line[n] for line in since if n in line])) for n in names}
            fit.pending = []
            log.append({"step": fit.step, **means})
            told(fit.step, means)
        yield fit.step
