"""Few-step 3D flows on the small world: every objective, sampler and number of steps against the teacher's many steps.

Run: python benchmarks/mdt_dist.py [--world DIR] [--runs DIR] [--arms NAME ...] [--seeds N] [--workers N] [--table]

The world is a run of `scene-distill distill mdt` (made there if it is not); every arm distils its teachers again under
its own switches, for every seed, into a folder of its own, and is then walked in every way of `WALKS`. A result goes to
benchmarks/results/mdt_dist.json as soon as it is there; a stopped campaign continues, also inside an arm's training.
Results know the world's weights, the sizes of the evaluation and their arm's switches, and are not mixed with others.
``--table`` prints the tables of docs/mdt_dist.md from that file. Figures: `training.shape_evaluation`.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from campaign import ROOT, Campaign

from scene_distill.blocks.workers import Workers
from scene_distill.core.configs import HOW_TO_RUN, changed_fields, to_plain
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json
from scene_distill.methods.mdt_dist.config import TINY, MDTConfig
from scene_distill.methods.mdt_dist.evaluation import (
    Evaluation,
    Truth,
    autoencoding,
    evaluate_walk,
    floors,
    gather_truth,
)
from scene_distill.methods.mdt_dist.latency import latencies
from scene_distill.methods.mdt_dist.model import ShapeModel, Walk
from scene_distill.methods.mdt_dist.run import MDTRun, model_sha256, saved_config, taught_by, world_of

RESULTS = ROOT / "benchmarks" / "results" / "mdt_dist.json"

CORE: dict[str, dict[str, Any]] = {
    "VM": {},
    "VM+VD 0.1": {"vd": 0.1},
    "VM+VD 1": {"vd": 1.0},
    "CM": {"objective": "cm"},
}
"""What the question is about: all their seeds come first."""

OTHERS: dict[str, dict[str, Any]] = {
    "VM, equal evaluations": {},
    "sCM": {"objective": "scm", "derivative": "jvp"},
    "PCM 2 phases": {"objective": "pcm"},
    "VM, t logit-normal": {"times": "logit-normal"},
    "VM, d_norm": {"d_norm": True},
    "VM, JVP": {"derivative": "jvp"},
    "VM+VD 1, paper's weight": {"vd": 1.0, "vd_weight": "paper"},
    "VM+VD 1, KL weight": {"vd": 1.0, "vd_weight": "kl"},
    "VM+VD 1, from the start, noise reused": {"vd": 1.0, "vd_from": 0.0, "vd_noise": "reused"},
}
ARMS = CORE | OTHERS

LONGER = {"VM, equal evaluations": 1.75}
"""Times as many updates: velocity distillation asks the teacher once more in the last three quarters of its own."""

TEACHERS = [Walk(n, role="teacher") for n in (200, 25, 12, 4, 2, 1)]
TEACHERS += [Walk(n, "renoise", role="teacher") for n in (25, 12, 4, 2)]
WALKS = [Walk(1, role="student")] + [Walk(n, s, role="student") for n in (2, 4) for s in ("euler", "renoise")]
TIMED = [walk for walk in TEACHERS if walk.sampler == "euler" and walk.steps <= 25] + WALKS

END_S = 20.0
"""Longest wait for a training that was told to end."""


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
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of figures; latency is of one")
    parser.add_argument("--student-steps", type=int, default=0, help="0: as the world's students")
    parser.add_argument("--world-flags", nargs=argparse.REMAINDER, default=[], help="last: flags of the world's run")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    options.world, options.runs = options.world.resolve(), options.runs.resolve()
    campaign = Campaign(options.results)
    if not options.table:
        torch.set_num_threads(options.threads)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            measure_all(options, campaign)
        except UserError as error:
            sys.exit(str(error))
    print(tables(campaign.results))


def measure_all(options: argparse.Namespace, campaign: Campaign) -> None:
    """Everything that is not in the file yet."""
    how = Evaluation(options.samples, options.compared)
    train(options.world, ["--workers", str(options.workers), *options.world_flags], world_config(options.world_flags))
    config = replace(saved_config(options.world), output_dir=options.world)
    base = MDTRun(config, Workers())
    model = ShapeModel.load(options.world)
    world = {"model_sha256": model_sha256(options.world), "evaluation": asdict(how)}
    check_same("the world or the evaluation", campaign, "world", world)
    truth = gather_truth(model, base.files, base.shapes, world_of(options.world) / "shapes", how)
    if "world" not in campaign.results:
        campaign.keep("world", world | {
            "floors": floors(model, truth, how), "autoencoding": autoencoding(model, truth, how),
            "stages": read_json(options.world / "stages.json"), "threads": options.threads,
        })  # fmt: skip
    if "latency" not in campaign.results:
        found = latencies(model, truth.shapes.words[:1].long(), TIMED)
        campaign.keep("latency", {named(walk): seconds for walk, seconds in zip(TIMED, found, strict=True)})
    for seed in range(options.seeds):
        for walk in TEACHERS:
            measure(campaign, "teacher", seed, model, truth, walk, how, {})
    core, others = ([arm for arm in options.arms if arm in group] for group in (CORE, OTHERS))
    for arm in core:
        for seed in range(options.seeds):
            measure_arm(options, campaign, arm, seed, config, truth, how)
    for seed in range(options.seeds):
        for arm in others:
            measure_arm(options, campaign, arm, seed, config, truth, how)


def measure_arm(options: argparse.Namespace, campaign: Campaign, arm: str, seed: int, world: MDTConfig, truth: Truth,
                how: Evaluation) -> None:  # fmt: skip
    """Train an arm and walk its students, as far as that is not in the file yet."""
    wanted = arm_config(arm, seed, world, options)
    flags, settings = flags_of(replace(wanted, teacher=TINY)), settings_of(wanted)
    for walk in WALKS:
        check_same(f"{arm}, seed {seed}", campaign, row_name(arm, seed, walk), {"settings": settings})
    missing = [walk for walk in WALKS if row_name(arm, seed, walk) not in campaign.results]
    if not missing:
        return
    if not train(wanted.output_dir, [*flags_of(wanted), "--workers", str(options.workers)], wanted):
        for walk in missing:
            row = {"arm": arm, "seed": seed, "walk": asdict(walk), "diverged": True}
            row |= {"flags": flags, "settings": settings}
            campaign.keep(row_name(arm, seed, walk), row)
        return
    students = [stage for name, stage in read_json(wanted.output_dir / "stages.json").items() if "student" in name]
    cost = {"flags": flags, "settings": settings,
            "training_seconds": sum(stage["seconds"] for stage in students),
            "teacher_evaluations": sum(stage["teacher_evaluations"] for stage in students)}  # fmt: skip
    model = ShapeModel.load(wanted.output_dir)
    for walk in missing:
        measure(campaign, arm, seed, model, truth, walk, how, cost)


def measure(campaign: Campaign, arm: str, seed: int, model: ShapeModel, truth: Truth, walk: Walk, how: Evaluation,
            more: dict[str, Any]) -> None:  # fmt: skip
    """One row of the table."""
    name = row_name(arm, seed, walk)
    if name not in campaign.results:
        found = evaluate_walk(model, truth, walk, how, seed)
        if not {"frechet_structure", "frechet_surface"} <= set(found):  # states that are not numbers
            found |= {"diverged": True}
        campaign.keep(name, {"arm": arm, "seed": seed, "walk": asdict(walk)} | more | found)
        print(name, json.dumps(campaign.results[name]), flush=True)


def named(walk: Walk) -> str:
    return f"{walk.network} {walk.steps} {walk.sampler}"


def row_name(arm: str, seed: int, walk: Walk) -> str:
    return f"{arm}/{seed}/{walk.steps} {walk.sampler}"


def check_same(what: str, campaign: Campaign, name: str, wanted: dict[str, Any]) -> None:
    """Refuse to go on with a file whose results are of something else."""
    stored = campaign.results.get(name)
    if stored is not None and any(stored.get(key) != value for key, value in wanted.items()):
        raise UserError(f"{campaign.file} has results of {what} under other settings; name another file by --results")


def world_config(flags: list[str]) -> MDTConfig | None:
    """What flags ask of the world; None without flags, when any world will do."""
    if not flags:
        return None
    return tyro.cli(MDTConfig, args=flags, prog="--world-flags", config=(tyro.conf.FlagCreatePairsOff,))


def arm_config(arm: str, seed: int, world: MDTConfig, options: argparse.Namespace) -> MDTConfig:
    """What an arm is trained with: updates and batches of the world's students, and its own switches."""
    folder = options.runs / f"{''.join(c if c.isalnum() else '-' for c in arm.lower())}-{seed}"
    steps = round((options.student_steps or world.student_steps) * LONGER.get(arm, 1))
    return MDTConfig(teacher=str(world.output_dir), output_dir=folder, seed=seed, student_steps=steps,
                     lanes=world.lanes, batch=world.batch, visit=world.visit, **ARMS[arm])  # fmt: skip


