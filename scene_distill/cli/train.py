"""`scene-distill train METHOD --data DIR ...`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from scene_distill.cli.flags import taken
from scene_distill.core.configs import RunConfig, load_config
from scene_distill.core.console import command_without, say, say_next
from scene_distill.core.errors import UserError
from scene_distill.export.run_pictures import picture_writer
from scene_distill.methods import METHODS, MethodEntry, find_method

if TYPE_CHECKING:
    from scene_distill.blocks.workers import Workers


def main(arguments: list[str]) -> None:
    """Train a method, then evaluate it and write its held-out renders; --vis names who listens to its log."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: scene-distill train METHOD --data DIR [flags]\n")
        print("\n".join(f"  {entry.name:<14} {entry.description}" for entry in METHODS.values()))
        if arguments and arguments[0] in ("-h", "--help"):
            return
        raise UserError(f"name a method first: {', '.join(METHODS)}")
    entry = find_method(arguments[0])
    arguments, listeners = take_listeners(arguments[1:])
    train(entry, parse_config(entry, arguments), listeners)


def take_listeners(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The other arguments, and the names after --vis (separated by spaces, commas or '+'), whose programs are there."""
    from scene_distill.training.listeners import LISTENERS, check_listeners

    rest, names, taking, asked = [], list[str](), False, False
    for argument in arguments:
        flag, _, value = argument.partition("=")
        taking = flag == "--vis" or (taking and not argument.startswith("-"))
        if not taking:
            rest.append(argument)
            continue
        asked = True
        names += [name for name in re.split(r"[,+]", value if flag == "--vis" else argument) if name]
    if asked and not names:
        raise UserError(f"--vis needs a name: {', '.join(LISTENERS)}")
    check_listeners(names)
    return rest, tuple(dict.fromkeys(names))


def parse_config(entry: MethodEntry, arguments: list[str]) -> RunConfig:
    """The config from flags; with --config FILE the file's values are the defaults."""
    file, arguments = taken(arguments, "--config")
    default = load_config(entry.config, Path(file)) if file else entry.config()
    return tyro.cli(
        entry.config, default=default, args=arguments, prog=f"scene-distill train {entry.name} [--config FILE.yaml]",
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip


def train(entry: MethodEntry, config: RunConfig, listeners: tuple[str, ...] = ()) -> None:
    """Train as configured; prints figures and the next command. Under torchrun every worker gets here."""
    from scene_distill.training.workers import workers_of

    with workers_of(entry.name, config) as workers:
        train_on(workers, entry, config, listeners)


def train_on(workers: Workers, entry: MethodEntry, config: RunConfig, listeners: tuple[str, ...] = ()) -> None:
    """This worker's part of a run; worker 0 also merges, evaluates and tells; ``listeners`` follow its log."""
    from scene_distill.training.estimates import plan_text
    from scene_distill.training.evaluation import summary
    from scene_distill.training.listeners import POLL_S, audience
    from scene_distill.training.loop import prepare

    training = prepare(entry.name, config, entry.build, workers)
    if config.dry_run:
        say(plan_text(training))
        say_next(command_without("--dry-run"), "the same without --dry-run")
        return
    training.begin()
    if workers.rank > 0:
        training.help_train()
        return
    folder = training.folder
    with audience(folder.path, listeners) as heard:
        merged = training.train(lambda step: heard.look(POLL_S))
        report = training.evaluate(merged, picture_writer(folder.renders))
        heard.finish()
    say(summary(report))
    say(f"run folder: {folder.path}")
    say_next(f"scene-distill export {folder.path} --format ply", "a splat file for other programs")
