"""nerfstudio's own splatfacto on the CPU (SCENE_DISTILL_GSPLAT=1) on the aerial photographs: ns-train, ns-eval.

    python benchmarks/splatfacto.py [--iterations 300] [--data FOLDER]

Held-out PSNR (every 8th photo, full size) after one iteration and after all; seconds an iteration, wall time and
processor time: those of the whole run less those of a run of one iteration. Splatfacto itself trains its first 3000
iterations on photos shrunk four times. Figures go to benchmarks/results/splatfacto.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from campaign import ROOT, Campaign, shared_data

ENVIRONMENT = os.environ | {"SCENE_DISTILL_GSPLAT": "1", "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}


def call(command: str, *words: object) -> tuple[float, float]:
    """Wall seconds and processor seconds of one of nerfstudio's commands."""
    started, used = time.time(), processor_seconds()
    program = Path(sys.executable).with_name(command)
    subprocess.run([str(program), *map(str, words)], check=True, cwd=ROOT, env=ENVIRONMENT)
    return time.time() - started, processor_seconds() - used


def processor_seconds() -> float:
    """What finished child processes have used on all cores."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def train_and_measure(data: Path, iterations: int, root: Path) -> dict[str, float]:
    """Metrics of ns-eval after so many iterations, and the wall and processor seconds of ns-train."""
    name, timestamp = data.name, f"{iterations}-iterations"
    wall, processor = call(
        "ns-train", "splatfacto", "--data", data, "--max-num-iterations", iterations, "--vis", "tensorboard",
        "--output-dir", root, "--experiment-name", name, "--timestamp", timestamp, "--steps-per-eval-image", 10**6,
        "--steps-per-eval-all-images", 10**6, "colmap", "--colmap-path", "sparse/0", "--downscale-factor", 1,
    )  # fmt: skip
    run = root / name / "splatfacto" / timestamp
    call("ns-eval", "--load-config", run / "config.yml", "--output-path", run / "eval.json")
    return json.loads((run / "eval.json").read_text())["results"] | {
        "train_seconds": wall, "train_processor_seconds": processor,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--data", type=Path, help="a folder with images/ and sparse/0/ (aerial_sheffield)")
    options = parser.parse_args()
    data = (options.data or shared_data() / "aerial_sheffield").resolve()
    campaign = Campaign(ROOT / "benchmarks" / "results" / "splatfacto.json")
    before, after = (train_and_measure(data, count, ROOT / "outputs") for count in (1, options.iterations))
    each, work = (
        (after[name] - before[name]) / (options.iterations - 1) for name in ("train_seconds", "train_processor_seconds")
    )
    campaign.keep(
        f"{data.name}-{options.iterations}-iterations",
        {
            "before": before,
            "after": after,
            "seconds_per_iteration": each,
            "processor_seconds_per_iteration": work,
            "cores": len(os.sched_getaffinity(0)),
        },
    )
    print(
        f"splatfacto on {data.name}, {options.iterations} iterations on the CPU: held-out PSNR {before['psnr']:.2f} -> "
        f"{after['psnr']:.2f} dB, SSIM {before['ssim']:.3f} -> {after['ssim']:.3f}, {each:.3f} s an iteration "
        f"({work:.3f} s of processor time on all cores)"
    )


if __name__ == "__main__":
    main()
