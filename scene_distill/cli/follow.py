"""`scene-distill follow RUN --vis tensorboard|wandb`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scene_distill.core.console import say, say_next
from scene_distill.core.errors import UserError


@dataclass(frozen=True)
class Follow:
    """Hand a run's log to TensorBoard or wandb: of a finished run all at once, of a running one as it grows."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    vis: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Who listens, one or several. WANDB_MODE=offline writes files only."""
    once: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Stop at the end of the log, even when the run is not finished."""


def main(arguments: list[str]) -> None:
    """Follow until the run has its metrics.json, or Ctrl-C."""
    options = tyro.cli(Follow, args=arguments, prog="scene-distill follow")
    from scene_distill.training.listeners import POLL_S, audience
    from scene_distill.training.run_folder import RunFolder

    folder = RunFolder(options.run)
    folder.method()
    if not folder.log.exists() and options.once:
        raise UserError(f"{folder.path} has no log.jsonl yet; leave out --once to wait for it")
    with audience(options.run, options.vis) as heard:
        try:
            while not options.once and not folder.metrics.exists():
                heard.look()
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            say("stopped")
        heard.finish()
    say(f"{' and '.join(options.vis)}: {heard.steps} steps of {folder.path}")
    if "tensorboard" in options.vis:
        say_next(f"tensorboard --logdir {folder.path / 'tensorboard'}", "look at it")
    else:
        say_next(f"wandb sync {folder.path / 'wandb'}/*run-*", "hand offline files to the server")
