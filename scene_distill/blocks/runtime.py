"""The loop over rounds that every method shares: open L units, train them in lockstep, reduce, close, commit.

Shared gradients are averaged over lanes in lane order after every lockstep step, so the result is that of L workers
whether
the lanes run side by side or one after another. After each round the changed units, the shared state and the place
in the schedule are committed by one atomic rename of the manifest. Random numbers are keyed by (seed, unit, step), so a
run that is killed at any moment and resumed repeats the interrupted round and ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from scene_distill.blocks.schedule import Round, Visit
from scene_distill.blocks.store import Entry, State, UnitStore
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json, write_json

MANIFEST = "checkpoint.json"


class Unit(Protocol):
    """A unit that is open for a visit: its private state as live tensors."""

    def step(self, step: int) -> tuple[Sequence[Tensor] | None, dict[str, float]]:
        """One training step (``step`` counts the unit's own steps): update the private state, return the
        gradients of the shared parameters (None when there are none) and numbers for the log."""
        ...

    def close(self) -> tuple[State, dict[str, float]]:
        """End the visit: the state to keep and the unit's scores for the shared scoreboard."""
        ...


class Shared(Protocol):
    """State that belongs to all units: parameters, their optimiser, a teacher, a scoreboard of unit scores."""

    def begin_step(self, shared_step: int, frozen: bool) -> None:
        """Called before every lockstep step."""
        ...

    def apply(self, gradients: Sequence[Tensor], shared_step: int) -> None:
        """Update the shared parameters from gradients averaged over lanes."""
        ...

    def publish(self, unit: int, scores: dict[str, float]) -> None:
        """Take a unit's scores into the scoreboard; called after the round, in lane order."""
        ...

    def state(self) -> State:
        """Everything that a resumed run needs."""
        ...

    def restore(self, state: State) -> None:
        """Take over a state made by `state`."""
        ...


class Method(Protocol):
    """What a method gives the runtime."""

    shared: Shared

    def first_state(self, unit: int) -> State:
        """The unit's state before its first visit."""
        ...

    def open(self, unit: int, state: State, visit: Visit, round_: Round) -> Unit:
        """A live unit for one visit."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a listener hears after every lockstep step: shared place in the schedule and the lanes' numbers."""

    round: int
    rounds: int
    done_steps: int
    total_steps: int
    lanes: tuple[tuple[int, dict[str, float]], ...]


class Runtime:
    """Runs a schedule on one worker and keeps the checkpoint in ``folder``."""

    def __init__(self, method: Method, rounds: Sequence[Round], folder: Path, ram_bytes: int = 0) -> None:
        self.method = method
        self.rounds = tuple(rounds)
        self.folder = folder
        self.store = UnitStore(folder / "units", ram_bytes)
        self.entries: dict[int, Entry] = {}
        self.next_round = 0
        self.shared_entry: Entry | None = None
        self.seconds = 0.0

    @property
    def total_steps(self) -> int:
        """Unit steps of the whole schedule."""
        return sum(visit.steps for round_ in self.rounds for visit in round_.visits)

    @property
    def done_steps(self) -> int:
        """Unit steps of the committed rounds."""
        return sum(visit.steps for round_ in self.rounds[: self.next_round] for visit in round_.visits)

    def resume(self) -> bool:
        """Take up the committed checkpoint; False when there is none. Raises `UserError` when it is damaged or of
        another run."""
        path = self.folder / MANIFEST
        if not path.exists():
            return False
        manifest = read_json(path)
        try:
            if manifest["schedule"] != self._schedule_identity():
                raise UserError(
                    f"{path} belongs to another schedule; resume with the same blocks, lanes and iterations"
                )
            self.entries = {int(unit): Entry(**entry) for unit, entry in manifest["units"].items()}
            self.shared_entry = Entry(**manifest["shared"])
            self.next_round, self.seconds = manifest["next_round"], manifest["seconds"]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); start the run anew in another folder") from error
        self.method.shared.restore(self.store.load(self.shared_entry))
        return True

    def run(self, listen: Callable[[Progress], None] = lambda progress: None,
            committed: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        """Train the rounds that are left. ``listen`` hears of every lockstep step, ``committed`` follows every
        commit."""
        while self.next_round < len(self.rounds):
            started = time.perf_counter()
            self._run_round(self.rounds[self.next_round], listen)
            self.next_round += 1
            self.seconds += time.perf_counter() - started
            self._commit()
            committed()

    def states(self) -> dict[int, Callable[[], State]]:
        """For every unit a function that loads its state; units never visited give their first state."""
        units = {visit.unit for round_ in self.rounds for visit in round_.visits}
        return {unit: lambda unit=unit: self._state(unit) for unit in sorted(units)}  # type: ignore[misc]

    def _state(self, unit: int) -> State:
        entry = self.entries.get(unit)
        return self.store.load(entry) if entry else self.method.first_state(unit)

    def _run_round(self, round_: Round, listen: Callable[[Progress], None]) -> None:
        shared, done = self.method.shared, self.done_steps
        units = [self.method.open(visit.unit, self._state(visit.unit), visit, round_) for visit in round_.visits]
        for offset in range(round_.steps):
            shared.begin_step(round_.shared_step + offset, round_.final)
            gradients: list[Sequence[Tensor]] = []
            numbers: list[tuple[int, dict[str, float]]] = []
            for visit, unit in zip(round_.visits, units, strict=True):
                if offset < visit.steps:
                    gradient, log = unit.step(visit.first_step + offset)
                    numbers.append((visit.unit, log))
                    if gradient is not None:
                        gradients.append(gradient)
            if gradients and not round_.final:
                shared.apply(mean_over_lanes(gradients), round_.shared_step + offset)
            done += len(numbers)
            listen(Progress(round_.index, len(self.rounds), done, self.total_steps, tuple(numbers)))
        for visit, unit in zip(round_.visits, units, strict=True):
            state, scores = unit.close()
            name = f"unit-{visit.unit:04d}-sweep-{visit.sweep:04d}"
            self.entries[visit.unit] = self.store.save(name, state)
            shared.publish(visit.unit, scores)
        self.shared_entry = self.store.save(f"shared-{round_.index:05d}", shared.state())

    def _commit(self) -> None:
        assert self.shared_entry is not None
        manifest: dict[str, Any] = {
            "next_round": self.next_round,
            "seconds": self.seconds,
            "schedule": self._schedule_identity(),
            "shared": self.shared_entry.to_dict(),
            "units": {str(unit): entry.to_dict() for unit, entry in self.entries.items()},
        }
        write_json(self.folder / MANIFEST, manifest)
        self.store.collect({self.shared_entry.file, *(entry.file for entry in self.entries.values())})

    def _schedule_identity(self) -> dict[str, int]:
        first = self.rounds[0]
        return {"rounds": len(self.rounds), "lanes": len(first.visits), "steps": self.total_steps}


def mean_over_lanes(gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Per parameter the mean over lanes, summed in lane order."""
    totals = list(gradients[0])
    for lane in gradients[1:]:
        totals = [total + gradient for total, gradient in zip(totals, lane, strict=True)]
    return [total / len(gradients) for total in totals]
