"""Efficiency of 10^2 to 10^5 blocks on 1 to 1,024 workers, by simulation with costs that are measured here.

    python benchmarks/scale.py --run RUN_FOLDER    # measure the costs first, on a finished momentum-gs run
    python benchmarks/scale.py                     # draw the curves with the costs measured last

Costs go to benchmarks/results/scale_costs.json, figures to scale.json beside it, curves to docs/images/scale_*.svg.
What they say is in docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from campaign import ROOT, Campaign

from scene_distill.blocks.checkpoint import Checkpoint
from scene_distill.blocks.schedule import make_schedule
from scene_distill.blocks.simulation import Cluster, Costs, Layout, Outcome, simulate
from scene_distill.blocks.store import Entry
from scene_distill.core.files import write_json

matplotlib.use("svg")
from matplotlib import pyplot

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BLOCKS = (100, 1_000, 10_000, 100_000)
GBIT = 1e9 / 8
DAY = 86_400.0
VISIT_STEPS, SWEEPS = 500, 3
DECODER_WEIGHTS = 7_086
ACCELERATOR_STEP = 0.01
"""Seconds of a step on a GPU: assumed, not measured."""

BASE = Cluster(1, link=10 * GBIT, latency=20e-6, store=4e9, resident=8.0, failures=30 * DAY, restart=120.0)
"""10 Gbit/s links, a shared file system of 4 GB/s, a failure per worker a month, two minutes to train again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.run or not (RESULTS / "scale_costs.json").exists():
        write_json(RESULTS / "scale_costs.json", measured_costs(options.run))
    measured = json.loads((RESULTS / "scale_costs.json").read_text())
    core = Costs(**measured["costs"])
    accelerator = replace(core, step=ACCELERATOR_STEP, visit=core.visit * ACCELERATOR_STEP / core.step)
    results: dict[str, Any] = {"validation": measured.get("validation"), "base": asdict(BASE)}
    results["blocks"] = draw_blocks(core, accelerator)
    results["losses"] = draw_losses(accelerator)
    results["reductions"] = draw_reductions(accelerator)
    results["chance"] = draw_chance(accelerator)
    results["store"] = draw_store(accelerator)
    Campaign(RESULTS / "scale.json").keep("curves", results)


def mean_efficiency(blocks: int, workers: int, costs: Costs, cluster: Cluster, runs: int = 20) -> float:
    """Of runs that differ in when workers fail."""
    return statistics.fmean(run(blocks, workers, costs, cluster, seed=seed).efficiency for seed in range(runs))


def run(blocks: int, workers: int, costs: Costs, cluster: Cluster, **how: Any) -> Outcome:
    """Two sweeps of the blocks."""
    return simulate(layout(blocks, workers), costs, replace(cluster, workers=workers), **how)


@cache
def layout(blocks: int, workers: int) -> Layout:
    """One lane a worker; the rounds before the shared state is frozen, which are all but a twentieth of a run."""
    rounds = make_schedule(blocks, workers, SWEEPS * VISIT_STEPS, SWEEPS)
    return Layout.of([round_ for round_ in rounds if not round_.final], workers)


def draw_blocks(core: Costs, accelerator: Costs) -> dict[str, Any]:
    """Efficiency against workers for every number of blocks, both speeds."""
    figure, axes = panels(2, "workers")
    found: dict[str, Any] = {}
    for axis, (name, costs) in zip(axes, {"CPU core": core, "accelerator": accelerator}.items(), strict=True):
        for blocks in BLOCKS:
            values = curve(WORKERS, lambda n, k=blocks, c=costs: run(k, n, c, BASE))  # type: ignore[misc]
            found[f"{name}, {blocks} blocks"] = values
            axis.plot(WORKERS, values, marker=".", label=f"{blocks:,} blocks")
        axis.set_title(f"{name}: {1000 * costs.step:.0f} ms a step")
    finish(figure, axes, "scale_blocks.svg")
    return found


