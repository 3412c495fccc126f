"""A board of live figures under a progress bar on a terminal; without one, the plain lines of `console.progress`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from scene_distill.core.console import console, progress

REDRAWS_PER_SECOND = 1
"""Drawing takes about 4 ms and holds Python's lock: this often it costs well under 1 % of the time."""

CURVE_WIDTH = 24

_BARS = "▁▂▃▄▅▆▇█"


class Row(NamedTuple):
    """One line of a board: a label, a figure, its curve over time, and what else belongs to it."""

    label: str
    figure: str = ""
    curve: str = ""
    rest: str = ""

    @property
    def text(self) -> Text:
        """The row without its label; figures with a curve are as wide as each other."""
        if not self.curve:
            return Text("  ".join(part for part in (self.figure, self.rest) if part))
        curve = f"{self.curve:<{CURVE_WIDTH}}"
        return Text.assemble((f"{self.figure:<9}", "bold"), (curve, "green"), "  ", self.rest)


Rows = Callable[[], Sequence[Row]]
"""Makes the rows of a board."""


class Board(Protocol):
    """Something that can be told how far the work is, and what to show of it."""

    def update(self, done: int, note: str, rows: Rows) -> None:
        """Set the number of finished items, a short note for a log file, and a function that makes the rows; it is
        called only when they are drawn."""
        ...


class _LiveBoard:
    def __init__(self, title: str, total: int, done: int) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=32), TaskProgressColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left"), console=console,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=total, completed=done)
        self._rows: Rows = lambda: ()

    def update(self, done: int, note: str, rows: Rows) -> None:
        self._bar.update(self._task, completed=done)
        self._rows = rows

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)  # a long row is cut, and never its label
        for row in self._rows():
            table.add_row(Text(row.label), row.text)
        return Group(self._bar, table)


class _PlainBoard:
    def __init__(self, tell: Callable[[int, str], None]) -> None:
        self._tell = tell

    def update(self, done: int, note: str, rows: Rows) -> None:
        self._tell(done, note)


@contextmanager
def live_board(title: str, total: int, done: int = 0) -> Iterator[Board]:
    """A progress bar with time left and rows of figures below it on a terminal, occasional lines elsewhere."""
    if not console.is_terminal or console.quiet:
        with progress(title, total, done) as meter:
            yield _PlainBoard(meter.update)
        return
    board = _LiveBoard(title, total, done)
    with Live(board, console=console, refresh_per_second=REDRAWS_PER_SECOND):
        yield board


def curve(numbers: Iterable[float], width: int = CURVE_WIDTH) -> str:
    """The numbers as a line of block characters, lowest to highest, each the mean of an equal share of them."""
    values = list(numbers)
    if not values:
        return ""
    width = min(width, len(values))
    edges = [len(values) * k // width for k in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)
