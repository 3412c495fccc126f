"""What the user sees in the terminal: lines, a progress bar with time left, tables, and the next useful command."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)

SECONDS_BETWEEN_LINES = 5.0
"""Pause between progress lines where there is no terminal to draw a bar on."""


class Meter(Protocol):
    """Something that can be told how far the work is."""

    def update(self, done: int, note: str = "") -> None:
        """Set the number of finished items and a short note beside the bar."""
        ...


class _Bar:
    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=note)  # type: ignore[arg-type]


class _Lines:
    """Progress for a log file: a line at most every five seconds, with the time that is left."""

    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._first = title, max(total, 1), done
        self._started = self._printed = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._printed < SECONDS_BETWEEN_LINES or done <= self._first:
            return
        self._printed = now
        left = (now - self._started) / (done - self._first) * max(self._total - done, 0)
        console.print(f"{self._title} {done}/{self._total}, {left:.0f} s left  {note}")


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Meter]:
    """A bar with elapsed and remaining time on a terminal, occasional lines elsewhere."""
    if not console.is_terminal:
        meter = _Lines(title, total, done)
        yield meter
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield _Bar(bar, bar.add_task(title, total=total, completed=done, note=""))


def say(text: str) -> None:
    """Print one line."""
    console.print(text, markup=False)


def say_next(command: str, why: str) -> None:
    """Print the next useful command."""
    console.print(f"next: {command}    ({why})", markup=False)


def command_without(flag: str) -> str:
    """This process's command as it was typed, less a flag."""
    return shlex.join(["scene-distill", *(argument for argument in sys.argv[1:] if argument != flag)])


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers are to be formatted by the caller."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)
