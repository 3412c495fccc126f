"""Helpers of the viewer's tests: train a small run, and serve a session from a thread."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from scene_distill.methods import find_method
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.training.loop import prepare
from scene_distill.training.run_folder import RunFolder
from scene_distill.viewer.access import Access
from scene_distill.viewer.server import ViewerServer
from scene_distill.viewer.sessions import open_session


def train(config: MomentumGSConfig, folder: Path, listen=lambda step: None) -> RunFolder:
    entry = find_method("momentum-gs")
    training = prepare(entry.name, replace(config, output_dir=folder), entry.build)
    training.begin()
    training.train(listen)
    return training.folder


class Running:
    """A server in a thread; ``stop`` and ``start`` again on the same port."""

    def __init__(self, path: Path, films: Path, token: str = "") -> None:
        self.session = open_session(path)
        self.films, self.token, self.port = films, token, 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def serve() -> None:
            server = ViewerServer(self.session, Access(self.token), self.films)
            self._stop = asyncio.Event()
            async with server.running("127.0.0.1", self.port) as listening:
                self.port = next(iter(listening.sockets)).getsockname()[1]
                ready.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(serve()), daemon=True)
        self._thread.start()
        assert ready.wait(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def served(path: Path, films: Path, token: str = "") -> Iterator[Running]:
    running = Running(path, films, token)
    try:
        yield running
    finally:
        running.stop()
