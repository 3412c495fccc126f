"""`scene-distill compare RUN RUN ... [--output FILE.html]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from scene_distill.core.console import progress, say, say_next
from scene_distill.core.errors import UserError


@dataclass(frozen=True)
class Compare:
    """Measure runs, of any methods, on the same held-out views and write one page about them that opens offline."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; the others are compared with the first."""
    output: Path = Path("comparison.html")
    """The page to write."""
    data: Path | None = None
    """Data folder, when it has moved since training."""
    pictures: int = 12
    """Views that are shown; figures are always of all."""
    width: int = 1000
    """Pixels in width above which shown pictures are shrunk."""
    lpips_weights: tuple[Path, ...] = ()
    """Weights of LPIPS, as for eval."""


def main(arguments: list[str]) -> None:
    """Measure, write the page, print the figures."""
    options = tyro.cli(Compare, args=arguments, prog="scene-distill compare")
    if not options.runs:
        raise UserError("name at least one run folder to compare")
    if options.pictures < 1 or options.width < 1:
        raise UserError("--pictures and --width are at least 1")
    from scene_distill.cli.runs import open_run
    from scene_distill.core.files import check_writable
    from scene_distill.export.report_compare import write_comparison
    from scene_distill.training.comparison import compare, labels, refuse_other_views
    from scene_distill.training.lpips import load_lpips
    from scene_distill.training.report import Measured

    labels(options.runs)
    check_writable(options.output)
    lpips = load_lpips(options.lpips_weights) if options.lpips_weights else None
    opened: list[Measured] = []
    for path in options.runs:
        opened.append(open_run(path, options.data, opened))
    refuse_other_views(opened)
    runs = compare(opened, lpips, lambda label: say(f"measuring {label}"))
    with progress("drawing", min(options.pictures, len(runs[0].found.per_view))) as meter:
        write_comparison(options.output, runs, options.pictures, options.width, meter.update)
    for run in runs:
        psnr, against, results = run.interval("psnr"), run.against(runs[0], "psnr"), run.found.results
        paired = f"; against the first {against.mean:+.2f} [{against.low:+.2f}, {against.high:+.2f}]"
        say(
            f"{run.label}: PSNR {psnr.mean:.2f} dB raw [{psnr.low:.2f}, {psnr.high:.2f}] "
            f"({results['psnr_corrected']:.2f} colour-corrected), SSIM {results['ssim']:.4f}"
            + (paired if run is not runs[0] else "")
        )
    say(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB, one file")
    say_next(f"xdg-open {options.output}", "look at it in a browser, offline too")
