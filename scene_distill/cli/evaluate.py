"""`scene-distill eval RUN [--json FILE]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from scene_distill.core.console import say, say_next


@dataclass(frozen=True)
class Evaluate:
    """Measure a run on its held-out views: PSNR and SSIM, raw and colour-corrected."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: Path | None = None
    """Data folder, when it has moved since training."""
    json: Path | None = None
    """Also write the report to this file."""


def main(arguments: list[str]) -> None:
    """Measure, write metrics.json and pictures, print the figures."""
    options = tyro.cli(Evaluate, args=arguments, prog="scene-distill eval")
    from scene_distill.cli.runs import open_run
    from scene_distill.core.files import read_json, write_json
    from scene_distill.export.run_pictures import picture_writer
    from scene_distill.training.evaluation import summary
    from scene_distill.training.loop import evaluate_run

    run = open_run(options.run, options.data)
    kept = ("seconds", "steps", "peak_memory_bytes")
    before = read_json(run.folder.metrics) if run.folder.metrics.exists() else {}
    extra = {key: before[key] for key in kept if key in before}
    save = picture_writer(run.folder.renders)
    report = evaluate_run(run.method, run.folder, run.trained, run.scene, run.images, save, extra)
    if options.json:
        write_json(options.json, report)
    say(summary(report))
    say_next(f"scene-distill export {options.run} --format ply", "a splat file for other programs")
