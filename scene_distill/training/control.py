"""Steering a run from outside while it trains: pause, resume, step, and changes of learning rates and loss weights.

Whoever steers appends commands to control.jsonl in the run folder, one JSON object a line:

    {"id": "...", "command": "pause" | "resume"}
    {"id": "...", "command": "step", "steps": 1}
    {"id": "...", "command": "set", "name": "lr_features", "value": [0.01, 0.005]}

Training looks at the file's size after every lockstep step and answers every command with a line in log.jsonl. A change
takes effect when the next round opens its units; its line says from which round on. A run that is resumed takes up the
changes that its log tells of, each from its round on, so that its units train as they would have without the
interruption. Without commands nothing but that look happens: the trained bytes are the same.

With several workers only worker 0 reads the file. About twice a second, and at the end of every round, all meet after
the same lockstep step and worker 0 says what holds from there: wait, go on for so many steps, new settings. Changes
begin with a round, so a run that was told the same in the same rounds has the same bytes on any number of workers.

training.json says what the run is doing. Nothing here waits for whoever steers: it may crash or never come back, and
only a pause that was asked for lasts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from scene_distill.blocks.runtime import TELL_EVERY, Method, Progress, Runtime
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json, write_json
from scene_distill.training.run_folder import RunFolder

COMMANDS = "control.jsonl"
STATE = "training.json"

LOSS_WEIGHTS = ("consistency", "memory", "dssim", "volume", "exposure")
"""Settings beside the learning rates (lr_...) that may change while a run trains."""

LARGEST_WEIGHT = 1e6
LARGEST_LINE = 4096
"""Bytes of a command; longer lines are refused."""

LOOK_EVERY_S = 0.05
"""Pause between two looks at the commands while a run is paused."""

MEET_EVERY_S = 0.5
"""Time after which several workers meet to hear of commands, in steps as long as the last ones."""

State = Literal["training", "paused", "finished", "stopped"]


def tunables(config: Any) -> dict[str, float | list[float]]:
    """The settings of a config that may change while it trains, with their values: learning rates and loss weights."""
    found: dict[str, float | list[float]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        rate = field.name.startswith("lr_") and field.name != "lr_until"
        if isinstance(value, tuple) and rate and all(isinstance(part, float) for part in value):
            found[field.name] = list(value)
        elif isinstance(value, float) and (rate or field.name in LOSS_WEIGHTS):
            found[field.name] = value
    return found


def checked_change(config: Any, name: Any, value: Any) -> float | tuple[float, ...]:
    """The new value of a setting as its config holds it; raises `UserError` when it may not change or does not fit."""
    known = tunables(config)
    if not isinstance(name, str) or name not in known:
        raise UserError(f"'{str(name)[:60]}' cannot change during training; these can: {', '.join(known)}")
    now, rate = known[name], name.startswith("lr_")
    parts = value if isinstance(value, list) else [value]
    if isinstance(now, list) != isinstance(value, list) or (isinstance(now, list) and len(parts) != len(now)):
        raise UserError(f"{name} takes {f'{len(now)} numbers' if isinstance(now, list) else 'one number'}")
    least, most = (0.0, 1.0) if rate else (0.0, LARGEST_WEIGHT)
    for part in parts:
        number = isinstance(part, (int, float)) and not isinstance(part, bool) and math.isfinite(part)
        if not number or part > most or part < least or (rate and part == 0):
            raise UserError(f"{name} must lie {'above 0 and up to 1' if rate else f'in 0 to {most:g}'}")
    return tuple(float(part) for part in parts) if isinstance(value, list) else float(value)


def send(folder: Path, command: dict[str, Any]) -> str:
    """Append a command to a run folder's control.jsonl; returns its id."""
    name = f"{time.time_ns():x}-{os.getpid()}"
    line = json.dumps({"id": name} | command) + "\n"
    try:
        with (folder / COMMANDS).open("ab", buffering=0) as file:
            file.write(line.encode())
    except OSError as error:
        raise UserError(f"cannot write {folder / COMMANDS}: {error.strerror}") from error
    return name