def flags_of(config: MDTConfig) -> list[str]:
    """The command line of a config's differences from the defaults, without the folder it is trained in."""
    flags: list[str] = []
    usual = to_plain(MDTConfig())
    for name, value in to_plain(config).items():
        if name != "output_dir" and value != usual[name]:
            flag = name.replace("_", "-")
            flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}={value}"]
    return flags


def settings_of(config: MDTConfig) -> str:
    """A short hash of all settings that decide what is learned, so that changed defaults are noticed too."""
    plain = {name: value for name, value in to_plain(config).items() if name not in {"teacher", *HOW_TO_RUN}}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def train(folder: Path, flags: list[str], wanted: MDTConfig | None = None) -> bool:
    """A run of `distill mdt`, or what is left of it; False when its gradients stopped being numbers.

    A finished run has to be of the ``wanted`` config and of its teacher's present weights.
    """
    with held(folder):
        if (folder / "model.safetensors").exists():
            if wanted is not None:
                check_finished(folder, wanted)
            return True
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        code, complaint = ended([sys.executable, "-m", "scene_distill", "distill", "mdt", "--output-dir", str(folder),
                                 *flags, *resume])  # fmt: skip
    if code and "is not a number" not in complaint:
        sys.exit(complaint or f"the training in {folder} ended with code {code}")
    return code == 0


