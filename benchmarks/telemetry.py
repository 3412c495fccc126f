"""What telling costs: the log, PSNR of training views, stage marks and the live board, as shares of a training step.

Run: python benchmarks/telemetry.py [--data DIR] [--method NAME] [--width PX]; prints the shares and writes them to
benchmarks/results/telemetry.json. Both sides are processor time of the training thread, so that other work on the
machine counts on neither; the board, which a thread of its own draws, is drawn here as often as it would be.
"""

import argparse
import io
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from scene_distill.core import live, stages
from scene_distill.core.console import say
from scene_distill.core.files import write_json
from scene_distill.methods import find_method
from scene_distill.training import telemetry
from scene_distill.training.loop import prepare

RESULTS = Path(__file__).parent / "results" / "telemetry.json"
STEPS = 120
SWITCHES_TIMED = 200_000


def seconds_of_a_mark() -> float:
    """Processor seconds that one stage mark costs with a clock listening."""
    with stages.clocked(stages.StageClock()):
        started = time.thread_time()
        for _ in range(SWITCHES_TIMED):
            with stages.Stage("x"):
                pass
        return (time.thread_time() - started) / SWITCHES_TIMED


class Timed:
    """Adds up the thread's processor time and the calls of what it wraps."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def around(self, function):
        def timed(*args, **kwargs):
            started = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - started
                self.calls += 1

        return timed


def board_seconds(row_makers: list) -> float:
    """Processor seconds to draw the board once, on a terminal 150 columns wide."""
    live.console = Console(file=io.StringIO(), force_terminal=True, width=150, highlight=False)
    board = live._LiveBoard("training", 1000, 0)
    board.update(500, "", row_makers[-1])
    live.console.print(board)
    started = time.thread_time()
    for _ in range(50):
        live.console.print(board)
    return (time.thread_time() - started) / 50


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--method", default="splats")
    parser.add_argument("--width", type=int, default=395)
    options = parser.parse_args()
    entry = find_method(options.method)
    marks, pictures, hearing, rows = Timed(), Timed(), Timed(), []
    stages.StageClock.switch = marks.around(stages.StageClock.switch)
    telemetry.PsnrMeter.saw = pictures.around(telemetry.PsnrMeter.saw)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            entry.config(), data=options.data, image_width=options.width, output_dir=Path(folder) / "run", blocks=2,
            lanes=2, iterations=STEPS, threads=1,
        )  # fmt: skip
        training = prepare(entry.name, config, entry.build)
        telemetry.Telemetry.hear = hearing.around(telemetry.Telemetry.hear)
        update = live._PlainBoard.update
        live._PlainBoard.update = lambda self, done, note, make: (rows.append(make), update(self, done, note, make))
        training.begin()
        spent, started = time.thread_time(), time.perf_counter()
        training.train()
        spent, wall = time.thread_time() - spent, time.perf_counter() - started
    steps, drawing = training.runtime.total_steps, board_seconds(rows)
    step = spent / steps
    parts = {
        "stage_marks": marks.calls / 2 * seconds_of_a_mark() / steps,
        "log_and_note": hearing.seconds / steps,
        "psnr": pictures.seconds / steps,
        "board": drawing * live.REDRAWS_PER_SECOND * step,
    }
    shares = {name: part / step for name, part in parts.items()}
    report = {
        "method": options.method, "scene": options.data.name, "image_width": options.width, "steps": steps,
        "step_ms": 1000 * step, "wall_step_ms": 1000 * wall / steps, "marks_per_step": marks.calls / 2 / steps,
        "board_ms": 1000 * drawing, "share": shares, "share_in_all": sum(shares.values()), "cores": os.cpu_count(),
    }  # fmt: skip
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, known | {f"{options.data.name}-{options.width}px-{options.method}": report})
    for name, share in shares.items():
        say(f"{name:<14} {1e6 * parts[name]:7.1f} us a step, {share:.2%}")
    say(f"in all {report['share_in_all']:.2%} of a step of {report['step_ms']:.1f} ms (one thread)")


if __name__ == "__main__":
    main()
