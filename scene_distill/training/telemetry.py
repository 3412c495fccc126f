"""What a run tells while it trains: every step to log.jsonl, and to the terminal what a person wants to see of it.

About once a second the line of a step also carries ``psnr`` (mean over the training views drawn since the last such
line), ``stages_ms`` (milliseconds of a unit's step by stage, of worker 0) and ``memory_bytes``, ``peak_memory_bytes``
of this process. Everything else that shows a run (the console, TensorBoard, wandb, reports) reads from here.

Telling must not slow training: stages cost two clock readings each, and PSNR of a training view, which takes a pass
over its pixels, is measured only as long as all such passes have taken less than `PSNR_SHARE` of the time.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scene_distill.blocks.runtime import Progress
from scene_distill.core import memory
from scene_distill.core.live import Board, Row, curve, live_board
from scene_distill.core.stages import REST, StageClock, clocked

TELL_EVERY_S = 1.0
"""Seconds between lines with PSNR, stages and memory."""

PSNR_SHARE = 0.002
"""Largest share of the time that measuring PSNR of training views may take."""

SMOOTH = 0.9
"""Weight of what was shown before in what the board shows of noisy figures, per second."""

CURVE_LENGTH = 2000
"""Seconds that the board's curves look back; every point is a second's mean."""

COUNTS = ("anchors", "splats")
"""Names under which lanes log how many primitives they hold."""

Lanes = tuple[tuple[int, dict[str, float]], ...]


class PsnrMeter:
    """PSNR in dB of the training views that it found the time to look at."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._started, self._spent = now, now(), 0.0
        self._values: list[float] = []

    @torch.no_grad()
    def saw(self, render: Tensor, photo: Tensor) -> None:
        """Measure a render [H, W, 3] against its photo, unless measuring has taken its share of the time already."""
        began = self._now()
        if self._spent > PSNR_SHARE * (began - self._started):
            return
        squared = torch.nn.functional.mse_loss(render.detach(), photo).item()
        self._values.append(-10 * torch.tensor(max(squared, 1e-10)).log10().item())
        self._spent += self._now() - began

    def take(self) -> float | None:
        """The mean since the last call; None where nothing was measured."""
        values, self._values = self._values, []
        return statistics.fmean(values) if values else None


@dataclass
class Shown:
    """What the board shows, smoothed over seconds."""

    parts: dict[str, float] = field(default_factory=dict)
    stages_ms: dict[str, float] = field(default_factory=dict)
    psnr: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=CURVE_LENGTH))
    psnrs: deque[float] = field(default_factory=lambda: deque(maxlen=CURVE_LENGTH))


class Telemetry:
    """Hears every step of a run; ``append`` takes its line for the log."""

    def __init__(self, append: Callable[[dict[str, Any]], None], board: Board, clock: StageClock,
                 psnr: PsnrMeter, now: Callable[[], float] = time.perf_counter) -> None:  # fmt: skip
        self._append, self._board, self._clock, self._psnr, self._now = append, board, clock, psnr, now
        self._started = self._told = now()
        self._since: list[Lanes] = []
        self._shown = Shown()

    def hear(self, step: Progress) -> None:
        """Write the step's line and show it."""
        now = self._now()
        self._since.append(step.lanes)
        line: dict[str, Any] = {"round": step.round, "step": step.done_steps, "seconds": now - self._started}
        line["units"] = {str(unit): numbers for unit, numbers in step.lanes}
        if now - self._told >= TELL_EVERY_S or step.done_steps == step.total_steps:
            self._told = now
            line |= self._told_now()
        self._append(line)
        self._board.update(step.done_steps, note(step.lanes), lambda: board_rows(step, self._shown))

    def _told_now(self) -> dict[str, Any]:
        """psnr, stages_ms and memory for the log; what the board shows moves towards them."""
        shown = self._shown
        found: dict[str, Any] = {}
        lanes, self._since = [numbers for lanes in self._since for _, numbers in lanes], []
        means = _means(lanes)
        shown.parts = _towards(shown.parts, means)
        if "loss" in means:
            shown.losses.append(means["loss"])
        psnr = self._psnr.take()
        if psnr is not None:
            found["psnr"] = psnr
            shown.psnrs.append(psnr)
            shown.psnr = psnr if shown.psnr is None else SMOOTH * shown.psnr + (1 - SMOOTH) * psnr
        seconds, steps = self._clock.take()
        if steps:
            stages = {name: 1000 * spent / steps for name, spent in seconds.items()}
            found["stages_ms"] = {name: round(ms, 4) for name, ms in stages.items()}
            shown.stages_ms = _towards(shown.stages_ms, stages)
        return found | {"memory_bytes": memory.rss_bytes(), "peak_memory_bytes": memory.peak_rss_bytes()}


