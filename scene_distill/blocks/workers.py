"""Workers: the processes that share a run, how they find each other, and what they say when one is gone.

A worker is a process with a device. The launcher (torchrun, or `blocks.launch` on one machine) tells each its place in
environment variables, which are read here and nowhere else. Tensors that are reduced travel over nccl where every
worker has a GPU of its own, everything else over gloo. Every wait has an end: a collective that fails or runs out of
time becomes one sentence that names the workers whose heartbeat has stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scene_distill.core.errors import UserError

TIMEOUT_S = 600.0
"""Longest wait for another worker's part of a step or a commit."""

PREPARATION_S = 7 * 24 * 3600.0
"""Longest wait for worker 0 to prepare the scene: structure from motion of a city takes hours."""

HEARTBEAT_S = 1.0
"""Seconds between signs of life."""


@dataclass(frozen=True)
class Place:
    """Which worker this is: ``rank`` of ``count``, the ``local_rank``-th of ``local_count`` on its machine.

    ``restarted`` is true when the launcher started the workers anew after one had failed.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    restarted: bool = False

    @property
    def cores(self) -> int:
        """Cores for each worker of this machine; 0, all of them, for a worker that has it to itself."""
        return 0 if self.local_count == 1 else max(len(os.sched_getaffinity(0)) // self.local_count, 1)

    @staticmethod
    def from_environment() -> Place:
        """The place torchrun gave this process; the only worker where no launcher is."""
        names = {"rank": "RANK", "count": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_count": "LOCAL_WORLD_SIZE"}
        if "RANK" not in os.environ:
            return Place()
        try:
            numbers = {name: int(os.environ[variable]) for name, variable in names.items()}
            return Place(**numbers, restarted=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0)
        except (KeyError, ValueError) as error:
            raise UserError(f"RANK is set but {error} is not a number; start the workers with torchrun") from error


class Channel:
    """Messages among all workers on a process group of its own. One thread at a time; every worker makes the same
    calls in the same order."""

    def __init__(self, workers: Workers, group: Any) -> None:
        self._workers, self._group = workers, group

    def gather(self, value: Any, what: str) -> list[Any]:
        """Everybody's value, in the order of ranks."""
        if self._workers.count == 1:
            return [value]
        values: list[Any] = [None] * self._workers.count
        with self._workers.named(what):
            dist.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, value: Any, what: str) -> Any:
        """Worker 0's value."""
        if self._workers.count == 1:
            return value
        values = [value]
        with self._workers.named(what):
            dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def send(self, data: bytes, to: int, what: str) -> None:
        """Send bytes to one worker, which calls `receive`."""
        with self._workers.named(what):
            dist.send(torch.tensor([len(data)]), to, group=self._group)
            dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), to, group=self._group)

    def receive(self, source: int, what: str) -> bytes:
        """The bytes that a worker sends here."""
        with self._workers.named(what):
            size = torch.zeros(1, dtype=torch.int64)
            dist.recv(size, source, group=self._group)
            data = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(data, source, group=self._group)
        return data.numpy().tobytes()

    def barrier(self, what: str) -> None:
        """Wait until everybody is here."""
        if self._workers.count > 1:
            with self._workers.named(what):
                dist.monitored_barrier(self._group, wait_all_ranks=True)


