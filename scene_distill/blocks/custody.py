"""Who keeps which unit's state, and when a round counts.

A closed unit stays in the RAM of the worker that trained it until its file is whole. Worker 0 keeps the checkpoint
folder. A worker that sees the same folder (one machine, or a shared file system) reads and writes its units there by
itself; a worker that does not (another machine with a disk of its own) sends them to worker 0 through the process group
and asks for them back. Either way a round is committed by one rename on worker 0 after every unit's file is whole.

One commit may be in work while the next round trains, so a crash loses the round in work and, in the first moments of
a round, the one that is being written.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from scene_distill.blocks.background import Background
from scene_distill.blocks.checkpoint import Checkpoint, CheckpointFolder
from scene_distill.blocks.schedule import Round, Visit
from scene_distill.blocks.splitting import Split
from scene_distill.blocks.store import DamagedState, Entry, State, UnitStore, checksum, off_device, pack, unpack
from scene_distill.blocks.workers import Workers
from scene_distill.core.errors import UserError

T = TypeVar("T")

LAST_WORDS_S = 10.0
"""Longest wait for a commit in work when several workers stop because of an error."""

LOOK_FOR_S = 3.0
"""How long a worker looks for worker 0's mark in the folder: network file systems show new files late."""


class Custody:
    """One worker's view of all states of a run whose schedule is ``schedule``. ``folder`` is worker 0's when this is
    worker 0, and the same path on this worker's machine otherwise."""

    def __init__(self, folder: Path, store: UnitStore, workers: Workers, schedule: dict[str, int]) -> None:
        self._folder, self._store, self._workers, self._schedule = folder, store, workers, schedule
        self._manifests = CheckpointFolder(folder, store)
        self._last = Checkpoint(schedule)
        self._background = Background()
        self._sees_folder = [True] * workers.count
        self._commit: futures.Future[Checkpoint] | None = None
        self._fetch: futures.Future[None] | None = None
        self._closing: dict[int, str] = {}  # unit -> file, for the commit in work
        self._committed: Callable[[], None] = lambda: None

    def resume(self) -> Checkpoint | None:
        """The last commit, on every worker; None when there is none."""
        found = self._manifests.read(self._schedule) if self._workers.rank == 0 else None
        found = self._workers.main.from_first(found, "worker 0 reads the checkpoint")
        self._last = found or self._last
        return found

    def shared_state(self) -> State:
        """The shared state of the last commit, on every worker."""
        assert self._last.shared is not None
        data = self._read_bytes(self._last.shared) if self._workers.rank == 0 else None
        return unpack(self._workers.main.from_first(data, "worker 0 reads the shared state"))

    @contextmanager
    def opened(self, committed: Callable[[], None]) -> Iterator[Custody]:
        """Training inside: a clean end waits for the last commit. ``committed`` follows every commit on worker 0."""
        self._committed = committed
        self._sees_folder = self._who_sees_the_folder()
        wait_s = LAST_WORDS_S if self._workers.count > 1 else None
        try:
            yield self
            self.await_commit()
            wait_s = None
        finally:
            self._background.stop(wait_s)

    # States

    def keep(self, visit: Visit, state: State) -> None:
        """Take the state that a visit ends with; `begin_commit` writes it."""
        self._store.keep(_file(visit), state)

    def state(self, unit: int) -> State | None:
        """A unit's newest state; None before its first visit."""
        file = self._closing.get(unit)
        if file is not None:
            kept = self._store.take(file)
            if kept is not None:
                return kept
            self.await_commit()  # another worker trained it: its file is whole after the commit
        entry = self._last.units.get(unit)
        if entry is None:
            return None
        kept = self._store.take(entry.file)
        return unpack(self._read_bytes(entry)) if kept is None else kept

    def look_at(self, unit: int) -> State | None:
        """A unit's newest state, not to be changed; None before its first visit."""
        kept, entry = self._in_ram_or_on_disk(unit)
        return unpack(self._read_bytes(entry)) if kept is None and entry is not None else kept

    def look_at_some(self, unit: int, names: Sequence[str]) -> State | None:
        """Some tensors of a unit's newest state, not to be changed; None before its first visit. From disk they come
        without a look at the checksum, which `look_at` takes."""
        kept, entry = self._in_ram_or_on_disk(unit)
        if kept is not None:
            return {name: kept[name] for name in names}
        return None if entry is None else self._explained(lambda: self._store.read_some(entry, names))

    def was_visited(self, unit: int) -> bool:
        """Whether a unit has a state of its own."""
        return self._newest(unit) != ""

    def _in_ram_or_on_disk(self, unit: int) -> tuple[State | None, Entry | None]:
        kept = self._store.look_at(self._newest(unit))
        if kept is None and unit in self._closing:
            self.await_commit()
        return kept, self._last.units.get(unit)

    def is_whole(self, unit: int) -> bool:
        """Whether a unit's newest state is one that was made before the unit was split, of both parts."""
        file = self._newest(unit)
        return file != "" and any(file == s.file and unit in (s.unit, s.added) for s in self._last.splits)

    def newest_entry(self, unit: int) -> Entry | None:
        """The entry of a unit's newest state, on every worker; None before its first visit."""
        if unit in self._closing:
            self.await_commit()
        return self._last.units.get(unit)

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest committed state; 0 before the first commit."""
        return max((entry.bytes for entry in self._last.units.values()), default=0)

    def take_split(self, split: Split) -> None:
        """Let both parts go on from the unit's newest state; the next commit tells."""
        self.await_commit()
        entry = self._last.units.get(split.unit)
        units = self._last.units | ({split.added: entry} if entry else {})
        self._last = replace(self._last, units=units, splits=(*self._last.splits, split))

    def release(self, opened: Iterable[int]) -> None:
        """Let go of states that were fetched or sent for this round, and of those its units were opened from."""
        self._store.release()
        for unit in opened:
            self._store.drop(self._newest(unit))

    def leave_ram(self) -> None:
        """Keep no state in RAM: nothing trains any more, and what comes next needs the room."""
        self._store.empty()

    def shrink_ram(self, by_bytes: int) -> None:
        """Let states in RAM take less than they were given."""
        self._store.shrink(by_bytes)

    def fetch_ahead(self, visits: Sequence[Visit], training: Round) -> None:
        """Read the states for coming visits in the background, but those of units that train now."""
        busy, commit, last = {visit.unit for visit in training.visits}, self._commit, self._last
        units = [visit.unit for visit in visits if visit.unit not in busy]
        if not units or not self._sees_folder[self._workers.rank]:
            return

        def fetch() -> None:
            known = last if commit is None else commit.result()
            for unit in units:
                if unit in known.units:
                    self._store.fetch(known.units[unit])

        self._fetch = self._background.submit(fetch)

    def bring(self, units: set[int]) -> None:
        """Make the states of ``units`` reachable for this worker: wait for what is fetched ahead, and where not every
        worker sees the folder let worker 0 send. Every worker calls it."""
        if self._fetch is not None:
            futures.wait([self._fetch])
            self._fetch = None
        if all(self._sees_folder):
            return
        me, channel, doing = self._workers.rank, self._workers.main, "worker 0 sends states"
        needed = [] if self._sees_folder[me] else sorted(units)
        everyone = channel.gather([unit for unit in needed if not self._store.holds(self._newest(unit))], doing)
        if not any(everyone):
            return
        self.await_commit()
        for rank, asked in enumerate(everyone):
            for entry in (self._last.units[unit] for unit in asked if unit in self._last.units):
                if me == 0:
                    channel.send(self._read_bytes(entry), rank, doing)
                elif me == rank:
                    self._store.hold(entry.file, unpack(channel.receive(0, doing)))

    def _newest(self, unit: int) -> str:
        """File of a unit's newest state, '' before its first visit."""
        entry = self._last.units.get(unit)
        return self._closing.get(unit, entry.file if entry else "")

    def _read_bytes(self, entry: Entry) -> bytes:
        return self._explained(lambda: self._store.read_bytes(entry))

    def _explained(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except DamagedState as damaged:
            raise self._manifests.explain(damaged) from damaged

    # Commits

    def begin_commit(self, round_: Round, owners: Sequence[int], shared: State, seconds: float) -> None:
        """Commit a round in the background, after the commit before it. ``owners[lane]`` ran the lane."""
        self.await_commit()
        shared, old = off_device(shared), self._last
        self._closing = {visit.unit: _file(visit) for visit in round_.visits}
        self._commit = self._background.submit(lambda: self._commit_round(round_, owners, shared, seconds, old))
        if self._store.over_budget:
            self.await_commit()

    def await_commit(self) -> None:
        """Wait for the commit in work; raises what went wrong with it."""
        if self._commit is None:
            return
        commit, self._commit = self._commit, None
        self._last, self._closing = commit.result(), {}
        if self._workers.rank == 0:
            self._committed()

    def notice_commit(self) -> None:
        """Take note of a commit that is done, without waiting."""
        if self._commit is not None and self._commit.done():
            self.await_commit()

    def _commit_round(self, round_: Round, owners: Sequence[int], shared: State, seconds: float,
                      old: Checkpoint) -> Checkpoint:  # fmt: skip
        """In the background: every worker's files, then worker 0's manifest; every worker knows when that is done."""
        me, channel = self._workers.rank, self._workers.background
        entries: dict[int, Entry] = {}
        for visit in round_.visits:
            owner, file = owners[visit.lane], _file(visit)
            if self._sees_folder[owner]:
                if owner == me:
                    entries[visit.unit] = self._store.write(file)
            elif owner == me:
                channel.send(self._store.packed(file), 0, "states are sent to worker 0")
            elif me == 0:
                entries[visit.unit] = self._store.write_bytes(file, channel.receive(owner, "states are received"))
        packed = pack(shared)
        everyone = channel.gather((entries, checksum(packed)), "workers finish a round")
        _check_copies([digest for _, digest in everyone], round_)
        units = old.units | {unit: entry for part, _ in everyone for unit, entry in part.items()}
        new = replace(old, next_round=round_.index + 1, seconds=seconds, shared=None, units=units)
        if me == 0:
            new = replace(new, shared=self._store.write_bytes(f"shared-{round_.index:05d}.safetensors", packed))
            self._manifests.commit(new, old)
        return replace(new, shared=channel.from_first(new.shared, "worker 0 commits the round"))

    def _who_sees_the_folder(self) -> list[bool]:
        """By rank, who finds the mark that worker 0 makes in its folder."""
        if self._workers.count == 1:
            return [True]
        name = self._workers.main.from_first(f".workers-{uuid.uuid4().hex}", "workers look for the folder")
        mark = self._folder / name
        if self._workers.rank == 0:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        self._workers.main.gather(None, "workers look for the folder")
        until = time.monotonic() + LOOK_FOR_S
        while not mark.exists() and time.monotonic() < until:
            time.sleep(0.1)
        sees = self._workers.main.gather(mark.exists(), "workers look for the folder")
        if self._workers.rank == 0:
            mark.unlink()
        return sees


def _file(visit: Visit) -> str:
    return f"unit-{visit.unit:04d}-sweep-{visit.sweep:04d}.safetensors"


def _check_copies(digests: Sequence[str], round_: Round) -> None:
    """Raise `UserError` when workers' copies of the shared state are not equal."""
    other = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if other:
        raise UserError(
            f"worker {other[0]} and worker 0 have different copies of the shared state after round {round_.index}; "
            "run the same version on machines of one kind, and resume from the round before"
        )