def _means(lanes: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every figure over the lanes that have it."""
    names = dict.fromkeys(name for numbers in lanes for name in numbers)
    return {name: statistics.fmean(numbers[name] for numbers in lanes if name in numbers) for name in names}


def _towards(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    return {name: SMOOTH * before[name] + (1 - SMOOTH) * value if name in before else value
            for name, value in {**before, **now}.items()}  # fmt: skip


@contextmanager
def telling(append: Callable[[dict[str, Any]], None], total_steps: int, done_steps: int) -> Iterator[Telemetry]:
    """The telemetry of a run that trains inside the ``with``, on a board in the terminal."""
    psnr = PsnrMeter()
    with live_board("training", total_steps, done_steps) as board, clocked(StageClock(psnr.saw)) as clock:
        yield Telemetry(append, board, clock, psnr)


def note(lanes: Lanes) -> str:
    """A step in a few words, for a line in a log file."""
    numbers = [numbers for _, numbers in lanes if "loss" in numbers]
    if not numbers:
        return ""
    kind = "anchors" if "anchors" in numbers[0] else "splats"
    count = sum(n[kind] for n in numbers)
    loss, l1 = (statistics.fmean(n[key] for n in numbers) for key in ("loss", "l1"))
    return f"loss {loss:.4f}  l1 {l1:.4f}  {count / 1000:.0f}k {kind} on {len(numbers)} lanes"


def board_rows(step: Progress, shown: Shown) -> list[Row]:
    """Rows of the board: the round and its blocks, loss parts, PSNR, primitives and memory, stages."""
    units = " ".join(str(unit) for unit, _ in step.lanes)
    blocks = f"block{'s' * (len(step.lanes) > 1)} {units}"
    rows = [Row("round", f"{step.round + 1} of {step.rounds}, training {blocks}")]
    if "loss" in shown.parts:
        others = {k: v for k, v in shown.parts.items() if k not in ("loss", "psnr", "visible", *COUNTS)}
        parts = "  ".join(f"{name} {value:.3g}" for name, value in others.items())
        rows.append(Row("loss", f"{shown.parts['loss']:.4f}", curve(shown.losses), parts))
    if shown.psnr is not None:
        rows.append(Row("PSNR", f"{shown.psnr:.2f} dB", curve(shown.psnrs), "on training views"))
    held = [(kind, sum(n[kind] for _, n in step.lanes if kind in n)) for kind in COUNTS]
    primitives = ", ".join(f"{count:,.0f} {kind} on {len(step.lanes)} lanes" for kind, count in held if count)
    if "visible" in shown.parts:
        primitives += f", {shown.parts['visible']:,.0f} in a view"
    now, peak = memory.format_bytes(memory.rss_bytes()), memory.format_bytes(memory.peak_rss_bytes())
    rows.append(Row("scene", primitives))
    rows.append(Row("memory", f"{now}, at most {peak}"))
    if shown.stages_ms:
        ranked = sorted(shown.stages_ms.items(), key=lambda item: (item[0] == REST, -item[1]))
        stages = "  ".join(f"{name} {ms:.1f}" for name, ms in ranked if ms >= 0.05)
        rows.append(Row("step", f"{sum(shown.stages_ms.values()):.1f} ms:", "", stages))
    return rows
