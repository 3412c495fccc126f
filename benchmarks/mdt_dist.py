"""Few-step 3D flows on the small world: every objective, sampler and number of steps against the teacher's many steps.

Run: python benchmarks/mdt_dist.py [--world DIR] [--runs DIR] [--arms NAME ...] [--seeds N] [--workers N] [--table]

The world is a run of `scene-distill distill mdt` (made there if it is not); every arm distils its teachers again under
its own switches, for every seed, into a folder of its own, and is then walked in every way of `WALKS`. A result goes to
benchmarks/results/mdt_dist.json as soon as it is there; a stopped campaign continues, also inside an arm's training.
``--table`` prints the tables of docs/mdt_dist.md from that file. Figures: `training.shape_evaluation`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from scene_distill.blocks.workers import Workers
from scene_distill.core.files import read_json, write_json
from scene_distill.methods.mdt_dist.evaluation import (
    Evaluation,
    autoencoding,
    evaluate_walk,
    floors,
    gather_truth,
)
from scene_distill.methods.mdt_dist.model import ShapeModel, Walk
from scene_distill.methods.mdt_dist.run import MDTRun, saved_config

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mdt_dist.json"

ARMS: dict[str, list[str]] = {
    "VM": [],
    "VM+VD 0.1": ["--vd", "0.1"],
    "VM+VD 1": ["--vd", "1"],
    "CM": ["--objective", "cm"],
    "sCM": ["--objective", "scm", "--derivative", "jvp"],
    "PCM 2 phases": ["--objective", "pcm"],
    "VM, t logit-normal": ["--times", "logit-normal"],
    "VM, d_norm": ["--d-norm"],
    "VM, JVP": ["--derivative", "jvp"],
    "VM+VD 1, paper's weight": ["--vd", "1", "--vd-weight", "paper"],
    "VM+VD 1, KL weight": ["--vd", "1", "--vd-weight", "kl"],
    "VM+VD 1, from the start, noise reused": ["--vd", "1", "--vd-from", "0", "--vd-noise", "reused"],
}
TEACHER_STEPS = (200, 25, 12, 4, 2, 1)
WALKS = [Walk(1, role="student")] + [Walk(n, s, role="student") for n in (2, 4) for s in ("euler", "renoise")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--world", type=Path, default=ROOT / "outputs" / "tiny-shapes")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "mdt")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--compared", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--student-steps", type=int, default=0, help="0: as the world's students")
    parser.add_argument("--world-flags", nargs=argparse.REMAINDER, default=[], help="last: flags of the world's run")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = read_json(options.results) if options.results.exists() else {}
    if not options.table:
        campaign(options, results)
    print(tables(results))


def campaign(options: argparse.Namespace, results: dict) -> None:
    """Everything that is not in the file yet."""
    how = Evaluation(options.samples, options.compared)
    train(options.world, ["--workers", str(options.workers), *options.world_flags])
    config = saved_config(options.world)
    base = MDTRun(config, Workers())
    model = ShapeModel.load(options.world)
    truth = gather_truth(model, base.files, base.shapes, options.world / "shapes", how)
    if "world" not in results:
        results["world"] = {
            "floors": floors(truth), "autoencoding": autoencoding(model, truth, how), "evaluation": asdict(how),
            "stages": read_json(options.world / "stages.json"), "threads": torch.get_num_threads(),
        }  # fmt: skip
        write_json(options.results, results)
    rows = results.setdefault("rows", [])
    done = {(row["arm"], row["seed"], row["steps"], row["sampler"]) for row in rows}

    def measure(arm: str, seed: int, of: ShapeModel, walk: Walk, surface: bool) -> None:
        if (arm, seed, walk.steps, walk.sampler) not in done:
            found = evaluate_walk(of, truth, walk, how, surface, noise_seed=how.seed)
            rows.append({"arm": arm, "seed": seed, "steps": walk.steps, "sampler": walk.sampler} | found)
            write_json(options.results, results)
            print(json.dumps(rows[-1]), flush=True)

    for steps in TEACHER_STEPS:
        measure("teacher", 0, model, Walk(steps, role="teacher"), True)
    for seed in range(options.seeds):
        for arm in options.arms:
            wanted = [walk for walk in WALKS if (arm, seed, walk.steps, walk.sampler) not in done]
            if not wanted:
                continue
            folder = options.runs / f"{''.join(c if c.isalnum() else '-' for c in arm.lower())}-{seed}"
            lengths = ["--student-steps", str(options.student_steps or config.student_steps)]
            sizes = [f"--{name}={getattr(config, name)}" for name in ("lanes", "batch", "visit")]
            flags = ["--teacher", str(options.world), "--seed", str(seed), "--workers", str(options.workers)]
            if not train(folder, [*flags, *lengths, *sizes, *ARMS[arm]]):
                lost = {"arm": arm, "seed": seed, "diverged": True}
                rows += [lost | {"steps": walk.steps, "sampler": walk.sampler} for walk in wanted]
                write_json(options.results, results)
                continue
            student = ShapeModel.load(folder)
            for walk in wanted:
                measure(arm, seed, student, walk, True)


def train(folder: Path, flags: list[str]) -> bool:
    """A run of `distill mdt`, or what is left of it; False when its gradients stopped being numbers."""
    if (folder / "model.safetensors").exists():
        return True
    resume = ["--resume"] if (folder / "config.yaml").exists() else []
    command = [sys.executable, "-m", "scene_distill", "distill", "mdt", "--output-dir", str(folder), *flags, *resume]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode and "is not a number" not in done.stderr:
        sys.exit(done.stderr)
    return done.returncode == 0


def tables(results: dict) -> str:
    """Markdown of what is there: mean and sample deviation over seeds."""
    if "world" not in results:
        return "no results yet"
    world = results["world"]
    lines = [f"floors: {_named(world['floors'])}"]
    lines += [f"autoencoders on held-out objects: {_named(world['autoencoding'])}", ""]
    columns = ["frechet_structure", "frechet_voxels", "frechet_surface", "overlap_with_fine", "chamfer_with_fine",
               "coverage", "matching_distance", "recognised"]  # fmt: skip
    lines.append(f"| arm | steps | sampler | seeds | {' | '.join(c.replace('_', ' ') for c in columns)} | ms |")
    lines.append("|---" * (len(columns) + 5) + "|")
    rows = results.get("rows", [])
    for arm, steps, sampler in dict.fromkeys((row["arm"], row["steps"], row["sampler"]) for row in rows):
        mine = [row for row in rows if (row["arm"], row["steps"], row["sampler"]) == (arm, steps, sampler)]
        good = [row for row in mine if not row.get("diverged")]
        cells = [_spread([row[c] for row in good if c in row]) for c in columns]
        cells.append(_spread([1000 * row["seconds_both"] for row in good if "seconds_both" in row]))
        count = f"{len(mine)}" + (f" ({len(mine) - len(good)} diverged)" if len(good) < len(mine) else "")
        lines.append(f"| {arm} | {steps} | {sampler} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _named(figures: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}"


if __name__ == "__main__":
    main()
