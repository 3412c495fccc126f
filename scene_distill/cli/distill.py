"""`scene-distill distill mdt [--config FILE] --teacher tiny-shapes | RUN | TRELLIS_DIR ...`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from scene_distill.cli.flags import taken
from scene_distill.core.configs import load_config
from scene_distill.core.console import command_without, console, say, say_next, show_table
from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.methods.mdt_dist.config import MDTConfig

METHODS = {"mdt": "few-step 3D flows by marginal-data transport (MDT-dist)"}


def main(arguments: list[str]) -> None:
    """Distil a slow 3D flow into a fast one."""
    if not arguments or arguments[0].startswith("-"):
        say("usage: scene-distill distill METHOD [--config FILE] [flags]\n")
        for name, what in METHODS.items():
            say(f"  {name:<6} {what}")
        say("\n  --config FILE  settings of a YAML file; flags win")
        if arguments and arguments[0] in ("-h", "--help"):
            return
        raise UserError(f"name a method first: {', '.join(METHODS)}")
    name, *rest = arguments
    if name not in METHODS:
        raise UserError(f"there is no method '{name}' to distil with; choose one of {', '.join(METHODS)}")
    from scene_distill.methods.mdt_dist.config import MDTConfig

    file, rest = taken(rest, "--config")
    default = load_config(MDTConfig, Path(file)) if file else MDTConfig()
    config = tyro.cli(
        MDTConfig, default=default, args=rest, prog=f"scene-distill distill {name}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    distill(config, [sys.executable, "-m", "scene_distill", "distill", *arguments])


def distill(config: MDTConfig, command: list[str]) -> None:
    """Run what a config says; ``command`` starts the other workers."""
    import torch

    from scene_distill.blocks.launch import joined
    from scene_distill.methods.mdt_dist.model import FLOWS
    from scene_distill.methods.mdt_dist.run import MDTRun, open_folder
    from scene_distill.methods.mdt_dist.trellis import TrellisRun, is_trellis
    from scene_distill.renderers import native

    if Path(config.teacher).is_dir():
        config = replace(config, teacher=str(Path(config.teacher).absolute()))
    check(config)
    torch.set_num_threads(config.threads)
    native.set_threads(config.threads)
    if config.dry_run:
        show_costs(config)
        return
    with joined(config.workers, lambda: command, config.worker_timeout) as workers:
        with workers.first_before_others("worker 0 opens the run folder"):
            if workers.rank == 0:
                open_folder(config)
            else:
                console.quiet = True
        run = TrellisRun(config, workers) if is_trellis(config.teacher) else MDTRun(config, workers)
        run.run()
        if workers.rank > 0:
            return
    if isinstance(run, TrellisRun):
        say(f"{config.output_dir / 'pipeline.json'}: a TRELLIS folder with students of {' and '.join(run.flows)}")
        how = "--prompt TEXT" if run.files.conditioned_by == "text" else "--image PICTURE"
    else:
        flows = ", ".join(f"{role} of {flow}" for role, flow in sorted(run.model.flows))
        say(f"{config.output_dir / 'model.safetensors'}: {flows}")
        how = '--prompt "a table"'
        missing = [flow for flow in FLOWS if ("student", flow) not in run.model.flows]
        if missing:
            again = f"scene-distill distill mdt --teacher {config.output_dir} --stage {missing[0]} --output-dir OUT"
            say_next(again, "the other flow's student, which an object in one step needs")
            return
    steps = "one step" if config.walked_phases == 1 else f"{config.walked_phases} steps"
    say_next(f"scene-distill generate --model {config.output_dir} {how}", f"an object in {steps}")


def check(config: MDTConfig) -> None:
    """Refuse what cannot be trained."""
    from scene_distill.methods.mdt_dist.config import TINY
    from scene_distill.methods.mdt_dist.trellis import check_trellis, is_trellis

    if config.teacher != TINY and not Path(config.teacher).is_dir():
        raise UserError(
            f"there is no folder {config.teacher}; teachers are {TINY}, runs, and folders of TRELLIS models"
        )
    if is_trellis(config.teacher):
        check_trellis(config)
        if config.dry_run:
            raise UserError("--dry-run measures tiny-shapes and its runs; leave it out for TRELLIS models")
    else:
        for name in ("describe", "models_root", "conditioner"):
            if getattr(config, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for TRELLIS models; {config.teacher} holds none")
    for name in ("shapes", "shards", "lanes", "batch", "visit", "structure_steps", "surface_steps", "gaussian_steps",
                 "teacher_steps", "student_steps", "width", "depth", "phases", "threads"):  # fmt: skip
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it must be at least 1")
    if config.shapes < config.shards:
        raise UserError(f"--shapes is {config.shapes} for --shards {config.shards}; every shard needs an object")
    for name in ("unsaid", "dropped", "vd_from"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}; it is a share between 0 and 1")
    if not 0 < config.delta < 0.5:
        raise UserError(f"--delta is {config.delta}; it must lie between 0 and 0.5")
    if config.vd and config.objective != "vm":
        raise UserError("--vd goes with --objective vm: its residual is that of velocity matching")
    if config.width % 4:
        raise UserError(f"--width is {config.width}; it must be a multiple of 4")


def show_costs(config: MDTConfig) -> None:
    """The stages, and what an update of each takes here, measured on a few objects."""
    from scene_distill.methods.mdt_dist.costs import measured_costs

    rows, total = [], 0.0
    for cost in measured_costs(config):
        seconds = cost.updates * cost.seconds
        total += seconds
        rows.append([cost.stage, f"{cost.updates:,}", f"{cost.parameters:,}", f"{1000 * cost.seconds:.1f}",
                     f"{seconds / 60:.1f}"])  # fmt: skip
    columns = ("stage", "updates", "weights", "ms an update", "minutes")
    show_table(f"{config.lanes} lanes of {config.batch} on {config.workers} workers", columns, rows)
    say(f"in all {total / 60:.0f} minutes, as measured now")
    say_next(command_without("--dry-run"), "the same without --dry-run")
