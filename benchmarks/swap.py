"""What it costs that units come and go: visits of 500 steps of Momentum-GS, every state written and read back.

    python benchmarks/swap.py [--width 160] [--visit 500]

A procedural city in two blocks; no memory budget, so a closed unit is in RAM only until its file is whole. Counted as
swapping: all the time the training thread spends with the store (bringing, keeping, fetching, committing, waiting), and
the CPU seconds of the thread beside it, as if none of them were free. Figures go to benchmarks/results/swap.json.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time
from collections.abc import Callable
from typing import Any

from campaign import ROOT, Campaign

from scene_distill.blocks.background import Background
from scene_distill.blocks.custody import Custody
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods import METHODS
from scene_distill.training.loop import prepare

WITH_THE_STORE = ("bring", "state", "release", "fetch_ahead", "keep", "begin_commit", "notice_commit", "await_commit")


class Stopwatch:
    """Seconds in functions, counted once where they call each other."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds, self.depth = clock, 0.0, 0

    def around(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*arguments: Any) -> Any:
            started, self.depth = self.clock(), self.depth + 1
            try:
                return function(*arguments)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += self.clock() - started

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--visit", type=int, default=500)
    options = parser.parse_args()
    place = ROOT / "outputs" / "swap"
    city = make_city(load_recipe("city_test"), place / "city")
    shutil.rmtree(place / "run", ignore_errors=True)
    entry = METHODS["momentum-gs"]
    config = entry.config(data=city, output_dir=place / "run", blocks=2, lanes=1,
                          iterations=2 * options.visit, visits=2, image_width=options.width)  # fmt: skip
    front, behind = Stopwatch(time.perf_counter), Stopwatch(time.thread_time)
    for name in WITH_THE_STORE:
        setattr(Custody, name, front.around(getattr(Custody, name)))
    submit = Background.submit
    Background.submit = lambda self, job: submit(self, behind.around(job))
    training = prepare(entry.name, config, entry.build)
    training.begin()
    started = time.perf_counter()
    training.runtime.run()
    total = time.perf_counter() - started
    visits, steps = len(training.runtime.rounds), training.runtime.total_steps
    training_s = total - front.seconds
    files = [path.stat().st_size for path in (place / "run" / "checkpoint" / "units").glob("unit-*")]
    figures = {
        "steps_per_visit": options.visit, "image_width": options.width, "visits": visits,
        "unit_mb": sum(files) / len(files) / 1e6,
        "step_ms": 1000 * training_s / steps,
        "store_ms_per_visit_training_thread": 1000 * front.seconds / visits,
        "store_cpu_ms_per_visit_background": 1000 * behind.seconds / visits,
        "overhead": (front.seconds + behind.seconds) / training_s,
    }  # fmt: skip
    Campaign(ROOT / "benchmarks" / "results" / "swap.json").keep(f"{options.visit} steps, {options.width} px", figures)
    print("\n".join(f"{name}: {value:.4g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
