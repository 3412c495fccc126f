"""Where the time of a training step goes: stages that mark themselves, and a clock that may or may not be listening.

The code that does the work says which stage it is: ``with Stage("render"): ...``. Without a clock that costs half a
microsecond. With one (`clocked`), all time of its thread belongs to exactly one stage, so that the stages add up to
the time there was; what is in no stage is ``rest``. The backward pass runs inside autograd, where no ``with`` fits
around it: its first formula calls `backward_begins`, and it lasts until the next stage.

A clock belongs to the thread (context) that set it: pictures drawn by a viewer's thread are not counted, nor is a
backward pass on a GPU, which autograd runs in a thread of its own and which a CPU clock could not time anyway.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

REST = "rest"
BACKWARD = "backward"


class StageClock:
    """Seconds per stage since the last `take`, and how many backward passes began: one a training step."""

    def __init__(self, saw: Callable[[Any, Any], None] | None = None, now: Callable[[], float] = time.perf_counter):
        self._now, self._stage, self._since = now, REST, now()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._steps = 0
        self.saw = saw

    def switch(self, stage: str) -> str:
        """From now on time belongs to ``stage``; returns the stage before."""
        now, before = self._now(), self._stage
        self._seconds[before] += now - self._since
        self._stage, self._since = stage, now
        return before

    def backward_begins(self) -> None:
        """From now on, until another stage begins, time belongs to the backward pass."""
        if self._stage != BACKWARD:
            self._steps += 1
            self.switch(BACKWARD)

    def take(self) -> tuple[dict[str, float], int]:
        """(seconds per stage, training steps) since the last call; the count starts anew."""
        self.switch(self._stage)
        taken, steps = dict(self._seconds), self._steps
        self._seconds.clear()
        self._steps = 0
        return taken, steps


_CLOCK: ContextVar[StageClock | None] = ContextVar("scene_distill_stage_clock", default=None)


class Stage:
    """Marks the time inside a ``with`` as a stage's; nothing happens where no clock listens."""

    __slots__ = ("_before", "_clock", "_name")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._clock = _CLOCK.get()
        if self._clock is not None:
            self._before = self._clock.switch(self._name)

    def __exit__(self, *_: object) -> None:
        if self._clock is not None:
            self._clock.switch(REST if self._before == BACKWARD else self._before)


def staged(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function whose whole time is a stage's."""

    def around(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def inner(*args: P.args, **kwargs: P.kwargs) -> R:
            with Stage(name):
                return function(*args, **kwargs)

        return inner

    return around


def backward_begins() -> None:
    """Called by the formula with which a backward pass starts."""
    clock = _CLOCK.get()
    if clock is not None:
        clock.backward_begins()


def picture_seen(render: Any, photo: Any) -> None:
    """Shows a listening clock what a training step drew and its photo; it may look now, and must not change them."""
    clock = _CLOCK.get()
    if clock is not None and clock.saw is not None:
        clock.saw(render, photo)


@contextmanager
def clocked(clock: StageClock) -> Iterator[StageClock]:
    """Stages of this thread go to ``clock`` inside the ``with``."""
    token = _CLOCK.set(clock)
    try:
        yield clock
    finally:
        _CLOCK.reset(token)
