"""What a run will take, before it starts: blocks, views, memory and time, from a few steps that are really made.

A step's time grows with what its view draws, and units grow. Steps are timed on two sizes: units as they start, and
units as they are expected to end (`Growth`), made by repeating rows. Half the growth's time lies between the two.
Opening, closing, scoring and packing a unit and drawing a held-out view are timed as well. Nothing is written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from scene_distill.blocks.runtime import ComputedState, ExchangingMethod, SavedState, Shared
from scene_distill.blocks.schedule import Visit
from scene_distill.blocks.splitting import StateRows
from scene_distill.blocks.store import State, checksum, pack, state_bytes
from scene_distill.core import memory, seeds
from scene_distill.data.scene import Frame
from scene_distill.training.evaluation import TrainedScene, evaluate, initial_points_psnr

if TYPE_CHECKING:
    from scene_distill.training.loop import Training

TIMED_STEPS = 8
"""Steps timed per unit and size, on as many views."""

TIMED_EVENTS = 2
"""Events of growth timed per unit, from the middle of its growth on."""

TIMED_UNITS = 2
"""Units that are timed: their number of first points is at 1/4 and 3/4 of all."""


@dataclass(frozen=True)
class Growth:
    """How a unit is expected to grow: from its first size to ``factor`` times as much, linearly between the fractions
    ``begin`` and ``end`` of its steps, in ``events`` events at the ends of steps."""

    begin: float
    end: float
    factor: float
    events: int

    @property
    def weight(self) -> float:
        """Mean over the steps of how far the growth has come, in [0, 1]."""
        return 1 - self.end + (self.end - self.begin) / 2

    def event_steps(self, iterations: int) -> list[int]:
        """The steps that end with an event, of ``iterations``."""
        first, last = self.begin * iterations, self.end * iterations

        def events_by(step: int) -> int:
            return int(self.events * min(max((step - first) / max(last - first, 1e-9), 0.0), 1.0))

        return [step for step in range(iterations) if events_by(step + 1) > events_by(step)]


@dataclass(frozen=True)
class Estimate:
    """Seconds of training and of evaluation on this machine, seconds of a mean step, bytes of the largest resident
    set, and of a unit's state at its end."""

    training_s: float
    evaluation_s: float
    step_s: float
    memory_bytes: int
    state_bytes: int


Clock = Callable[[], float]
T = TypeVar("T")


def plan_text(training: Training) -> str:
    """What will be trained, and the memory and time it takes, for people."""
    found, first = estimate(training), training.runtime.rounds[0]
    workers = training.runtime.workers.count
    total = training.runtime.total_steps
    return "\n".join(
        [
            training.method.plan()["table"],
            f"{len(training.runtime.rounds)} rounds of {len(first.visits)} lanes, {total} steps in all",
            f"memory: about {memory.format_bytes(found.memory_bytes)}"
            + (" on worker 0" if workers > 1 else "")
            + f"; a block's file grows to about {memory.format_bytes(found.state_bytes)}",
            f"time: about {duration(found.training_s + found.evaluation_s)} on this machine as busy as it is now: "
            f"training {duration(found.training_s)} at {found.step_s * 1000:.0f} ms a step, "
            f"evaluation {duration(found.evaluation_s)}",
        ]
    )


