"""Follows a run's log.jsonl while it grows, and keeps what the viewer's charts show of it.

Only whole lines that are new are read. Losses are thinned to `MOST_POINTS` means, so that memory and what is sent to a
browser stay bounded however long the run is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_POINTS = 600
"""Points of a curve; when there are more, neighbours are averaged in pairs."""

LARGEST_READ = 8_000_000
"""Bytes that are read in one go."""

MOST_EVENTS = 200


class Curve:
    """Means of a figure over equal numbers of steps: (step, value) points, thinned as they grow."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._every = 1
        self._held: list[tuple[float, float]] = []

    def add(self, step: float, value: float) -> None:
        """Take one value."""
        self._held.append((step, value))
        if len(self._held) < self._every:
            return
        self.points.append(_mean(self._held))
        self._held = []
        if len(self.points) > MOST_POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            self.points, self._every = [_mean(list(pair)) for pair in pairs], 2 * self._every


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    return points[-1][0], sum(value for _, value in points) / len(points)


class LogFollower:
    """The figures of a log: curves of the run, of every block, the lanes of the newest step, and steering events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self._inode: int | None = None
        self.curves: dict[str, Curve] = {}
        self.blocks: dict[int, dict[str, Curve]] = {}
        self.latest: dict[int, dict[str, float]] = {}
        self.lanes: list[int] = []
        self.last: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []

    def follow(self) -> bool:
        """Read what is new; True when there was something. A log that was rewound or replaced is read again."""
        try:
            found = self.path.stat()
        except OSError:
            return False
        if found.st_size < self._offset or (self._inode not in (None, found.st_ino)):
            self._forget()
        self._inode = found.st_ino
        news = False
        while self._offset < found.st_size:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(min(LARGEST_READ, found.st_size - self._offset))
            whole = data[: data.rfind(b"\n") + 1]
            if not whole:
                break
            self._offset += len(whole)
            for line in whole.splitlines():
                self._take(line)
            news = True
        return news

    def _take(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                return
            if "control" in line:
                self.events = [*self.events, line["control"] | {"step": line["step"]}][-MOST_EVENTS:]
            elif "scores" in line:
                for unit, (psnr, ssim) in line["scores"].items():
                    self._block(int(unit), line["step"], {"psnr": psnr, "ssim_scores": ssim})
            elif "units" in line:
                self._take_step(line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return

    def _take_step(self, line: dict[str, Any]) -> None:
        step, units = line["step"], {int(unit): numbers for unit, numbers in line["units"].items()}
        self.lanes, self.latest = list(units), self.latest | units
        self.last = {key: line[key] for key in ("round", "step", "seconds") if key in line}
        for name in ("loss", "l1", "ssim", "consistency", "memory"):
            values = [numbers[name] for numbers in units.values() if name in numbers]
            if values:
                self.curves.setdefault(name, Curve()).add(step, sum(values) / len(values))
        if isinstance(line.get("psnr"), (int, float)):
            self.curves.setdefault("psnr", Curve()).add(step, line["psnr"])
        for unit, numbers in units.items():
            kept = {name: numbers[name] for name in ("loss", "weight", "ssim", "psnr") if name in numbers}
            self._block(unit, step, kept)

    def _block(self, unit: int, step: float, values: dict[str, float]) -> None:
        curves = self.blocks.setdefault(unit, {})
        for name, value in values.items():
            curves.setdefault(name, Curve()).add(step, float(value))

    def history(self) -> dict[str, Any]:
        """All curves as plain lists: 'run' by figure, 'blocks' by block and figure."""
        return {
            "run": {name: _rounded(curve) for name, curve in self.curves.items()},
            "blocks": {
                str(unit): {name: _rounded(curve, 150) for name, curve in curves.items()}
                for unit, curves in sorted(self.blocks.items())
            },
        }


def _rounded(curve: Curve, most: int = MOST_POINTS) -> list[list[float]]:
    every = -(-len(curve.points) // most) if curve.points else 1
    return [[round(step, 1), float(f"{value:.5g}")] for step, value in curve.points[::every]]
