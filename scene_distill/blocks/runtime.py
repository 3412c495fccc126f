"""The loop over rounds that every method shares: open L units, train them in lockstep, reduce, close, commit.

K units, L lanes and N workers are three independent numbers. Every worker holds the shared state and runs its lanes of
a round (`schedule.place_lanes`); after every lockstep step it gets the gradients of all lanes, averages them in lane
order and makes the same update (`reduction`), so the trained bytes do not depend on N. Random numbers are keyed by
(seed, unit, step), never by the process.

A round ends with a commit: every worker writes its units, worker 0 writes the shared state and renames the manifest.
That happens in the background while the next round trains. A run that is killed at any moment and resumed, on any
number of workers, repeats the round it was in and ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from scene_distill.blocks.custody import Custody
from scene_distill.blocks.reduction import LaneMean, Reduction
from scene_distill.blocks.schedule import Round, Visit, place_lanes
from scene_distill.blocks.splitting import Split, split_rounds
from scene_distill.blocks.store import State, UnitStore, state_bytes
from scene_distill.blocks.workers import Workers
from scene_distill.core.console import say

TELL_EVERY = 20
"""Lockstep steps after which several workers tell worker 0 their lanes' numbers for the log, at the latest."""


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
    """State that belongs to all units: parameters, their optimiser, a teacher, a scoreboard of unit scores.

    Every worker has a copy; all copies get the same calls with the same numbers and stay equal bit for bit.
    """

    def parameters(self) -> Sequence[Tensor]:
        """The parameters that units return gradients of, of one dtype; empty when nothing is shared."""
        ...

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
        """Everything that a resumed run needs, as tensors that later steps do not change."""
        ...

    def restore(self, state: State) -> None:
        """Take over a state made by `state`."""
        ...


class Method(Protocol):
    """What a method gives the runtime."""

    shared: Shared

    def first_state(self, unit: int) -> State:
        """The unit's state before its first visit; the same on every worker."""
        ...

    def open(self, unit: int, state: State, visit: Visit, round_: Round) -> Unit:
        """A live unit for one visit."""
        ...


class SavedState(Protocol):
    """A unit's state, in RAM or on disk, not to be changed. Who needs many holds one at a time."""

    def __call__(self) -> State:
        """All of it."""
        ...

    def some(self, *names: str) -> State:
        """Some of its tensors; from disk only they are read."""
        ...


@dataclass(frozen=True)
class ComputedState:
    """A state that is made when it is asked for."""

    make: Callable[[], State]

    def __call__(self) -> State:
        """All of it."""
        return self.make()

    def some(self, *names: str) -> State:
        """Some of its tensors."""
        state = self.make()
        return {name: state[name] for name in names}


@dataclass(frozen=True)
class _Visited:
    """The newest state of a unit that was visited."""

    custody: Custody
    unit: int

    def __call__(self) -> State:
        found = self.custody.look_at(self.unit)
        assert found is not None
        return found

    def some(self, *names: str) -> State:
        found = self.custody.look_at_some(self.unit, names)
        assert found is not None
        return found


@runtime_checkable
class ExchangingMethod(Method, Protocol):
    """A method whose units hold copies of parts that other units hold too."""

    def neighbours(self, unit: int) -> Sequence[int]:
        """The units that a unit has parts in common with."""
        ...

    def exchanged(self, unit: int, state: State, around: Mapping[int, SavedState]) -> State:
        """The state a unit opens with, from its own and from its neighbours' as they were closed last; ``around`` holds
        those neighbours that were visited. Must not change what it is given nor return parts of it."""
        ...


@runtime_checkable
class DivisibleMethod(Protocol):
    """A method whose units can be split in two when they outgrow their memory (`splitting`)."""

    @property
    def state_limit(self) -> int:
        """Bytes of a state above which its unit is split; 0: never."""
        ...

    def cut(self, unit: int, state: State) -> tuple[int, float] | None:
        """Axis and contracted position of the cut that halves a unit; None where the parts would be hardly smaller."""
        ...

    def split(self, split: Split) -> None:
        """From now on the unit is two."""
        ...

    def part(self, unit: int, state: State) -> State:
        """What one of the two takes of a state made before the split."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a listener hears after every lockstep step: shared place in the schedule and the lanes' numbers."""

    round: int
    rounds: int
    done_steps: int
    total_steps: int
    lanes: tuple[tuple[int, dict[str, float]], ...]


Numbers = dict[int, dict[str, float]]
"""Lane -> what its unit logged in one step, or its scores."""