def duration(seconds: float) -> str:
    """'45 s', '12 min' or '3.5 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def estimate(training: Training, clock: Clock = time.perf_counter) -> Estimate:
    """Time and memory of a run, from steps made now; ``clock`` counts seconds."""
    method, runtime = training.method, training.runtime
    growth: Growth = method.growth
    with _Stopwatch(training, clock) as watch:
        probes = [_Probe.of(training, unit, growth, watch) for unit in _typical_units(training)]
    photo = statistics.fmean(watch.photo_s) if watch.photo_s else 0.0
    events = len(growth.event_steps(training.config.iterations)) / training.config.iterations
    step = statistics.fmean(
        (1 - growth.weight) * probe.first_step_s + growth.weight * probe.last_step_s + events * probe.event_s
        for probe in probes
    )
    visit, bytes_ = statistics.fmean(p.visit_s for p in probes), statistics.fmean(p.bytes for p in probes)
    workers = runtime.workers.count
    busiest = [-(-len(round_.visits) // workers) for round_ in runtime.rounds]
    training_s = sum(
        lanes * (round_.steps * step + visit) for lanes, round_ in zip(busiest, runtime.rounds, strict=True)
    )
    training_s += photo * len(training.scene.train_frames) / workers
    frames = training.scene.test_frames or training.scene.frames
    evaluation = (statistics.fmean(probe.view_s for probe in probes) + photo) * len(frames)
    units = len({visit.unit for round_ in runtime.rounds for visit in round_.visits})
    need = _memory(training, max(busiest), bytes_, units * statistics.fmean(p.merged_bytes for p in probes))
    return Estimate(training_s, evaluation, step, need, int(bytes_))


@dataclass(frozen=True)
class _Probe:
    """What one unit took: seconds of a step at its first and at its expected last size, of an event of growth, of a
    visit's other work, of a held-out view; bytes of its last state and of what is merged of it."""

    first_step_s: float
    last_step_s: float
    event_s: float
    visit_s: float
    view_s: float
    bytes: int
    merged_bytes: int

    @staticmethod
    def of(training: Training, unit: int, growth: Growth, watch: _Stopwatch) -> _Probe:
        method, iterations = training.method, training.config.iterations
        visit = next(v for round_ in training.runtime.rounds for v in round_.visits if v.unit == unit)
        events = growth.event_steps(iterations)
        calm = [step for step in range(iterations) if step not in set(events)] or events
        some = events[len(events) // 2 :][:TIMED_EVENTS]
        with _kept(method.shared):
            early = calm[:TIMED_STEPS]
            first = _timed_visit(training, visit, method.first_state(unit), early + some, watch)
            grown = repeated(method.first_state(unit), method.rows, growth.factor)
            last = _timed_visit(training, visit, grown, calm[-TIMED_STEPS:], watch)
        first_step, last_step = (statistics.fmean(timed.steps_s[: len(early)]) for timed in (first, last))
        event = statistics.fmean(first.steps_s[len(early) :]) - first_step if some else 0.0
        packing, _ = watch.of(lambda: checksum(pack(last.state)))
        exchange, _ = watch.of(lambda: _exchanged(training, unit, last.state))
        merged = method.merge(_Alone(training, unit, last.state))
        size, rows = state_bytes(last.state), len(last.state[method.rows.positions])
        return _Probe(
            first_step, last_step, max(event, 0.0), last.rest_s + packing + exchange,
            _view_seconds(training, merged, watch),
            size, int(size * len(merged) / max(rows, 1)),
        )  # fmt: skip


def _exchanged(training: Training, unit: int, state: State) -> None:
    """What a method that exchanges does when a unit opens; the unit stands in for each of its neighbours."""
    method = training.method
    if isinstance(method, ExchangingMethod):
        method.exchanged(unit, state, {other: ComputedState(lambda: state) for other in method.neighbours(unit)})


class _Alone(dict[int, SavedState]):
    """The states of a run in which one unit has trained: it alone is merged, others are looked at as they start."""

    def __init__(self, training: Training, unit: int, state: State) -> None:
        super().__init__({unit: ComputedState(lambda: state)})
        self._first_state = training.method.first_state

    def __missing__(self, unit: int) -> SavedState:
        return ComputedState(lambda: self._first_state(unit))


def _typical_units(training: Training) -> list[int]:
    """Units between the smallest and the largest, by their first points."""
    units = sorted({visit.unit for round_ in training.runtime.rounds for visit in round_.visits})
    ranked = sorted(units, key=lambda unit: (len(training.method.blocks.first_points(unit)), unit))
    places = {(2 * k + 1) * len(ranked) // (2 * TIMED_UNITS) for k in range(TIMED_UNITS)}
    return [ranked[place] for place in sorted(places)]


class _Stopwatch:
    """Seconds of work without those spent on decoding photos, which a run does once per photo."""

    def __init__(self, training: Training, clock: Clock) -> None:
        self._images, self._get, self._clock = training.images, training.images.get, clock
        self.photo_s: list[float] = []

    def __enter__(self) -> _Stopwatch:
        self._images.get = self._timed_get  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._images.get = self._get  # type: ignore[method-assign]

    def of(self, work: Callable[[], T]) -> tuple[float, T]:
        """(seconds without photos, what the work returned)."""
        started, photos = self._clock(), sum(self.photo_s)
        result = work()
        return self._clock() - started - (sum(self.photo_s) - photos), result

    def _timed_get(self, frame: Frame) -> Tensor:
        started, kept = self._clock(), self._images.kept_bytes
        photo = self._get(frame)
        if self._images.kept_bytes != kept:
            self.photo_s.append(self._clock() - started)
        return photo


class _Timed(NamedTuple):
    """Seconds of each step of a visit, of opening and closing it, and the state at its end."""

    steps_s: list[float]
    rest_s: float
    state: State


def _timed_visit(training: Training, visit: Visit, state: State, steps: list[int], watch: _Stopwatch) -> _Timed:
    """A visit of a unit that makes some of its steps, after one that warms up."""
    method, round_ = training.method, training.runtime.rounds[0]
    opening, unit = watch.of(lambda: method.open(visit.unit, state, visit, round_))

    def make_step(step: int) -> None:
        method.shared.begin_step(step, False)
        gradients, _ = unit.step(step)
        if gradients is not None:
            method.shared.apply(gradients, 0)

    make_step(steps[0])
    seconds = [watch.of(lambda step=step: make_step(step))[0] for step in steps]  # type: ignore[misc]
    closing, (state, _) = watch.of(unit.close)
    return _Timed(seconds, opening + closing, state)


@contextmanager
def _kept(shared: Shared) -> Iterator[None]:
    """The shared state as it was, afterwards: what is timed must not change the run."""
    before = {name: tensor.clone() for name, tensor in shared.state().items()}
    try:
        yield
    finally:
        shared.restore(before)


def repeated(state: State, rows: StateRows, factor: float) -> State:
    """The state with ``factor`` times its rows, each repeated within its own size and shrunk so that together they
    cover as much of the picture as before (lengths by factor^-1/2)."""
    count = len(state[rows.positions])
    generator = seeds.torch_generator("estimate", count)
    index = torch.arange(int(factor * count)) % max(count, 1)
    grown = {name: tensor[index] if rows.has(name) else tensor for name, tensor in state.items()}
    sizes = grown[rows.log_scales][:, :3]
    jitter = torch.randn(sizes.shape, generator=generator) * sizes.exp()
    grown[rows.positions] = grown[rows.positions] + jitter * (torch.arange(len(index)) >= count)[:, None]
    grown[rows.log_scales] = grown[rows.log_scales] - torch.tensor(factor).log() / 2
    return grown


def _view_seconds(training: Training, merged: TrainedScene, watch: _Stopwatch) -> float:
    """Seconds to draw and measure a held-out view, and to draw the initial points in it."""
    frames = (training.scene.test_frames or training.scene.frames)[:2]

    def measure() -> None:
        evaluate(merged, frames, training.images)
        initial_points_psnr(training.scene, frames, training.images)

    return watch.of(measure)[0] / len(frames)


def _memory(training: Training, lanes: int, state: float, merged: float) -> int:
    """Bytes of the largest resident set: what this process had with one unit in work at its expected last size, the
    other lanes, the states that are written and fetched meanwhile, photos that are not loaded yet; and at the end the
    merged scene beside its parts."""
    images, rounds = training.images, training.runtime.rounds
    photos = max(images.budget_bytes - images.kept_bytes, 0)
    units = {visit.unit for round_ in rounds for visit in round_.visits}
    beside = lanes * state * (2 if len(rounds[0].visits) < len(units) else 1)
    return int(memory.peak_rss_bytes() + photos + max((lanes - 1) * state + beside, 2 * merged))
