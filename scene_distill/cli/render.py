"""`scene-distill render RUN [--views test|train|all] [--tint-blocks]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scene_distill.core.console import progress, say, say_next
from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.cli.runs import OpenRun
    from scene_distill.core.cameras import Camera
    from scene_distill.renderers.splat import Rendering


@dataclass(frozen=True)
class Render:
    """Write a run's pictures: for every view the render beside its photo, their difference and the depth."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    views: Literal["test", "train", "all"] = "test"
    """Which of the scene's views."""
    tint_blocks: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw what came from each block in a tint of its own."""
    data: Path | None = None
    """Data folder, when it has moved since training."""
    output_dir: Path | None = None
    """Folder for the pictures; default: renders/ in the run folder."""


def main(arguments: list[str]) -> None:
    """Render views of a run to PNG files."""
    options = tyro.cli(Render, args=arguments, prog="scene-distill render")
    import torch

    from scene_distill.cli.runs import data_flag, open_run
    from scene_distill.core.files import check_folder_writable
    from scene_distill.export.run_pictures import picture_writer

    if options.output_dir:
        check_folder_writable(options.output_dir)
    run = open_run(options.run, options.data)
    scene = run.scene
    draw = tinted(run) if options.tint_blocks else partial(run.trained.render, with_depth=True)
    frames = {"test": scene.test_frames, "train": scene.train_frames, "all": scene.frames}[options.views]
    folder = options.output_dir or run.folder.renders
    check_folder_writable(folder)
    write = picture_writer(folder)
    with progress("rendering", len(frames)) as meter:
        for done, frame in enumerate(frames, 1):
            photo = run.images.get(frame).to(torch.float32) / 255.0
            write(frame, draw(run.images.camera(frame)), photo)
            meter.update(done)
    say(f"{len(frames)} views written to {folder}")
    again = f"{options.run} --format ply{data_flag(options.data)}"
    say_next(f"scene-distill export {again}", "a splat file for other programs")


def tinted(run: OpenRun) -> Callable[[Camera], Rendering]:
    """The function that draws a run's blocks in tints; raises `UserError` when its scene does not know them."""
    from scene_distill.training.evaluation import BlockwiseScene

    if not isinstance(run.trained, BlockwiseScene):
        raise UserError(f"{run.folder.path}: a {run.method} scene does not record blocks; leave out --tint-blocks")
    return run.trained.render_tinted