def check_finished(folder: Path, wanted: MDTConfig) -> None:
    """Refuse a folder that was trained otherwise."""
    changed = changed_fields(saved_config(folder), wanted)
    if changed:
        raise UserError(f"{folder} was trained with another --{changed[0].replace('_', '-')}; name another folder")
    if wanted.teacher != TINY and taught_by(folder) != model_sha256(Path(wanted.teacher)):
        raise UserError(f"{folder} was distilled from other weights than {wanted.teacher} has now; name other --runs")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder for this campaign alone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another campaign trains in {folder}; wait for it, or name other --arms") from error
        yield


def ended(command: list[str]) -> tuple[int, str]:
    """Exit code and complaints of a command. When this process ends first, the command and all that it started do."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    try:
        complaint = process.communicate()[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            with contextlib.suppress(ProcessLookupError):  # what it started and did not end
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, complaint


COLUMNS = ("frechet_structure", "frechet_within_kind", "frechet_voxels", "frechet_surface", "overlap_with_fine",
           "chamfer_with_fine", "coverage", "matching_distance", "recognised", "empty", "evaluations",
           "training_seconds", "teacher_evaluations")  # fmt: skip


def tables(results: dict) -> str:
    """Markdown of what is there: mean and sample deviation over seeds."""
    if "world" not in results:
        return "no results yet"
    world = results["world"]
    lines = [f"autoencoders on held-out objects: {_named(world['autoencoding'])}"]
    lines += [f"frechet of the objects' own voxels: {world['floors']['frechet_voxels_raw']:.3g}", ""]
    lines.append(f"| arm | steps | sampler | seeds | {' | '.join(c.replace('_', ' ') for c in COLUMNS)} |")
    lines.append("|---" * (len(COLUMNS) + 4) + "|")
    floor = [_spread([world["floors"][c]] if c in world["floors"] else []) for c in COLUMNS]
    lines.append(f"| training objects | – | – | – | {' | '.join(floor)} |")
    rows = [row for row in results.values() if "arm" in row]
    order = {arm: place for place, arm in enumerate(["teacher", *ARMS])}
    keys = {(row["arm"], row["walk"]["steps"], row["walk"]["sampler"]) for row in rows}
    for key in sorted(keys, key=lambda k: (order.get(k[0], len(order)), k[1] if k[0] in ARMS else -k[1], k[2])):
        mine = [row for row in rows if (row["arm"], row["walk"]["steps"], row["walk"]["sampler"]) == key]
        good = [row for row in mine if not row.get("diverged")]
        cells = [_spread([row[c] for row in good if c in row]) for c in COLUMNS]
        count = f"{len(mine)}" + (f" ({len(mine) - len(good)} diverged)" if len(good) < len(mine) else "")
        lines.append(f"| {' | '.join(map(str, key))} | {count} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_ratio_lines(results), "", *_latency_lines(results.get("latency", {}))])


def _ratio_lines(results: dict[str, Any]) -> list[str]:
    """How one step stands to the teacher's many from the same noise: mean and sample deviation over seeds."""
    lines = ["| arm | Frechet distance of | 1 step / teacher 25 | teacher 1 / 1 step | 2 renoised / 1 step | "
             "1 step / VM's 1 step | 2 Euler / VM's 1 step |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for arm in ("teacher", *ARMS):
        asked = (f"{arm}/SEED/1 euler", "teacher/SEED/25 euler"), ("teacher/SEED/1 euler", f"{arm}/SEED/1 euler")
        asked += ((f"{arm}/SEED/2 renoise", f"{arm}/SEED/1 euler"),)
        asked += tuple((f"{arm}/SEED/{steps} euler", "VM/SEED/1 euler") for steps in (1, 2))
        for space in COLUMNS[:4]:
            cells = [_spread(_ratios(results, space, *names)) for names in asked]
            if set(cells) != {"–"}:
                lines.append(f"| {arm} | {space.removeprefix('frechet_').replace('_', ' ')} | {' | '.join(cells)} |")
    return lines


def _ratios(results: dict[str, Any], figure: str, above: str, below: str) -> list[float]:
    """A figure of one row over that of another, for every seed that has both."""
    found, seed = [], 0
    while (name := below.replace("SEED", str(seed))) in results:
        pair = results.get(above.replace("SEED", str(seed)), {}).get(figure), results[name].get(figure)
        if None not in pair:
            found.append(pair[0] / pair[1])
        seed += 1
    return found


def _latency_lines(latency: dict[str, dict[str, float]]) -> list[str]:
    """Medians, and how many times faster than the teacher's 25 steps the flows are."""
    lines = ["| walk | flows, ms | teacher 25 / this | decoding the structure, ms |", "|---|---|---|---|"]
    for name, seconds in latency.items():
        ratio = latency["teacher 25 euler"]["flows"] / seconds["flows"]
        lines.append(f"| {name} | {1e3 * seconds['flows']:.2f} | {ratio:.1f} | {1e3 * seconds['decoding']:.2f} |")
    return lines


def _named(figures: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    shown = f"{mean:,.0f}" if mean >= 1000 else f"{mean:.3g}"
    return f"{shown} ± {deviation:.2g}" if deviation else shown


if __name__ == "__main__":
    main()
