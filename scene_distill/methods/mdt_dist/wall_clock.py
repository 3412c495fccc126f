"""How long a run took in all, over everything that stopped it: making the world and encoding it as well as learning."""

from __future__ import annotations

import time
from pathlib import Path

from scene_distill.core.files import read_json, write_json

EVERY_S = 10.0
"""Seconds between writes of `WallClock.tick`, which is what a killed run's time can lack."""


class WallClock:
    """Counts on from the seconds in a file. ``kept``: whether this process writes it; one worker does."""

    def __init__(self, path: Path, kept: bool = True) -> None:
        self._path, self._kept = path, kept
        self._before = float(read_json(path)["seconds"]) if path.exists() else 0.0
        self._started = self._written = time.monotonic()

    @property
    def seconds(self) -> float:
        """All of them, until now."""
        return self._before + time.monotonic() - self._started

    def tick(self) -> None:
        """Write them down when the last time is long ago."""
        if time.monotonic() - self._written >= EVERY_S:
            self.write()

    def write(self) -> None:
        """Write them down."""
        self._written = time.monotonic()
        if self._kept:
            write_json(self._path, {"seconds": self.seconds})