def draw_losses(costs: Costs) -> dict[str, Any]:
    """Where the time of 10,000 blocks goes."""
    figure, axes = panels(1, "workers")
    outcomes = [run(10_000, n, costs, BASE) for n in WORKERS]
    parts = ("compute", "waiting", "reducing", "visits", "storing", "committing", "failing")
    shares = {part: [getattr(o, part) / o.seconds for o in outcomes] for part in parts}
    labels = {"compute": "unit steps", "waiting": "waiting for the slowest", "reducing": "reduction",
              "visits": "opening and scoring", "storing": "states", "committing": "manifest",
              "failing": "failures"}  # fmt: skip
    axes[0].stackplot(WORKERS, [shares[part] for part in parts], labels=[labels[part] for part in parts])
    axes[0].set_title("10,000 blocks, accelerator")
    axes[0].set_ylabel("share of the time")
    finish(figure, axes, "scale_losses.svg")
    return shares


def draw_reductions(costs: Costs) -> dict[str, Any]:
    """The three ways to average gradients, on four links."""
    figure, axes = panels(4, "workers")
    found: dict[str, Any] = {}
    for axis, gbit in zip(axes, (1, 10, 100, 400), strict=True):
        cluster = replace(BASE, link=gbit * GBIT)
        ways: dict[str, dict[str, Any]] = {
            "ordered all-gather": {"how": "ordered"}, "ring all-reduce": {"how": "all-reduce"},
            "tree over lanes": {"how": "tree"}, "tree every 10 steps": {"how": "tree", "reduce_every": 10},
        }  # fmt: skip
        for name, how in ways.items():
            values = curve(WORKERS, lambda n, h=how, c=cluster: run(10_000, n, costs, c, **h))  # type: ignore[misc]
            found[f"{gbit} Gbit/s, {name}"] = values
            axis.plot(WORKERS, values, marker=".", label=name)
        axis.set_title(f"{gbit} Gbit/s")
    finish(figure, axes, "scale_reductions.svg")
    return found


def draw_chance(costs: Costs) -> dict[str, Any]:
    """Stragglers and failures, everything else free."""
    figure, axes = panels(2, "workers")
    ideal = replace(BASE, link=1e15, latency=0.0, store=1e15, failures=np.inf)
    calm = replace(costs, unit_spread=0, worker_spread=0, step_spread=0, visit=0, lane_sum=0, manifest=0)
    found: dict[str, Any] = {}
    for place, spread in enumerate((0.05, 0.1, 0.2, 0.4)):
        for every, style in ((1, "-"), (50, "--")):
            jumpy = replace(calm, step_spread=spread)
            name = f"spread {spread:g}, wait every {every}"
            found[name] = curve(WORKERS, lambda n, c=jumpy, e=every: run(10_000, n, c, ideal, reduce_every=e))  # type: ignore[misc]
            axes[0].plot(WORKERS, found[name], style, color=f"C{place}", label=name)
    axes[0].set_title("random step times")
    for days in (365, 30, 3, 0.3):
        frail, name = replace(ideal, failures=days * DAY), f"a failure every {days:g} days"
        found[name] = [round(mean_efficiency(10_000, n, calm, frail), 4) for n in WORKERS]
        axes[1].plot(WORKERS, found[name], marker=".", label=name)
    axes[1].set_title("failures of a worker")
    finish(figure, axes, "scale_chance.svg")
    return found


def draw_store(costs: Costs) -> dict[str, Any]:
    """One shared file system against steps per visit, with and without workers that keep their units."""
    figure, axes = panels(2, "workers")
    found: dict[str, Any] = {}
    for axis, resident in zip(axes, (0.0, 1e9), strict=True):
        for rate in (0.5e9, 2e9, 10e9, 100e9):
            cluster = replace(BASE, store=rate, resident=resident)
            name = f"{rate / 1e9:g} GB/s, {'all units stay in RAM' if resident else 'states are read back'}"
            found[name] = curve(WORKERS, lambda n, c=cluster: run(10_000, n, costs, c))  # type: ignore[misc]
            axis.plot(WORKERS, found[name], marker=".", label=f"{rate / 1e9:g} GB/s")
        axis.set_title("units stay in RAM" if resident else "states are read back")
    finish(figure, axes, "scale_store.svg")
    return found


