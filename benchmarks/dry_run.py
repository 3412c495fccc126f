"""Does `--dry-run` tell what happens? Estimate and run back to back, both methods, two resolutions.

    python benchmarks/dry_run.py [--data DIR] [--clock cpu]

Every estimate and every run is a process of its own, on one thread. `--clock cpu` counts processor seconds in both,
which means something on a machine that others use as well. Figures go to benchmarks/results/dry_run.json after every
run, a table to standard output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from campaign import ROOT, Campaign, shared_data

from scene_distill.cli.train import parse_config
from scene_distill.methods import find_method
from scene_distill.training.estimates import estimate
from scene_distill.training.loop import prepare

SETTINGS = {
    f"{method}, {blocks} blocks, {width} px": [
        method, "--blocks", str(blocks), "--lanes", str(lanes), "--iterations", str(iterations),
        "--visits", str(visits), "--image-width", str(width), "--threads", "1",
    ]
    for method, width, blocks, lanes, iterations, visits in (
        ("momentum-gs", 128, 4, 2, 100, 4), ("momentum-gs", 256, 3, 2, 60, 4),
        ("splats", 128, 1, 1, 500, 8), ("splats", 256, 2, 2, 160, 4),
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child[0], options.child[1], options.child[2:])))
        return
    data = options.data or shared_data() / "aerial_sheffield"
    campaign = Campaign(ROOT / "benchmarks" / "results" / "dry_run.json")
    for setting, arguments in SETTINGS.items():
        name = f"{data.name}, {setting}, {options.clock} clock"
        if name not in campaign.results:
            pair = {role: child(role, options.clock, [*arguments, "--data", str(data)]) for role in ("estimate", "run")}
            campaign.keep(name, pair)
    for name, pair in campaign.results.items():
        print(f"{name:<60} " + "  ".join(f"{what} {text}" for what, text in ratios(pair).items()))


def ratios(pair: dict[str, Any]) -> dict[str, str]:
    """Estimate over what happened."""
    told, was = pair["estimate"], pair["run"]
    figures = {key: (told[key], was[key]) for key in ("training_s", "evaluation_s", "memory_bytes")}
    figures["all"] = tuple(side["training_s"] + side["evaluation_s"] for side in (told, was))  # type: ignore[assignment]
    return {key: f"{a:.3g}/{b:.3g} = {a / b:.2f}" for key, (a, b) in figures.items()}


def child(role: str, clock: str, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", role, clock, *arguments]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(role: str, clock: str, arguments: list[str]) -> dict[str, Any]:
    """In a child: the estimate, or what a run takes by the same clock."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        entry = find_method(arguments[0])
        config = parse_config(entry, [*arguments[1:], "--output-dir", str(Path(folder) / "run")])
        training = prepare(entry.name, config, entry.build)
        if role == "estimate":
            return asdict(estimate(training, now))
        training.begin()
        started = now()
        merged = training.train()
        trained = now()
        report = training.evaluate(merged)
        return {"training_s": trained - started, "evaluation_s": now() - trained,
                "memory_bytes": report["peak_memory_bytes"], "primitives": report["primitives"]}  # fmt: skip


if __name__ == "__main__":
    main()
