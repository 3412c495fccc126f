"""One thread that draws for everybody: of every browser's requests the newest of a kind, browsers in turn."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class _Job:
    work: Callable[[], Any]
    done: asyncio.Future[Any]


class Superseded(Exception):
    """A newer request of the same kind came before this one was begun."""


class DrawingQueue:
    """Jobs wait in the order in which their keys came; a job whose key waits already takes its place, and the old one
    ends with `Superseded`. All work runs on one thread, so that two pictures never share the kernels' cores."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, _Job] = OrderedDict()
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="drawing")

    async def do(self, key: Hashable, work: Callable[[], Any]) -> Any:
        """The result of ``work()``; raises what it raises, or `Superseded`."""
        job = _Job(work, asyncio.get_running_loop().create_future())
        old = self._waiting.get(key)
        self._waiting[key] = job
        if old is not None and not old.done.done():
            old.done.set_exception(Superseded())
        self._news.set()
        return await job.done

    async def run(self) -> None:
        """Work for ever; cancel it to stop."""
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            if not self._waiting:
                self._news.clear()
                continue
            _, job = self._waiting.popitem(last=False)
            if job.done.done():
                continue
            try:
                result = await loop.run_in_executor(self._thread, job.work)
            except Exception as error:
                if not job.done.done():
                    job.done.set_exception(error)
            else:
                if not job.done.done():
                    job.done.set_result(result)

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
