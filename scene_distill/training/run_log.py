"""Reading log.jsonl: figures of a step by name, curves of a whole run, and the lines a run adds while it is watched.

A log may end in half a line (a run that is writing, or was killed). A resumed run replaces it by one that ends with the
last committed round and trains on from there, with the same figures: who follows skips the steps it has seen.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scene_distill.core.errors import UserError

POINTS = 300
"""Points of a curve: more than a chart has pixels for is noise."""


@dataclass(frozen=True)
class LogStep:
    """One step of a log: its number, the seconds since the run (or its resumption) began, and its figures:
    ``train/loss`` and what else lanes log, as means over lanes, ``blocks/3/loss`` of each block, ``train/psnr``,
    ``stages_ms/render``, ``memory/bytes``."""

    step: int
    seconds: float
    figures: dict[str, float]


def parsed(text: str) -> LogStep | None:
    """The step of a line; None for a line that is no step's, or damaged."""
    try:
        line = json.loads(text)
        units: Mapping[str, Mapping[str, float]] = line["units"]
        step, seconds = int(line["step"]), float(line["seconds"])
        figures = _figures(line, units)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return LogStep(step, seconds, {name: value for name, value in figures.items() if math.isfinite(value)})


def _figures(line: dict[str, Any], units: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for numbers in units.values() for name in numbers)
    figures = {f"train/{name}": statistics.fmean(n[name] for n in units.values() if name in n) for name in names}
    for unit, numbers in units.items():
        figures |= {f"blocks/{unit}/{name}": float(value) for name, value in numbers.items()}
    figures |= {f"stages_ms/{name}": float(value) for name, value in line.get("stages_ms", {}).items()}
    told = {"train/psnr": "psnr", "memory/bytes": "memory_bytes", "memory/peak_bytes": "peak_memory_bytes"}
    return figures | {name: float(line[key]) for name, key in told.items() if key in line}


@dataclass(frozen=True, eq=False)
class Curve:
    """A figure over a run: steps [P], seconds of training [P], values [P]; a point is the mean of some steps."""

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


def read_curves(path: Path, names: tuple[str, ...]) -> dict[str, Curve]:
    """Curves of the figures ``names`` (without those that the run did not log) from a log.jsonl; empty without one."""
    if not path.exists():
        return {}
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
    offset = last = 0.0
    with path.open(encoding="utf-8") as file:
        for text in file:
            line = parsed(text)
            if line is None:
                continue
            if line.seconds < last:
                offset += last
            last = line.seconds
            for name in names:
                if name in line.figures:
                    found[name].append((line.step, offset + line.seconds, line.figures[name]))
    return {name: _binned(np.array(points)) for name, points in found.items() if points}


def _binned(points: np.ndarray) -> Curve:
    """Points [N, 3] (step, seconds, value) as at most `POINTS` means of as many neighbours each."""
    parts = np.array_split(points, min(len(points), POINTS))
    means = np.array([part.mean(axis=0) for part in parts])
    return Curve(means[:, 0], means[:, 1], means[:, 2])


class Follower:
    """The steps that a log gains; `new_steps` can be called again and again."""

    def __init__(self, path: Path) -> None:
        self._path, self._place, self._file_id, self._last = path, 0, 0, -1

    def new_steps(self) -> Iterator[LogStep]:
        """Steps of whole lines that were added since the last call, in order, none twice."""
        try:
            with self._path.open("rb") as file:
                file_id = self._path.stat().st_ino
                if file_id != self._file_id or file.seek(0, 2) < self._place:
                    self._file_id, self._place = file_id, 0
                file.seek(self._place)
                content = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror}") from error
        whole = content[: content.rfind(b"\n") + 1]
        self._place += len(whole)
        for text in whole.decode("utf-8", "replace").splitlines():
            step = parsed(text)
            if step is not None and step.step > self._last:
                self._last = step.step
                yield step
