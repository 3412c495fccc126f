"""Several workers on one machine without torchrun: this process is worker 0 and starts the others.

It serves nerfstudio, whose own launcher refuses more than one process without CUDA, and `--workers N` on the command
line. torchrun does the same for many machines and restarts workers that fail; a process it started is known by its
environment and starts nothing.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from scene_distill.blocks.workers import CHALLENGE, TIMEOUT_S, Place, Workers
from scene_distill.core.errors import UserError

START_S = 300.0
"""Longest wait for the other processes to start: Python and torch on a busy machine."""

END_S = 60.0
"""Longest wait for the others to end after a run."""


@contextmanager
def joined(count: int, command: Callable[[], Sequence[str]], timeout_s: float = TIMEOUT_S) -> Iterator[Workers]:
    """The workers of this run, with this process among them.

    Started by torchrun: those torchrun started. Otherwise ``count`` processes on this machine; ``command()`` is how the
    others are started. Raises `UserError` when torchrun started another number than ``count`` > 1, and when a process
    ends before the workers have met.
    """
    place = Place.from_environment()
    if place.count > 1 or count == 1:
        if count not in (1, place.count):
            raise UserError(f"--workers is {count} but torchrun started {place.count}; leave --workers away")
        workers = Workers(place, timeout_s=timeout_s)
        try:
            yield workers
        finally:
            workers.close()
        return
    if count < 1:
        raise UserError(f"--workers is {count}; it must be at least 1")
    store = dist.TCPStore("127.0.0.1", 0, count, True, timedelta(seconds=timeout_s), wait_for_workers=False)
    others = [_start(command(), rank, count, store.port) for rank in range(1, count)]
    patience_s = 0.0
    try:
        _wait_for(others, store)
        workers = Workers(Place(0, count, 0, count), store, timeout_s)
        try:
            yield workers
            patience_s = END_S
        finally:
            workers.close()
    finally:
        _end(others, patience_s)


def _start(command: Sequence[str], rank: int, count: int, port: int) -> subprocess.Popen:
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}  # fmt: skip
    variables = os.environ | {name: str(value) for name, value in place.items()}
    return subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL)


def _wait_for(others: Sequence[subprocess.Popen], store: dist.Store) -> None:
    """Until every process has said that it is there."""
    until = time.monotonic() + START_S
    missing = list(range(1, len(others) + 1))
    while missing:
        for rank, process in enumerate(others, start=1):
            if process.poll() is not None:
                raise UserError(f"worker {rank} ended before the run began (exit code {process.returncode})")
        if time.monotonic() > until:
            raise UserError(f"worker {missing[0]} did not start within {START_S:.0f} s")
        missing = [rank for rank in missing if not store.check([f"{CHALLENGE}/{rank}"])]
        time.sleep(0.05)


def _end(others: Sequence[subprocess.Popen], patience_s: float) -> None:
    """Let the processes end; whoever does not within ``patience_s`` is ended."""
    until = time.monotonic() + patience_s
    for process in others:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(until - time.monotonic(), 0.0))
        process.terminate()
    for process in others:
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
