"""TensorBoard and wandb as listeners on a run's log.jsonl, while it trains or long after.

The log is the one record; a listener reads it and writes what it read in its program's own format into the run folder
(``tensorboard/``, ``wandb/``). It never touches training: a listener that fails is told once and left out.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from scene_distill.core.configs import read_yaml
from scene_distill.core.console import say
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json
from scene_distill.training.run_folder import RunFolder
from scene_distill.training.run_log import Follower, LogStep

POLL_S = 2.0
"""Seconds between looks at a log that still grows."""

MANY_STEPS = 50


class Listener(Protocol):
    """Something that takes the figures of a run."""

    def step(self, step: LogStep) -> None:
        """Figures of a training step."""
        ...

    def results(self, results: Mapping[str, float], step: int) -> None:
        """Figures of the held-out views after the last step."""
        ...

    def close(self) -> None:
        """Nothing more will come for now."""
        ...


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder."""

    @staticmethod
    def check() -> None:
        """Raise `UserError` when TensorBoard is not installed."""
        try:
            import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UserError("TensorBoard is not installed; pip install 'scene-distill[tensorboard]'") from error

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        target = folder.path / "tensorboard"
        for old in target.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(target))
        self._writer.add_text("config", _settings(folder))

    def step(self, step: LogStep) -> None:
        """One point of every figure."""
        for name, value in step.figures.items():
            self._writer.add_scalar(name, value, step.step)

    def results(self, results: Mapping[str, float], step: int) -> None:
        """One point of every held-out figure."""
        for name, value in results.items():
            self._writer.add_scalar(f"held_out/{name}", value, step)

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class Wandb:
    """A wandb run named after the run folder, its files in ``wandb/`` there. WANDB_MODE=offline needs no account."""

    @staticmethod
    def check() -> None:
        """Raise `UserError` when wandb is not installed, or would have to ask for an account."""
        try:
            wandb = import_module("wandb")
        except ImportError as error:
            raise UserError("wandb is not installed; pip install 'scene-distill[wandb]'") from error
        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
            raise UserError("wandb has no account here; run `wandb login`, or set WANDB_MODE=offline")

    def __init__(self, folder: RunFolder) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "scene-distill"), name=folder.path.name,
                dir=str(folder.path), config=read_yaml(folder.config), settings=wandb.Settings(silent=True),
            )  # fmt: skip
        except Exception as error:  # wandb's own classes, and what its service process dies of
            raise UserError(f"wandb did not start ({str(error).splitlines()[0][:120]})") from error

    def step(self, step: LogStep) -> None:
        """One row of figures."""
        self._run.log(dict(step.figures), step=step.step)

    def results(self, results: Mapping[str, float], step: int) -> None:
        """The held-out figures, as the run's summary."""
        self._run.summary.update({f"held_out/{name}": value for name, value in results.items()})

    def close(self) -> None:
        """Hand over what is buffered."""
        self._run.finish()


LISTENERS: dict[str, type[TensorBoard] | type[Wandb]] = {"tensorboard": TensorBoard, "wandb": Wandb}


def _settings(folder: RunFolder) -> str:
    return "\n".join(f"    {line}" for line in folder.config.read_text().splitlines())


def check_listeners(names: Sequence[str]) -> None:
    """Raise `UserError` for an unknown name, and when a listener's program is missing or not ready."""
    for name in names:
        if name not in LISTENERS:
            raise UserError(f"nothing called '{name}' listens to runs; choose of {', '.join(LISTENERS)}")
        LISTENERS[name].check()


class Audience:
    """Listeners on one run's log. They get the means of all figures since the last time, at the steps whose lines carry
    memory and stages (about one a second), or every `MANY_STEPS` of a log without."""

    def __init__(self, folder: RunFolder, listeners: Sequence[Listener]) -> None:
        self._folder, self._listeners = folder, list(listeners)
        self._follower, self._heard, self._looked = Follower(folder.log), 0, 0.0
        self._untold: list[LogStep] = []

    @property
    def steps(self) -> int:
        """The last step that was told."""
        return self._heard

    def look(self, every_s: float = 0.0) -> None:
        """Tell what the log has gained, unless the last look was less than ``every_s`` seconds ago."""
        now = time.monotonic()
        if not self._listeners or now - self._looked < every_s:
            return
        self._looked = now
        for step in self._follower.new_steps():
            self._untold.append(step)
            if "memory/bytes" in step.figures or len(self._untold) == MANY_STEPS:
                self._tell_means()

    def finish(self) -> None:
        """Tell the rest, and the held-out figures where the run has been measured."""
        self.look()
        self._tell_means()
        if self._folder.metrics.exists():
            results = read_json(self._folder.metrics)["results"]
            self._tell(lambda listener: listener.results(results, self._heard))

    def _tell_means(self) -> None:
        if self._untold:
            steps, self._untold = self._untold, []
            self._heard = steps[-1].step
            means = LogStep(self._heard, steps[-1].seconds, _means(steps))
            self._tell(lambda listener: listener.step(means))

    def _tell(self, tell: Callable[[Any], None]) -> None:
        for listener in tuple(self._listeners):
            try:
                tell(listener)
            except Exception as error:  # a listener is other people's program: whatever it dies of, training goes on
                self._listeners.remove(listener)
                say(f"! {type(listener).__name__} fails and is left out: {str(error).splitlines()[0][:150]}")


def _means(steps: Sequence[LogStep]) -> dict[str, float]:
    names = dict.fromkeys(name for step in steps for name in step.figures)
    return {name: statistics.fmean(s.figures[name] for s in steps if name in s.figures) for name in names}


@contextmanager
def audience(path: Path, names: Sequence[str]) -> Iterator[Audience]:
    """The listeners ``names`` on the run in a folder, closed at the end; raises like `check_listeners`."""
    check_listeners(names)
    folder = RunFolder(path)
    with ExitStack() as stack:
        listeners = []
        for name in names:
            listeners.append(LISTENERS[name](folder))
            stack.callback(listeners[-1].close)
        yield Audience(folder, listeners)
