"""How long a schedule takes on a cluster that nobody has at hand: a simulation of the runtime's rounds.

Rounds and the places of their lanes are those that training uses (`schedule.make_schedule`, `schedule.place_lanes`).
Every event of `runtime.Runtime` has its cost: the lockstep steps with the slowest worker's wait, the reduction after
each, states that are fetched and written beside training, the commit beside the next round, and workers that fail and
take the round with them. What happens inside a round is drawn for `SAMPLED_STEPS` of its steps and scaled.

Work: one random number per lane, sampled step and round; 10^5 blocks on 1,024 workers take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scene_distill.blocks.schedule import Round, place_lanes
from scene_distill.core import seeds

SAMPLED_STEPS = 16
"""Steps (or groups of steps between two reductions) drawn per round."""

Gathering = Literal["ordered", "all-reduce", "tree", "none"]


@dataclass(frozen=True)
class Costs:
    """What one unit costs on one worker. Times in seconds, sizes in bytes.

    step: mean of a step. unit_spread, worker_spread, step_spread: standard deviations of the logarithms of what
    multiplies it, all of mean 1: a unit's own cost, a worker's speed, and chance. visit: opening a unit and scoring
    it at the end. state: a unit's state. gradient: the shared gradient of a lane. lane_sum: adding one lane's
    gradient to the mean. manifest: a unit's entry, written with every commit.
    """

    step: float
    state: float
    unit_spread: float = 0.0
    worker_spread: float = 0.0
    step_spread: float = 0.0
    visit: float = 0.0
    gradient: float = 0.0
    lane_sum: float = 0.0
    manifest: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """Where it runs. ``link``: bytes per second into and out of a worker; ``latency``: seconds per message;
    ``store``: bytes per second of the shared file system, all workers together; ``resident``: units a worker keeps in
    RAM; ``failures``: mean seconds between two failures of one worker; ``restart``: seconds from a failure until all
    workers train again."""

    workers: int
    link: float = 12.5e9
    latency: float = 20e-6
    store: float = np.inf
    resident: float = 0.0
    failures: float = np.inf
    restart: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """Seconds of a run by what they were spent on, and ``work``: what all unit steps take one after another on one
    worker of mean speed."""

    work: float
    workers: int
    compute: float
    waiting: float
    reducing: float
    visits: float
    storing: float
    committing: float
    failing: float

    @property
    def seconds(self) -> float:
        """The run's duration."""
        parts = (self.compute, self.waiting, self.reducing, self.visits, self.storing, self.committing, self.failing)
        return sum(parts)

    @property
    def efficiency(self) -> float:
        """Share of the workers' time that is unit steps."""
        return self.work / (self.workers * self.seconds)


