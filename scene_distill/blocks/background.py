"""One thread that does jobs in the order they were given: writing states, committing rounds, fetching ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class Background:
    """A first-in, first-out thread. It dies with the process: what it had not finished was never promised."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], ResultT]) -> Future[ResultT]:
        """Queue a job; its result or exception is in the future."""
        future: Future[ResultT] = Future()
        self._jobs.put((job, future))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="store", daemon=True)
            self._thread.start()
        return future

    def stop(self, wait_s: float | None = None) -> None:
        """Finish what is queued and end the thread; give up waiting after ``wait_s`` seconds."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(wait_s)
            self._thread = None

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
