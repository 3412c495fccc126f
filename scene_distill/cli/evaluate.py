"""`scene-distill eval RUN [--json FILE] [--lpips-weights FILE [FILE]]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from scene_distill.core.console import say, say_next


@dataclass(frozen=True)
class Evaluate:
    """Measure a run on its held-out views: PSNR and SSIM, raw and colour-corrected; LPIPS where its weights are."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    data: Path | None = None
    """Data folder, when it has moved since training."""
    json: Path | None = None
    """Also write the report to this file: figures by view, and the code, data, seed, settings, machine and time they
    come from."""
    lpips_weights: tuple[Path, ...] = ()
    """Weights of LPIPS with AlexNet or VGG-16, which are never downloaded: torchvision's network and the LPIPS
    repository's channel weights (two files), or a saved state of lpips.LPIPS (one)."""


def main(arguments: list[str]) -> None:
    """Measure, write metrics.json and pictures, print the figures."""
    options = tyro.cli(Evaluate, args=arguments, prog="scene-distill eval")
    from scene_distill.cli.runs import data_flag, open_run
    from scene_distill.core.files import check_folder_writable, check_writable, read_json, write_json
    from scene_distill.export.run_pictures import picture_writer
    from scene_distill.training.evaluation import summary
    from scene_distill.training.lpips import load_lpips
    from scene_distill.training.report import report_run

    lpips = load_lpips(options.lpips_weights) if options.lpips_weights else None
    if options.json:
        check_writable(options.json)
    run = open_run(options.run, options.data)
    check_folder_writable(run.folder.path)
    kept = ("seconds", "steps", "peak_memory_bytes", "trained")
    before = read_json(run.folder.metrics) if run.folder.metrics.exists() else {}
    extra = {key: before[key] for key in kept if key in before}
    report = report_run(run, picture_writer(run.folder.renders), extra, lpips)
    if options.json:
        write_json(options.json, report)
    say(summary(report))
    for file in () if lpips is None else lpips.files:
        if not file["published"]:
            say(f"! {file['file']} is none of the files we know; its LPIPS compares only with that of the same file")
    say_next(f"scene-distill compare {options.run} RUN{data_flag(options.data)}", "beside another run, as a page")