def reduction_seconds(how: Gathering, lanes: int, costs: Costs, cluster: Cluster) -> float:
    """Seconds to average the gradients of ``lanes`` over the workers, after the slowest step.

    With message time a, bandwidth B, N workers, L lanes of g bytes and s seconds to add one:
    ordered: ring all-gather, (N-1) a + (N-1)/N L g/B, then L s on every worker. all-reduce: ring, 2 (N-1) a +
    2 (N-1)/N g/B, plus s for each of its own lanes. tree: 2 ceil(log2 N) (a + g/B + s) (up and down a binary tree over
    lanes, whose order of sums does not depend on N either), plus the own lanes. none: nothing is shared.
    """
    n, own = cluster.workers, -(-lanes // cluster.workers)
    message, bytes_per_s, vector, add = cluster.latency, cluster.link, costs.gradient, costs.lane_sum
    if how == "none":
        return 0.0
    if how == "ordered":
        return (n - 1) * message + (n - 1) / n * lanes * vector / bytes_per_s + lanes * add
    if how == "all-reduce":
        return 2 * (n - 1) * message + 2 * (n - 1) / n * vector / bytes_per_s + own * add
    return 2 * int(np.ceil(np.log2(n))) * (message + vector / bytes_per_s + add) + own * add


@dataclass(frozen=True, eq=False)
class Layout:
    """Rounds on workers as arrays: ``units`` and ``workers`` [R, L] (unit -1: no visit), ``fetched`` [R, L] whether the
    unit was last trained elsewhere, ``steps``, ``final`` and ``known_units`` (units visited so far) [R]."""

    units: np.ndarray
    workers: np.ndarray
    fetched: np.ndarray
    steps: np.ndarray
    final: np.ndarray
    known_units: np.ndarray
    worker_count: int

    @property
    def unit_count(self) -> int:
        """Units of the schedule."""
        return int(self.units.max()) + 1

    @property
    def lanes(self) -> int:
        """Lanes of a full round."""
        return self.units.shape[1]

    @property
    def lanes_of_busiest(self) -> int:
        """Lanes that the busiest worker of a round runs."""
        return -(-self.lanes // self.worker_count)

    @staticmethod
    def of(rounds: Sequence[Round], workers: int) -> Layout:
        """The rounds with their lanes where `schedule.place_lanes` puts them."""
        shape = (len(rounds), max(len(round_.visits) for round_ in rounds))
        units, places = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        fetched, known = np.zeros(shape, dtype=bool), np.zeros(len(rounds))
        owners, home = (
            place_lanes(tuple(rounds), workers),
            np.full(1 + max(visit.unit for round_ in rounds for visit in round_.visits), -1),
        )
        for row, (round_, owner) in enumerate(zip(rounds, owners, strict=True)):
            count = len(owner)
            ids = np.fromiter((visit.unit for visit in round_.visits), np.int64, count)
            units[row, :count], places[row, :count] = ids, owner
            fetched[row, :count] = home[ids] != places[row, :count]
            known[row] = (known[row - 1] if row else 0) + (home[ids] < 0).sum()
            home[ids] = owner
        steps = np.array([round_.steps for round_ in rounds], dtype=np.float64)
        final = np.array([round_.final for round_ in rounds])
        return Layout(units, places, fetched, steps, final, known, workers)


def simulate(layout: Layout, costs: Costs, cluster: Cluster, how: Gathering = "ordered",
             reduce_every: int = 1, seed: int = 0) -> Outcome:  # fmt: skip
    """What training the rounds of a layout costs on a cluster of as many workers.

    ``reduce_every``: steps between two reductions (the runtime reduces after every step; final rounds never wait for
    another lane before their end). The same arguments give the same outcome.
    """
    if layout.worker_count != cluster.workers:
        raise ValueError(f"the rounds are laid out for {layout.worker_count} workers, not {cluster.workers}")
    draw = seeds.numpy_generator(seed, "simulation")
    lognormal = _unit_mean_lognormal
    unit_cost = costs.step * lognormal(draw, costs.unit_spread, layout.unit_count)
    slowness = lognormal(draw, costs.worker_spread, cluster.workers)
    slowness /= slowness.mean()
    seconds = np.where(layout.units >= 0, unit_cost[layout.units], 0.0) * slowness[layout.workers]
    groups = np.where(layout.final | (how == "none"), 1.0, np.ceil(layout.steps / reduce_every))
    slowest, busy = _slowest_and_mean(draw, seconds, layout, groups, costs.step_spread)
    reducing = np.where(layout.final, 0.0, groups * reduction_seconds(how, layout.lanes, costs, cluster))
    visits = np.full(len(layout.steps), costs.visit) * layout.lanes_of_busiest
    training = slowest + reducing + visits
    storing = np.maximum(_store_seconds(layout, costs, cluster) - training, 0.0)
    committing = np.maximum(costs.manifest * layout.known_units - training, 0.0)
    lost = _lost_seconds(draw, training + storing + committing, cluster)
    return Outcome(
        work=float((unit_cost[layout.units] * (layout.units >= 0) * layout.steps[:, None]).sum()),
        workers=cluster.workers,
        compute=float(busy.sum()),
        waiting=float((slowest - busy).sum()),
        reducing=float(reducing.sum()),
        visits=float(visits.sum()),
        storing=float(storing.sum()),
        committing=float(committing.sum()),
        failing=float(lost.sum()),
    )


def _unit_mean_lognormal(draw: np.random.Generator, spread: float, shape: int | tuple[int, ...]) -> np.ndarray:
    """Lognormal numbers of mean 1 whose logarithms have the standard deviation ``spread``."""
    return np.exp(spread * draw.standard_normal(shape) - spread**2 / 2) if spread > 0 else np.ones(shape)


def _slowest_and_mean(draw: np.random.Generator, seconds: np.ndarray, layout: Layout, groups: np.ndarray,
                      spread: float) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Seconds per round [R] of its steps when all wait for the slowest worker at the end of each of its ``groups`` [R]
    of steps, and what the workers were busy in the mean [R].

    ``seconds`` [R, L] are means of a step per lane. The sum of the steps of a group is drawn as one lognormal of the
    same mean and variance (Fenton 1960), which is exact for one step.
    """
    group_spread = np.sqrt(np.log1p(np.expm1(spread**2) * groups / layout.steps))
    slowest, busy = np.zeros(len(seconds)), np.zeros(len(seconds))
    samples, workers = SAMPLED_STEPS if spread > 0 else 1, layout.worker_count
    chunk = max(1, 2**22 // (seconds.shape[1] * samples))
    for start in range(0, len(seconds), chunk):
        rows = slice(start, start + chunk)
        shape = (samples, *seconds[rows].shape)
        noise = draw.standard_normal(shape) if spread > 0 else np.zeros(shape)
        s = group_spread[rows][None, :, None]
        times = seconds[rows] * np.exp(s * noise - s**2 / 2)
        rank = np.arange(shape[0] * shape[1]).reshape(*shape[:2], 1) * workers + layout.workers[rows]
        sums = np.bincount(rank.ravel(), times.ravel(), shape[0] * shape[1] * workers).reshape(*shape[:2], workers)
        slowest[rows] = sums.max(axis=2).mean(axis=0) * layout.steps[rows]
        busy[rows] = sums.mean(axis=(0, 2)) * layout.steps[rows]
    return slowest, busy


def _store_seconds(layout: Layout, costs: Costs, cluster: Cluster) -> np.ndarray:
    """Seconds per round [R] that its states take through the store and the busiest worker's link.

    Every state is written. It is read where its unit was last trained elsewhere, or its worker has more units than
    stay in RAM.
    """
    present = layout.units >= 0
    evicted = layout.known_units / layout.worker_count > cluster.resident
    moved = (present.astype(np.int64) + (present & (layout.fetched | evicted[:, None]))) * costs.state
    rank = np.arange(len(moved))[:, None] * layout.worker_count + layout.workers
    busiest = np.bincount(rank.ravel(), moved.ravel(), len(moved) * layout.worker_count)
    link = busiest.reshape(len(moved), layout.worker_count).max(axis=1) / cluster.link
    return np.maximum(link, moved.sum(axis=1) / cluster.store)


def _lost_seconds(draw: np.random.Generator, durations: np.ndarray, cluster: Cluster) -> np.ndarray:
    """Seconds per round [R] that failures cost: what was trained of the round in vain, and a restart each.

    Failures are a Poisson process of rate N / failures. A round is repeated until none falls into it, so the number of
    attempts is geometric and the time of a failed one is an exponential cut off at the duration.
    """
    if not np.isfinite(cluster.failures):
        return np.zeros_like(durations)
    rate = cluster.workers / cluster.failures
    survives = np.exp(-rate * durations)
    if survives.min() < 1e-6:
        worst = float(durations.max())
        raise ValueError(f"a round of {worst:.0f} s never ends with a failure every {1 / rate:.0f} s")
    attempts = draw.geometric(survives) - 1
    row = np.repeat(np.arange(len(durations)), attempts)
    at = -np.log1p(-draw.random(len(row)) * (1 - survives[row])) / rate
    return np.bincount(row, at + cluster.restart, len(durations))
