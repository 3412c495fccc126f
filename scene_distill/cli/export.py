"""`scene-distill export RUN --format ply|splat`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import tyro

from scene_distill.core.console import progress, say, say_next

if TYPE_CHECKING:
    from scene_distill.cli.runs import OpenRun
    from scene_distill.representations.splats import Splats
    from scene_distill.training.evaluation import BakeableScene


@dataclass(frozen=True)
class Export:
    """Write a run as a splat file, in world frame and scale: neural colours are baked to spherical harmonics, scenes
    that are splats go out as they are."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    format: tuple[Literal["ply", "splat"], ...] = ("ply",)
    """One or several of ply (the standard 3DGS file) and splat (32 bytes a splat, no view-dependent colour)."""
    output_dir: Path | None = None
    """Folder for scene.<format>; default: exports/ in the run folder."""
    refine: int = 200
    """Steps that fit baked splats to the neural scene's renders; 0 leaves the plain bake."""
    data: Path | None = None
    """Data folder, when it has moved since training."""


def main(arguments: list[str]) -> None:
    """Bake, write the files, and measure what each costs against the run."""
    options = tyro.cli(Export, args=arguments, prog="scene-distill export")
    import torch

    from scene_distill.cli.runs import open_run
    from scene_distill.export import write_splats
    from scene_distill.export.metadata import SplatMetadata

    run = open_run(options.run, options.data)
    splats = bake(run, options.refine)
    world = replace(splats, means=splats.means + torch.as_tensor(run.trained.origin, dtype=torch.float32))
    for kind in options.format:
        path = (options.output_dir or run.folder.path / "exports") / f"scene.{kind}"
        write_splats(world, path, SplatMetadata.of_scene(run.scene))
        say(measured(run, path))
    say_next(f"scene-distill render {options.run} --views all", "pictures of every view")


def measured(run: OpenRun, path: Path) -> str:
    """What a splat file holds, and the PSNR it has lost against the run on the held-out views."""
    import torch

    from scene_distill.export import read_splats
    from scene_distill.export.bake import bake_report
    from scene_distill.renderers.splat import render

    origin = run.trained.origin
    splats = read_splats(path)[0]
    splats = replace(splats, means=splats.means - torch.as_tensor(origin, dtype=torch.float32))
    frames = run.scene.test_frames or run.scene.frames
    report = bake_report(
        lambda camera: run.trained.render(camera.moved(-origin)).image,
        lambda camera: render(splats, camera).image,
        [(run.images.camera(f).moved(origin), run.images.get(f).to(torch.float32) / 255.0) for f in frames],
    )
    return (
        f"{path}: {len(splats)} splats, {path.stat().st_size / 1e6:.1f} MB\n"
        f"file: PSNR {report.neural_psnr:.2f} dB from the run, {report.baked_psnr:.2f} dB from the file "
        f"(loss {report.psnr_loss:.2f} dB) on {report.views} views; "
        f"file against run {report.baked_to_neural_psnr:.2f} dB"
    )


def bake(run: OpenRun, refine: int) -> Splats:
    """Splats of a run in its training frame, fitted to its renders for ``refine`` steps; as they are when the run
    already is splats."""
    from scene_distill.export.bake import bake_sh
    from scene_distill.export.refine import RefineSettings, refine_bake
    from scene_distill.training.evaluation import SplatScene

    if isinstance(run.trained, SplatScene):
        return run.trained.splats()
    trained = cast("BakeableScene", run.trained)
    cameras = [run.images.camera(frame).moved(trained.origin) for frame in run.scene.train_frames]
    with progress("baking", len(trained)) as meter:
        splats = bake_sh(trained.slots, trained.anchor_positions, cameras, report=lambda d, _: meter.update(d))
    if refine == 0:
        return splats
    with progress("refining", refine) as meter:
        return refine_bake(
            splats, cameras, lambda camera: trained.render(camera.moved(-trained.origin)).image,
            RefineSettings(steps=refine), report=lambda step, loss: meter.update(step, f"loss {loss:.4f}"),
        )  # fmt: skip
