"""The simulated cluster against the real runtime: units that sleep for lognormal times, on 1, 2 and 4 processes.

    python benchmarks/scale_check.py

Steps sleep instead of computing, so that four workers find room on two cores; the simulator is told the mean and spread
of worker 0's. Opening, gathering the gradients of 7,086
shared weights, states, commits and waiting are real. Figures go to benchmarks/results/scale_check.json after every run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from campaign import ROOT, Campaign

from scene_distill.blocks.launch import joined
from scene_distill.blocks.runtime import Runtime
from scene_distill.blocks.schedule import make_schedule
from scene_distill.blocks.simulation import Cluster, Costs, Layout, simulate
from scene_distill.core import seeds

STEP_S, SPREAD, WEIGHTS, STATE = 0.04, 0.3, 7_086, 4_000_000
UNITS, LANES, ITERATIONS, VISITS = 8, 4, 60, 4
SETTINGS = [(workers, shared) for shared in (True, False) for workers in (1, 2, 4)]


SLEPT: list[float] = []
"""What this process's steps really took: a busy machine wakes sleepers late."""


class Sleeper:
    """A unit, its method and its shared state in one: a step sleeps and returns a gradient."""

    def __init__(self, shared: bool) -> None:
        self.shared, self.weights = self, [torch.zeros(WEIGHTS)] if shared else []
        self.unit, self.slept = 0, 0.0

    def first_state(self, unit):
        return {"x": torch.zeros(STATE // 4)}

    def open(self, unit, state, visit, round_):
        opened = Sleeper(bool(self.weights))
        opened.unit, opened.x = unit, state["x"]
        return opened

    def step(self, step):
        draw = seeds.numpy_generator("sleep", self.unit, step).standard_normal()
        started = time.perf_counter()
        time.sleep(STEP_S * float(torch.tensor(SPREAD * draw - SPREAD**2 / 2).exp()))
        SLEPT.append(time.perf_counter() - started)
        return ([torch.ones(WEIGHTS)] if self.weights else None), {}

    def close(self):
        return {"x": self.x}, {}

    def parameters(self):
        return self.weights

    def begin_step(self, shared_step, frozen):
        pass

    def apply(self, gradients, shared_step):
        pass

    def publish(self, unit, scores):
        pass

    def state(self):
        return {}

    def restore(self, state):
        pass


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), sys.argv[3] == "True", Path(sys.argv[4]))
        return
    campaign = Campaign(ROOT / "benchmarks" / "results" / "scale_check.json")
    for workers, shared in SETTINGS:
        name = f"{workers} workers, {'gradients every step' if shared else 'nothing shared'}"
        if name not in campaign.results:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--child", str(workers), str(shared), folder]
                done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            measured = json.loads(done.stdout.splitlines()[-1])
            rounds = make_schedule(UNITS, LANES, ITERATIONS, VISITS)
            costs = Costs(measured["step_s"], STATE, step_spread=measured["spread"], gradient=4.0 * WEIGHTS)
            how = "ordered" if shared else "none"
            told = simulate(Layout.of(rounds, workers), costs, Cluster(workers, latency=50e-6), how).seconds
            campaign.keep(name, measured | {"simulated_s": told})
        row = campaign.results[name]
        print(f"{name:<36} {row['measured_s']:.1f} s measured, {row['simulated_s']:.1f} s simulated, "
              f"{row['simulated_s'] / row['measured_s']:.2f}")  # fmt: skip


def child(count: int, shared: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(count, lambda: [sys.executable, *sys.argv], timeout_s=120.0) as workers:
        method = Sleeper(shared)
        runtime = Runtime(method, make_schedule(UNITS, LANES, ITERATIONS, VISITS), folder, workers=workers)
        runtime.run()
        if workers.rank == 0:
            spread = float(torch.tensor(SLEPT).log().std())
            print(json.dumps({"measured_s": runtime.seconds, "step_s": statistics.fmean(SLEPT), "spread": spread}))


if __name__ == "__main__":
    main()
