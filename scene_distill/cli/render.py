"""`scene-distill render RUN [--views test|train|all]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from scene_distill.core.console import progress, say, say_next


@dataclass(frozen=True)
class Render:
    """Write a run's pictures: for every view the render beside its photo, their difference and the depth."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    views: Literal["test", "train", "all"] = "test"
    """Which of the scene's views."""
    data: Path | None = None
    """Data folder, when it has moved since training."""
    output_dir: Path | None = None
    """Folder for the pictures; default: renders/ in the run folder."""


def main(arguments: list[str]) -> None:
    """Render views of a run to PNG files."""
    options = tyro.cli(Render, args=arguments, prog="scene-distill render")
    import torch

    from scene_distill.cli.runs import open_run
    from scene_distill.export.run_pictures import picture_writer

    run = open_run(options.run, options.data)
    scene = run.scene
    frames = {"test": scene.test_frames, "train": scene.train_frames, "all": scene.frames}[options.views]
    folder = options.output_dir or run.folder.renders
    write = picture_writer(folder)
    with progress("rendering", len(frames)) as meter:
        for done, frame in enumerate(frames, 1):
            photo = run.images.get(frame).to(torch.float32) / 255.0
            write(frame, run.trained.render(run.images.camera(frame), with_depth=True), photo)
            meter.update(done)
    say(f"{len(frames)} views written to {folder}")
    say_next(f"scene-distill export {options.run} --format ply", "a splat file for other programs")
