"""`scene-distill text-to-3d "a red chair" --method dreamer-xl ...`."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from scene_distill.cli.flags import taken
from scene_distill.core.configs import load_config
from scene_distill.core.console import say, say_next
from scene_distill.core.errors import UserError
from scene_distill.methods.text_to_3d.registry import TEXT_METHODS, TextMethod, find_text_method

if TYPE_CHECKING:
    from scene_distill.blocks.workers import Workers
    from scene_distill.methods.text_to_3d.config import TextTo3DConfig
    from scene_distill.methods.text_to_3d.generate import MadeObject

USAGE = """usage: scene-distill text-to-3d "a red chair" ["a blue car" ...] [--method NAME] [flags]

  --method NAME        how, see below (default: dreamer-xl); --help after it lists the method's flags
  --prompts-file FILE  more prompts, one a line; lines that begin with # are left out
  --config FILE        settings of a YAML file; flags win
"""

DEFAULT_METHOD = "dreamer-xl"


def main(arguments: list[str]) -> None:
    """Make an object of every prompt: train, write turntables and files, name the next command."""
    prompts, rest = leading_prompts(arguments)
    method_name, rest = taken(rest, "--method")
    prompts_file, rest = taken(rest, "--prompts-file")
    config_file, rest = taken(rest, "--config")
    if not arguments or (not method_name and any(word in ("-h", "--help") for word in rest)):
        print(USAGE)
        print("\n".join(f"  {method.name:<14} {method.description}" for method in TEXT_METHODS.values()))
        return
    method = find_text_method(method_name or method_in(config_file) or DEFAULT_METHOD)
    default = load_config(method.config, Path(config_file)) if config_file else method.default()
    prompts = (*prompts, *(prompts_in(Path(prompts_file)) if prompts_file else ())) or default.prompts
    config = tyro.cli(
        method.config, default=default, args=rest, prog=f"scene-distill text-to-3d PROMPT --method {method.name}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
    if not prompts:
        raise UserError('there is no prompt; say what to make, for example: scene-distill text-to-3d "a red chair"')
    config = replace(config, prompts=tuple(prompts))
    if len(set(prompts)) < len(prompts):
        raise UserError("a prompt is given twice; objects of one prompt differ by --seed")
    make(method, replace(config, output_dir=config.output_dir or default_folder(config, method)))


def leading_prompts(arguments: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The arguments before the first flag, and the rest."""
    first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return tuple(arguments[:first]), list(arguments[first:])


def prompts_in(path: Path) -> tuple[str, ...]:
    """The prompts of a file."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompts in {path}: {error}") from error
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise UserError(f"{path} holds no prompts; write one a line")
    return found


def method_in(config_file: str) -> str:
    """The method that a settings file names; '' where there is none."""
    import yaml

    if not config_file:
        return ""
    try:
        values = yaml.safe_load(Path(config_file).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config file {config_file}: {error}") from error
    return str(values.get("method", "")) if isinstance(values, dict) else ""


def default_folder(config: TextTo3DConfig, method: TextMethod) -> Path:
    """outputs/<prompt>-<method>; with several prompts the first and how many more."""
    from scene_distill.methods.text_to_3d.generate import slug

    more = f"-and-{len(config.prompts) - 1}-more" if len(config.prompts) > 1 else ""
    return Path("outputs") / f"{slug(config.prompts[0])}{more}-{method.name}"


def make(method: TextMethod, config: TextTo3DConfig) -> None:
    """Train on the run's workers; worker 0 writes and tells."""
    from scene_distill.cli.object_gallery import write_run_gallery
    from scene_distill.training.workers import workers_of

    assert config.output_dir is not None
    with workers_of(method.name, config, ("text-to-3d", "--method", method.name)) as workers:
        made = train(method, config, workers)
    for each in made:
        show(each, config)
    if not made:
        return
    say(f"gallery: {write_run_gallery(made, config, method.name, config.output_dir)}")
    say(f"run folder: {config.output_dir}")
    say_next(f"scene-distill view {made[0].folder / viewable(made[0])}", "walk around it in a browser")


def train(method: TextMethod, config: TextTo3DConfig, workers: Workers) -> list[MadeObject]:
    """This worker's part of a run."""
    from scene_distill.methods.text_to_3d.generate import text_to_3d
    from scene_distill.methods.text_to_3d.method import training_device
    from scene_distill.methods.text_to_3d.teachers import cores_of, open_prior
    from scene_distill.methods.text_to_3d.telling import telling
    from scene_distill.training.loop import use_native_threads

    assert config.output_dir is not None
    threads = config.threads or workers.place.cores
    use_native_threads(threads)
    prior = open_prior(config, training_device(), cores_of(threads))
    total, started = config.iterations * len(config.prompts), time.perf_counter()
    with telling(config.prompts, total) as teller:
        made = text_to_3d(method, config, config.prompts, prior, config.output_dir, teller.hear, workers)
    if workers.rank == 0:
        say(f"trained {len(made)} object{'s' * (len(made) != 1)} in {time.perf_counter() - started:.0f} s")
    return made


def show(made: MadeObject, config: TextTo3DConfig) -> None:
    """Write an object's files and say where they are."""
    from scene_distill.cli.object_film import write_film
    from scene_distill.export.object_files import write_object

    if not made.finite:
        say(f"{made.prompt}: diverged, some numbers are not finite; try a lower --guidance or another --seed")
        return
    written = write_object(made, f"'{made.prompt}', prior {config.prior}")
    if shutil.which("ffmpeg") is not None:
        written.append(made.folder / "turntable.mp4")
        write_film(made.trained, written[-1])
    names = ", ".join(path.name for path in written)
    say(f"{made.prompt}: {made.folder} ({names}; {made.evaluations} evaluations of the prior)")


def viewable(made: MadeObject) -> str:
    """The file of an object that the viewer opens."""
    return "object.ply" if (made.folder / "object.ply").exists() else "object.glb"
