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
    """Write a run as a splat file: neural colours are baked to spherical harmonics, in world frame and scale."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    format: Literal["ply", "splat"] = "ply"
    """ply: the standard 3DGS file; splat: 32 bytes a splat, no view-dependent colour."""
    output: Path | None = None
    """File to write; default: exports/scene.<format> in the run folder."""
    refine: int = 200
    """Steps that fit the baked splats to the neural scene's renders; 0 leaves the plain bake."""
    data: Path | None = None
    """Data folder, when it has moved since training."""


def main(arguments: list[str]) -> None:
    """Bake, measure what the bake costs, and write the file."""
    options = tyro.cli(Export, args=arguments, prog="scene-distill export")
    import torch

    from scene_distill.cli.runs import open_run
    from scene_distill.export import read_splats, write_splats
    from scene_distill.export.bake import bake_report
    from scene_distill.export.metadata import SplatMetadata
    from scene_distill.renderers.splat import render

    run = open_run(options.run, options.data)
    splats = bake(run, options.refine)
    path = options.output or run.folder.path / "exports" / f"scene.{options.format}"
    origin = torch.as_tensor(run.trained.origin, dtype=torch.float32)
    write_splats(replace(splats, means=splats.means + origin), path, SplatMetadata.of_scene(run.scene))
    written = read_splats(path)[0]
    written = replace(written, means=written.means - origin)
    frames = run.scene.test_frames or run.scene.frames
    views = [(run.images.camera(f).moved(run.trained.origin), f) for f in frames]
    report = bake_report(
        lambda camera: run.trained.render(camera.moved(-run.trained.origin)).image,
        lambda camera: render(written.gaussians(camera), camera).image,
        [(camera, run.images.get(frame).to(torch.float32) / 255.0) for camera, frame in views],
    )
    size = path.stat().st_size
    say(f"{path}: {len(written)} splats, {size / 1e6:.1f} MB")
    say(
        f"bake: PSNR {report.neural_psnr:.2f} dB neural, {report.baked_psnr:.2f} dB from the file "
        f"(loss {report.psnr_loss:.2f} dB) on {report.views} views; "
        f"file against neural {report.baked_to_neural_psnr:.2f} dB"
    )
    say_next(f"scene-distill render {options.run} --views all", "pictures of every view")


def bake(run: OpenRun, refine: int) -> Splats:
    """Splats of a run in its training frame, fitted to its renders for ``refine`` steps."""
    from scene_distill.export.bake import bake_sh
    from scene_distill.export.refine import RefineSettings, refine_bake

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