def training_state(folder: Path) -> dict[str, Any] | None:
    """What training.json says, with "state" set to "stopped" where the process is gone; None without the file."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        found = read_json(path)
    except UserError:
        return None
    if not isinstance(found, dict) or "state" not in found:
        return None
    if found["state"] in ("training", "paused") and found.get("host") == socket.gethostname():
        try:
            os.kill(int(found["pid"]), 0)
        except (OSError, KeyError, ValueError, TypeError):
            return found | {"state": "stopped"}
    return found


@dataclass(frozen=True)
class _Word:
    """What worker 0 says to all: settings that hold from now on, whether to wait for another word, and how many steps
    to make before the next one."""

    changes: dict[str, Any]
    wait: bool
    steps: int


class Control:
    """A worker's part in steering while `training.loop.Training` trains; a context manager that every worker opens
    around it. Worker 0 hears the commands, all call `together`.

    ``waited_s`` is the time that training stood still because it was asked to.
    """

    def __init__(self, folder: RunFolder, runtime: Runtime, method: Method) -> None:
        self._folder, self._runtime, self._method = folder, runtime, method
        self._path = folder.path / COMMANDS
        self._leads = runtime.workers.rank == 0
        self._offset = 0
        self._paused = False
        self._steps_left = 0
        self._pending: list[tuple[int, str, Any]] = []
        self._step: Progress | None = None
        self._heard = 0
        self._spoke = time.perf_counter()
        self.waited_s = 0.0

    def __enter__(self) -> Control:
        answered = self._take_up() if self._leads else set()
        self._pass_on(_Word(self._due(self._runtime.next_round), False, 1))
        if self._leads:
            for command in self._new_commands():
                if command.get("command") == "set" and command.get("id") not in answered:
                    self._accept(command, self._runtime.next_round, self._runtime.done_steps)
            self._tell("training")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leads:
            self._tell("finished" if kind is None else "stopped")

    def committed(self) -> None:
        """Note in training.json how far the run is."""
        self._tell("paused" if self._paused else "training")

    def hear(self, step: Progress) -> None:
        """Take note of a step that was made; on worker 0."""
        self._step, self._heard = step, self._heard + 1

    def together(self) -> int:
        """Carry out what was asked for; returns when training may go on, with the number of steps until the next call.

        Every worker calls it after the same step.
        """
        if not self._leads:
            while (word := self._pass_on(None)).wait:
                pass
            return word.steps
        step, steps = self._step, self._steps_made()
        assert step is not None
        self._obey(step)
        if self._paused:
            self._wait(step)
        if self._steps_left:
            steps = min(steps, self._steps_left)
        due = self._due(step.round + 1) if self._ends_round(step) else {}
        return self._pass_on(_Word(due, False, steps)).steps

    def _steps_made(self) -> int:
        """Count the steps since the last time, pause after the last one of those asked for; how many to make now until
        the workers meet again."""
        made, self._heard, now = self._heard, 0, time.perf_counter()
        steps = max(1, min(int(MEET_EVERY_S * made / max(now - self._spoke, 1e-9)), TELL_EVERY))
        self._spoke = now
        if self._steps_left:
            self._steps_left = max(self._steps_left - made, 0)
            self._paused = self._steps_left == 0
        return steps if self._runtime.workers.count > 1 else 1

    def _wait(self, step: Progress) -> None:
        started = time.perf_counter()
        self._tell("paused")
        while self._paused:
            self._pass_on(_Word({}, True, 0))  # others wait for a word no longer than for any other message
            time.sleep(LOOK_EVERY_S)
            self._obey(step)
        waited = time.perf_counter() - started
        self.waited_s += waited
        self._spoke += waited
        self._runtime.seconds -= waited
        self._tell("training")

    def _pass_on(self, word: _Word | None) -> _Word:
        """Worker 0's word, with the settings it changes given to this worker's method."""
        said: _Word = self._runtime.workers.main.from_first(word, "commands are passed on")
        if said.changes:
            changed = dataclasses.replace(self._config(), **said.changes)
            for holder in (self._method, self._method.shared):
                if hasattr(holder, "config"):
                    holder.config = changed
        return said

    def _due(self, round_: int) -> dict[str, Any]:
        """The changes that wait for this round or an earlier one, by the name of the setting."""
        due = {name: value for first, name, value in self._pending if first <= round_}
        self._pending = [change for change in self._pending if change[0] > round_]
        return due

    def _obey(self, step: Progress) -> None:
        for command in self._new_commands():
            self._accept(command, step.round, step.done_steps)

    def _accept(self, command: dict[str, Any], round_: int, done: int) -> None:
        """Carry out a command, or refuse it, and say so in the log."""
        answer: dict[str, Any] = {key: command.get(key) for key in ("id", "command")}
        try:
            answer |= self._carried_out(command, round_)
        except UserError as error:
            answer |= {"refused": str(error)}
        self._folder.append({"round": round_, "step": done, "control": answer})

    def _carried_out(self, command: dict[str, Any], round_: int) -> dict[str, Any]:
        what = command.get("command")
        if what == "pause":
            self._paused = True
            return {}
        if what == "resume":
            self._paused, self._steps_left = False, 0
            return {}
        if what == "step":
            steps = command.get("steps", 1)
            if type(steps) is not int or not 1 <= steps <= 1_000_000:
                raise UserError("steps must be a whole number from 1")
            self._paused, self._steps_left = False, steps
            return {"steps": steps}
        if what == "set":
            name, config = command.get("name"), self._config()
            value = checked_change(config, name, command.get("value"))
            self._pending.append((round_ + 1, str(name), value))
            return {"name": name, "from": tunables(config)[str(name)], "to": value, "from_round": round_ + 1}
        raise UserError(f"there is no command '{str(what)[:40]}'; known are pause, resume, step and set")

    def _new_commands(self) -> list[dict[str, Any]]:
        """Whole lines added since the last look; what is no command is passed over."""
        try:
            size = self._path.stat().st_size
        except OSError:
            return []
        if size <= self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read(size - self._offset)
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                command = json.loads(line) if len(line) <= LARGEST_LINE else None
            except (ValueError, RecursionError):
                continue
            if isinstance(command, dict):
                found.append(command)
        return found

    def _take_up(self) -> set[Any]:
        """Take up the changes that the log tells of; returns the ids of the commands it answers."""
        answered = set()
        log = self._folder.log
        for line in log.read_text().splitlines() if log.exists() else []:
            if '"control"' not in line:
                continue
            answer = json.loads(line).get("control", {})
            answered.add(answer.get("id"))
            if "from_round" in answer:
                value = checked_change(self._config(), answer["name"], answer["to"])
                self._pending.append((int(answer["from_round"]), answer["name"], value))
        return answered

    def _ends_round(self, step: Progress) -> bool:
        """Whether a step is the last of its round, so that what is changed now holds for the whole next one."""
        visits = self._runtime.rounds[self._runtime.next_round].visits
        return step.done_steps >= self._runtime.done_steps + sum(visit.steps for visit in visits)

    def _config(self) -> Any:
        return self._method.config  # type: ignore[attr-defined]

    def _tell(self, state: State) -> None:
        runtime = self._runtime
        write_json(self._folder.path / STATE, {
            "state": state, "pid": os.getpid(), "host": socket.gethostname(), "workers": runtime.workers.count,
            "round": runtime.next_round, "rounds": len(runtime.rounds), "step": runtime.done_steps,
            "steps": runtime.total_steps, "seconds": round(runtime.seconds, 3), "updated": time.time(),
        })  # fmt: skip