class Runtime:
    """One worker's part of a schedule. The checkpoint is in worker 0's ``folder``; workers that see the same folder
    read and write their units there, the others send them to worker 0 (`custody`).

    ``ram_bytes`` bounds what closed units take in this worker's RAM (`UnitStore`).
    """

    def __init__(self, method: Method, rounds: Sequence[Round], folder: Path, ram_bytes: int | None = None,
                 workers: Workers | None = None, reduction: Reduction = "ordered") -> None:  # fmt: skip
        self.method, self.rounds, self.folder = method, tuple(rounds), folder
        self.workers = workers if workers is not None else Workers()
        self.next_round = 0
        self.seconds = 0.0
        self._told: set[int] = set()
        self._tell_after = 1
        self._owners = place_lanes(self.rounds, self.workers.count)
        self._reduction = reduction
        self._custody = Custody(folder, UnitStore(folder / "units", ram_bytes), self.workers, self._schedule_identity())

    @property
    def total_steps(self) -> int:
        """Unit steps of the whole schedule."""
        return sum(visit.steps for round_ in self.rounds for visit in round_.visits)

    @property
    def done_steps(self) -> int:
        """Unit steps of the finished rounds."""
        return sum(visit.steps for round_ in self.rounds[: self.next_round] for visit in round_.visits)

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest unit's state as it was committed; 0 before the first commit."""
        return self._custody.largest_bytes

    def shrink_ram(self, by_bytes: int) -> None:
        """Let closed units take that much less of this worker's RAM than was given to them."""
        self._custody.shrink_ram(by_bytes)

    def resume(self) -> bool:
        """Take up the last commit; False when there is none. Every worker calls it. Raises `UserError` when it is
        damaged or of another schedule."""
        found = self._custody.resume()
        if found is None:
            return False
        self.next_round, self.seconds = found.next_round, found.seconds
        for split in found.splits:
            self._split(split)
        self.method.shared.restore(self._custody.shared_state())
        return True

    def run(self, listen: Callable[[Progress], None] = lambda progress: None,
            committed: Callable[[], None] = lambda: None, together: Callable[[], int] = lambda: TELL_EVERY) -> None:  # fmt: skip  # noqa: E501
        """Train the rounds that are left; every worker calls it. On worker 0 ``listen`` hears of every lockstep step
        and ``committed`` follows every commit, both in this thread. Every worker calls ``together`` when steps were
        told, after the same step and at the end of every round; it says how many steps may pass before the next time
        (with one worker it is called after every step)."""
        with self._custody.opened(committed) as custody:
            while self.next_round < len(self.rounds):
                started = time.perf_counter()
                self._split_overgrown()
                round_ = self.rounds[self.next_round]
                units = self._open(round_)
                if self.next_round + 1 < len(self.rounds):
                    custody.fetch_ahead(self._mine(self.rounds[self.next_round + 1]), round_)
                self._train(round_, units, listen, together)
                self._close(round_, units)
                self.next_round += 1
                self.seconds += time.perf_counter() - started
                custody.begin_commit(round_, self._lane_owners(round_), self.method.shared.state(), self.seconds)
        self._custody.leave_ram()

    def states(self) -> dict[int, SavedState]:
        """Every unit's state as of the last commit; units never visited give their first state. Worker 0 can always
        load them, others where they see worker 0's folder."""
        units = {visit.unit for round_ in self.rounds for visit in round_.visits}
        return {unit: self._saved(unit) for unit in sorted(units)}

    def _saved(self, unit: int) -> SavedState:
        if self._custody.was_visited(unit) and not self._custody.is_whole(unit):
            return _Visited(self._custody, unit)
        return ComputedState(lambda: self._state(unit))

    def _open(self, round_: Round) -> dict[int, Unit]:
        """This worker's units of a round, by lane."""
        mine = self._mine(round_)
        around = {visit.unit: self._neighbours(visit.unit) for visit in mine}
        self._custody.bring({unit for visit in mine for unit in (visit.unit, *around[visit.unit])})
        units = {}
        for visit in mine:
            state = self._opening_state(visit.unit, around[visit.unit])
            units[visit.lane] = self.method.open(visit.unit, state, visit, round_)
        self._custody.release(visit.unit for visit in mine)
        return units

    def _neighbours(self, unit: int) -> tuple[int, ...]:
        return tuple(self.method.neighbours(unit)) if isinstance(self.method, ExchangingMethod) else ()

    def _opening_state(self, unit: int, around: Sequence[int]) -> State:
        """The state a unit opens with. A method that exchanges sees every neighbour as it was closed last; other lanes
        of this round still look at the unit's own, so it stays as it is."""
        visited = {other: _Visited(self._custody, other) for other in around if self._custody.was_visited(other)}
        if not visited or not isinstance(self.method, ExchangingMethod):
            return self._state(unit)
        return self.method.exchanged(unit, self._part(unit, self._look_at(unit)), visited)

    def _split_overgrown(self) -> None:
        """Split the units of the coming round that outgrew their memory. Every worker makes the same splits."""
        method, indivisible = self.method, set[int]()
        if not isinstance(method, DivisibleMethod) or method.state_limit == 0:
            return
        while True:
            coming = [visit.unit for visit in self.rounds[self.next_round].visits if visit.unit not in indivisible]
            unit = next((unit for unit in coming if self._bytes(unit) > method.state_limit), None)
            if unit is None:
                return
            cut = None if self.workers.rank else method.cut(unit, self._look_at(unit))
            cut = self.workers.main.from_first(cut, "worker 0 cuts a unit")
            if cut is None:
                indivisible.add(unit)
                self._tell_indivisible(unit)
                continue
            entry, added = self._custody.newest_entry(unit), 1 + max(v.unit for r in self.rounds for v in r.visits)
            axis, at = cut
            split = Split(self.next_round, unit, added, axis, at, entry.file if entry else "")
            self._custody.take_split(split)
            self._split(split)

    def _tell_indivisible(self, unit: int) -> None:
        if self.workers.rank == 0 and unit not in self._told:
            say(f"block {unit} outgrew its memory, and a cut would not help: its views see most of it from both sides")
        self._told.add(unit)

    def _split(self, split: Split) -> None:
        assert isinstance(self.method, DivisibleMethod)
        self.method.split(split)
        self.rounds = split_rounds(self.rounds, split)
        self._owners = place_lanes(self.rounds, self.workers.count)

    def _bytes(self, unit: int) -> int:
        """Bytes of a unit's newest state; 0 where it was just split, and its part is not known before it trains."""
        if self._custody.is_whole(unit):
            return 0
        entry = self._custody.newest_entry(unit)
        return state_bytes(self.method.first_state(unit)) if entry is None else entry.bytes

    def _look_at(self, unit: int) -> State:
        found = self._custody.look_at(unit)
        return self.method.first_state(unit) if found is None else found

    def _train(self, round_: Round, units: dict[int, Unit], listen: Callable[[Progress], None],
               together: Callable[[], int]) -> None:  # fmt: skip
        """Step this worker's lanes, and with the gradients of all lanes the shared state, in lockstep."""
        shared, lanes = self.method.shared, LaneMean(self.workers, self._lane_owners(round_), self._reduction)
        untold: list[Numbers] = []
        for offset in range(round_.steps):
            shared.begin_step(round_.shared_step + offset, round_.final)
            gradients: dict[int, Sequence[Tensor]] = {}
            numbers: Numbers = {}
            for visit in self._mine(round_):
                if offset < visit.steps:
                    gradient, numbers[visit.lane] = units[visit.lane].step(visit.first_step + offset)
                    if gradient is not None:
                        gradients[visit.lane] = gradient
            if not round_.final:
                mean = lanes.mean(gradients, shared.parameters())
                if mean is not None:
                    shared.apply(mean, round_.shared_step + offset)
            untold.append(numbers)
            if self.workers.count == 1 or len(untold) >= self._tell_after or offset == round_.steps - 1:
                self._tell(round_, offset + 1 - len(untold), untold, listen)
                untold = []
                self._tell_after = min(together(), TELL_EVERY)
            self._custody.notice_commit()

    def _close(self, round_: Round, units: dict[int, Unit]) -> None:
        """End the visits: states go into custody, scores to every worker's scoreboard in lane order."""
        scores: Numbers = {}
        for visit in self._mine(round_):
            state, scores[visit.lane] = units.pop(visit.lane).close()
            self._custody.keep(visit, state)
        everyone = _united(self.workers.main.gather(scores, "scores are exchanged"))
        for visit in round_.visits:
            self.method.shared.publish(visit.unit, everyone[visit.lane])

    def _tell(self, round_: Round, first: int, told: list[Numbers], listen: Callable[[Progress], None]) -> None:
        """Let worker 0's listener hear the numbers of all lanes for the round's steps from ``first`` on."""
        everyone = self.workers.main.gather(told, "numbers for the log are exchanged")
        if self.workers.rank > 0:
            return
        done = self.done_steps + sum(min(first, visit.steps) for visit in round_.visits)
        for step in range(len(told)):
            numbers = _united([worker[step] for worker in everyone])
            done += len(numbers)
            lanes = tuple((round_.visits[lane].unit, numbers[lane]) for lane in sorted(numbers))
            listen(Progress(round_.index, len(self.rounds), done, self.total_steps, lanes))

    def _state(self, unit: int) -> State:
        if self._custody.is_whole(unit):
            return self._part(unit, self._look_at(unit))
        found = self._custody.state(unit)
        return self.method.first_state(unit) if found is None else found

    def _part(self, unit: int, state: State) -> State:
        """Of a state that was made before its unit was split, what the unit takes."""
        if not self._custody.is_whole(unit):
            return state
        assert isinstance(self.method, DivisibleMethod)
        return self.method.part(unit, state)

    def _lane_owners(self, round_: Round) -> tuple[int, ...]:
        return self._owners[round_.index]

    def _mine(self, round_: Round) -> list[Visit]:
        """The visits of a round that this worker runs."""
        owners = self._lane_owners(round_)
        return [visit for visit in round_.visits if owners[visit.lane] == self.workers.rank]

    def _schedule_identity(self) -> dict[str, int]:
        first = self.rounds[0]
        return {"rounds": len(self.rounds), "lanes": len(first.visits), "steps": self.total_steps}


def _united(parts: Sequence[Numbers]) -> Numbers:
    return {lane: numbers for part in parts for lane, numbers in part.items()}