def curve(workers: Iterable[int], outcome: Callable[[int], Outcome]) -> list[float]:
    return [round(outcome(n).efficiency, 4) for n in workers]


def panels(count: int, label: str) -> tuple[Any, list[Any]]:
    matplotlib.rcParams.update({"svg.hashsalt": "scale", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(1, count, figsize=(2.4 + 3.2 * count, 3.6), sharey=True, squeeze=False)
    for axis in axes[0]:
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
        axis.set_ylim(0, 1.02)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("efficiency")
    return figure, list(axes[0])


def finish(figure: Any, axes: list[Any], name: str) -> None:
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    if len({tuple(axis.get_legend_handles_labels()[1]) for axis in axes}) > 1:
        axes[0].legend(loc="lower left", frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(IMAGES / name, metadata={"Date": None})
    pyplot.close(figure)


def measured_costs(folder: Path | None) -> dict[str, Any]:
    """Costs of a unit from the log and the checkpoint of a finished run, the others from operations timed here."""
    if folder is None:
        raise SystemExit("no measured costs yet; train a small momentum-gs run and give its folder as --run")
    log = (folder / "log.jsonl").read_text().splitlines()
    lines = [line for line in map(json.loads, log) if "units" in line]
    times = np.diff([0.0] + [line["seconds"] for line in lines])
    lanes = np.array([len(line["units"]) for line in lines])
    starts = np.array([index == 0 or line["round"] != lines[index - 1]["round"] for index, line in enumerate(lines)])
    steps = times[~starts] / lanes[~starts]
    visit = max(float(np.mean(times[starts][1:] / lanes[starts][1:]) - steps.mean()), 0.0)
    sizes = [path.stat().st_size for path in (folder / "checkpoint" / "units").glob("unit-*")]
    costs = Costs(
        step=float(steps.mean()), state=float(np.mean(sizes)), unit_spread=0.05, worker_spread=0.03,
        step_spread=float(np.log(steps[steps < 4 * np.median(steps)]).std()), visit=visit,
        gradient=4.0 * DECODER_WEIGHTS, lane_sum=lane_sum_seconds(), manifest=manifest_seconds_per_unit(),
    )  # fmt: skip
    report = json.loads((folder / "metrics.json").read_text())
    rounds = make_schedule(int(max(lanes)), int(max(lanes)), report["steps"] // int(max(lanes)), int(starts.sum()))
    simulated = simulate(
        Layout.of(rounds, 1), replace(costs, unit_spread=0, worker_spread=0), replace(BASE, workers=1)
    ).seconds
    return {"costs": asdict(costs), "disk_bytes_per_s": disk_bytes_per_second(),
            "validation": {"measured_seconds": report["seconds"], "simulated_seconds": simulated}}  # fmt: skip


def lane_sum_seconds(lanes: int = 256) -> float:
    """Seconds to add one lane's gradient in lane order."""
    rows = [torch.randn(DECODER_WEIGHTS + 1) for _ in range(lanes)]

    def total() -> None:
        sum_ = rows[0]
        for row in rows[1:]:
            sum_ = sum_ + row

    return fastest(total) / lanes


def manifest_seconds_per_unit(units: int = 10_000) -> float:
    """Seconds per unit to write a manifest."""
    entries = {unit: Entry(f"unit-{unit:04d}-sweep-0001.safetensors", 92_000_000, "0" * 32) for unit in range(units)}
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as folder:
        checkpoint = Checkpoint({}, 1, 0.0, entries[0], entries)
        return fastest(lambda: write_json(Path(folder) / "checkpoint.json", checkpoint.to_dict()), 4) / units


def disk_bytes_per_second(size: int = 2**26) -> float:
    data = bytes(size)
    with tempfile.TemporaryDirectory(dir=ROOT / "outputs") as folder:
        return size / fastest(lambda: (Path(folder) / "data").write_bytes(data), 4)


def fastest(action: Callable[[], Any], times: int = 12) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.quantiles(seconds, n=4)[0] if times > 4 else min(seconds)


if __name__ == "__main__":
    main()