class Workers:
    """All workers of the run, seen from one of them. With one worker nothing is ever sent.

    ``main`` is the channel of the training thread, ``background`` that of the thread that writes.
    """

    def __init__(self, place: Place = Place(), store: dist.Store | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.place, self.rank, self.count = place, place.rank, place.count
        self._on_gpu = _take_gpu(place)
        self._heart: Heart | None = None
        groups: list[Any] = [None, None, None]
        if place.count > 1:
            wait = timedelta(seconds=timeout_s)
            with self.named("the workers meet"):
                if store is None:
                    store, _, _ = next(dist.rendezvous("env://", timeout=wait))
                store = fresh_part(store, place, timeout_s)
                self._heart = Heart(store, place)
                backend = "nccl" if self._on_gpu else "gloo"
                dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.count, timeout=wait)
                waits = (wait, wait, timedelta(seconds=PREPARATION_S))
                groups = [dist.new_group(backend="gloo", timeout=longest) for longest in waits]
        self.main, self.background, self._preparation = (Channel(self, group) for group in groups)

    def gather_tensor(self, mine: Tensor) -> Tensor:
        """Everybody's tensor (all of one shape), stacked in the order of ranks: [N, ...]."""
        if self.count == 1:
            return mine[None]
        source = mine if self._on_gpu else mine.cpu()
        parts = [torch.empty_like(source) for _ in range(self.count)]
        with self.named("gradients are gathered"):
            dist.all_gather(parts, source.contiguous())
        return torch.stack(parts).to(mine.device)

    def sum_tensor(self, mine: Tensor) -> Tensor:
        """The sum over workers, added up in an order that the backend chooses."""
        if self.count == 1:
            return mine
        total = mine.clone() if self._on_gpu else mine.cpu().clone()
        with self.named("gradients are summed"):
            dist.all_reduce(total)
        return total.to(mine.device)

    def agree(self, what: str, *values: Any) -> None:
        """Raise `UserError` unless all workers call this with equal values (arrays and whatever prints itself)."""
        texts = (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode() for value in values)
        digest = hashlib.blake2b(b"/".join(texts)).hexdigest()
        other = [r for r, theirs in enumerate(self.main.gather(digest, "workers compare")) if theirs != digest]
        if other:
            raise UserError(
                f"worker {self.rank} and worker {other[0]} see different things: {what}; "
                "give all workers the same data, settings and version"
            )

    @contextlib.contextmanager
    def first_before_others(self, what: str) -> Iterator[None]:
        """Worker 0 does the body, then all others do it; they wait for as long as a scene may take to prepare."""
        if self.rank > 0:
            self._preparation.barrier(what)
        yield
        if self.rank == 0:
            self._preparation.barrier(what)

    def prepared(self, value: Any, what: str) -> Any:
        """Worker 0's value, which may take as long to find as a scene to prepare."""
        self._preparation.barrier(what)
        return self.main.from_first(value, what)

    @contextlib.contextmanager
    def named(self, what: str) -> Iterator[None]:
        """Turn a failed exchange into a `UserError` that says what was going on and who is gone."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            raise UserError(self._what_happened(what, error)) from error

    def close(self) -> None:
        """Leave the process group."""
        if self._heart is not None:
            self._heart.stop()
        if self.count > 1 and dist.is_initialized():
            with contextlib.suppress(RuntimeError, dist.DistError):
                dist.destroy_process_group()

    def _what_happened(self, what: str, error: Exception) -> str:
        advice = "what was committed is kept; start the same command again with --resume"
        late = re.search(r"[Rr]anks? ([\d, ]+) failed to pass monitoredBarrier", str(error))
        gone = self._heart.silent_ranks() if self._heart is not None else []
        if gone:
            return f"{_name(gone)} gone while {what}; {advice}"
        if late:
            late_ranks = [int(rank) for rank in re.findall(r"\d+", late[1])]
            return f"{_name(late_ranks)} late while {what}; {advice}"
        reason = str(error).splitlines()[0]
        return f"the connection among the workers broke while {what} ({reason}); {advice}"


def _name(ranks: list[int]) -> str:
    return f"worker {ranks[0]} is" if len(ranks) == 1 else f"workers {', '.join(map(str, ranks))} are"


def _take_gpu(place: Place) -> bool:
    """Make this worker's GPU the current one; whether every worker of the machine has one of its own."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(place.local_rank % gpus)
    return gpus >= place.local_count


CHALLENGE = "challenge"
"""Prefix of the keys under which workers say that they are there."""


def fresh_part(store: dist.Store, place: Place, timeout_s: float) -> dist.Store:
    """A part of the launcher's store that nothing of an earlier attempt is in.

    torchrun keeps its store when it restarts workers, and addresses of dead processes in it would be believed. Every
    worker leaves a number that nobody used before; worker 0 answers each with the name of the part, until all have it.
    """
    until = time.monotonic() + timeout_s
    if place.rank > 0:
        nonce = uuid.uuid4().hex
        store.set(f"{CHALLENGE}/{place.rank}", nonce)
        store.wait([f"answer/{nonce}"], timedelta(seconds=timeout_s))
        part = store.get(f"answer/{nonce}").decode()
        store.set(f"{part}/met/{place.rank}", "")
        return dist.PrefixStore(part, store)
    part, missing = uuid.uuid4().hex, list(range(1, place.count))
    while missing:
        for rank in missing:
            if store.check([f"{CHALLENGE}/{rank}"]):
                store.set(f"answer/{store.get(f'{CHALLENGE}/{rank}').decode()}", part)
        missing = [rank for rank in missing if not store.check([f"{part}/met/{rank}"])]
        if time.monotonic() > until:
            raise RuntimeError(f"worker {missing[0]} did not come within {timeout_s:.0f} s")
        time.sleep(0.02)
    return dist.PrefixStore(part, store)


class Heart:
    """A thread that leaves a sign of life in the launcher's key-value store every second."""

    def __init__(self, store: dist.Store, place: Place) -> None:
        self._store, self._place = dist.PrefixStore("heartbeat", store), place
        self._stopped = threading.Event()
        self._beat(0)
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def silent_ranks(self) -> list[int]:
        """Workers that leave no sign of life in the next seconds; worker 0 when the store cannot be asked, because it
        lives on worker 0's machine."""
        try:
            before = self._signs()
            time.sleep(3.0 * HEARTBEAT_S)
            after = self._signs()
        except (RuntimeError, dist.DistError):
            return [0] if self._place.rank != 0 else []
        return [rank for rank in range(self._place.count) if before[rank] == after[rank]]

    def _signs(self) -> list[bytes]:
        ranks = [str(rank) for rank in range(self._place.count)]
        return [self._store.get(rank) if self._store.check([rank]) else b"" for rank in ranks]

    def _beat(self, count: int) -> None:
        self._store.set(str(self._place.rank), str(count))

    def _run(self) -> None:
        count = 0
        while not self._stopped.wait(HEARTBEAT_S):
            count += 1
            try:
                self._beat(count)
            except (RuntimeError, dist.DistError):
                return
