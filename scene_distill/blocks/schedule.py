"""Which unit is trained on which lane in which round, for any number of units and lanes.

Every unit gets the same number of visits. The visits form one stream, sweep after sweep through the units in a fixed
order, and the stream is cut into rounds of L lanes. Because consecutive visits of a cyclic order are distinct units, a
round never holds a unit twice, no lane idles before the last round, and neither number needs to divide the other.
Which worker runs which lane is decided last and changes speed, never the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from scene_distill.core import seeds
from scene_distill.core.errors import UserError


@dataclass(frozen=True)
class Visit:
    """One stay of a unit on a lane: ``steps`` steps of the unit, starting at its own step ``first_step``."""

    lane: int
    unit: int
    sweep: int
    first_step: int
    steps: int


@dataclass(frozen=True)
class Round:
    """Up to L visits trained side by side; ``shared_step`` counts the shared updates made before it.

    ``final`` is true from the first round that holds a unit's last visit on: shared state is frozen there, so that
    every unit ends fitted to the shared weights that are saved (spec momentum_gs.md, pitfall 1).
    """

    index: int
    visits: tuple[Visit, ...]
    shared_step: int
    final: bool

    @property
    def steps(self) -> int:
        """Lockstep steps of the round: its longest visit."""
        return max(visit.steps for visit in self.visits)


def make_schedule(units: int, lanes: int, iterations: int, sweeps: int, seed: int = 0) -> tuple[Round, ...]:
    """Rounds that give each of ``units`` exactly ``iterations`` steps in ``sweeps`` visits on ``lanes`` lanes.

    With more lanes than units the surplus lanes stay empty. Raises `UserError` when a number is below one.
    """
    for name, value in (("blocks", units), ("lanes", lanes), ("iterations", iterations)):
        if value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    sweeps = max(1, min(sweeps, iterations))
    order = seeds.numpy_generator(seed, "unit order").permutation(units)
    width = min(lanes, units)
    cuts = [iterations * sweep // sweeps for sweep in range(sweeps + 1)]
    stream = [(int(unit), sweep) for sweep in range(sweeps) for unit in order]
    rounds: list[Round] = []
    shared_step = 0
    for index, start in enumerate(range(0, len(stream), width)):
        chunk = stream[start : start + width]
        visits = tuple(
            Visit(lane, unit, sweep, cuts[sweep], cuts[sweep + 1] - cuts[sweep])
            for lane, (unit, sweep) in enumerate(chunk)
        )
        final = sweeps > 1 and any(visit.sweep == sweeps - 1 for visit in visits)
        rounds.append(Round(index, visits, shared_step, final))
        shared_step += rounds[-1].steps
    return tuple(rounds)


def shared_steps(rounds: tuple[Round, ...]) -> int:
    """Number of updates the shared state gets: the steps of all rounds before the final ones."""
    return sum(round_.steps for round_ in rounds if not round_.final)


def place_lanes(rounds: tuple[Round, ...], workers: int) -> tuple[tuple[int, ...], ...]:
    """Rank of the worker that runs each lane of each round.

    A worker gets at most ceil(lanes / workers) lanes of a round. A unit stays with the worker that trained it last
    where that has room, because its state may still be in that worker's memory; the others go to the worker with the
    fewest lanes.
    """
    last: dict[int, int] = {}
    placed = []
    for round_ in rounds:
        most = -(-len(round_.visits) // workers)
        load, owner = [0] * workers, [-1] * len(round_.visits)
        for visit in round_.visits:
            home = last.get(visit.unit, -1)
            if home >= 0 and load[home] < most:
                owner[visit.lane] = home
                load[home] += 1
        for lane in (lane for lane, rank in enumerate(owner) if rank < 0):
            owner[lane] = load.index(min(load))
            load[owner[lane]] += 1
        last |= {visit.unit: owner[visit.lane] for visit in round_.visits}
        placed.append(tuple(owner))
    return tuple(placed)
