"""What a text-to-3D run shows while it trains: a bar with the time left, and a few figures of the lanes."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scene_distill.blocks.runtime import Progress
from scene_distill.core import memory
from scene_distill.core.live import Board, Row, curve, live_board

CURVE_LENGTH = 2000


class Teller:
    """Hears every step."""

    def __init__(self, board: Board, prompts: Sequence[str]) -> None:
        self._board, self._prompts = board, prompts
        self._residuals: deque[float] = deque(maxlen=CURVE_LENGTH)

    def hear(self, progress: Progress) -> None:
        """Show the step."""
        numbers = [numbers for _, numbers in progress.lanes]
        if numbers:
            self._residuals.append(statistics.fmean(n["residual"] for n in numbers))
        self._board.update(progress.done_steps, note(progress), lambda: self._rows(progress))

    def _rows(self, progress: Progress) -> list[Row]:
        names = ", ".join(self._prompts[unit] for unit, _ in progress.lanes)
        rows = [Row("objects", f"{names} (round {progress.round + 1} of {progress.rounds})")]
        if self._residuals:
            rows.append(Row("residual", f"{self._residuals[-1]:.3f}", curve(self._residuals), note(progress)))
        rows.append(Row("memory", memory.format_bytes(memory.rss_bytes())))
        return rows


def note(progress: Progress) -> str:
    """The means over lanes in a few words."""
    numbers = [numbers for _, numbers in progress.lanes]
    if not numbers:
        return ""
    shown = {"level": "level {:.0f}", "alpha": "coverage {:.2f}", "splats": "{:.0f} splats", "cells": "{:.0f} cells",
             "faces": "{:.0f} faces"}  # fmt: skip
    held = [name for name in shown if all(name in n for n in numbers)]
    return "  ".join(shown[name].format(statistics.fmean(n[name] for n in numbers)) for name in held)


@contextmanager
def telling(prompts: Sequence[str], total_steps: int, done_steps: int = 0) -> Iterator[Teller]:
    """A teller with a board in the terminal."""
    with live_board("objects" if len(prompts) > 1 else prompts[0], total_steps, done_steps) as board:
        yield Teller(board, prompts)
