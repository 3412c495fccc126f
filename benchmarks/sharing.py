"""Does the shared decoder with its momentum teacher help? Independent blocks, Momentum-GS and one single model.

    python benchmarks/sharing.py [--data DIR] [--image-width 200] [--blocks 8] [--steps 3200] [--seeds 3]

All arms get the same total number of steps, the same resolution and the same code; they differ only in what the
arm's flags
say. Figures go to benchmarks/results/sharing.json after every run, the table to docs/sharing.md at the end.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from campaign import ROOT, Campaign, shared_data

ARMS = {
    "independent blocks": ["--no-share-decoder", "--halo", "private", "--consistency", "0"],
    "shared decoder": ["--halo", "private", "--consistency", "0", "--weighting", "none"],
    "Momentum-GS": ["--halo", "private"],
    "shared halo": [],
    "single model": [],
}

READING = [
    "- *independent blocks*: every block has a decoder of its own, no teacher; merged by cells like the others.",
    "- *shared decoder*: one decoder, no teacher, no block weights.",
    "- *Momentum-GS*: shared decoder, momentum teacher, consistency loss, block weights.",
    "- *shared halo*: the defaults: the same, and blocks train each other's anchors where their views overlap.",
    "- *single model*: one block; it is what blocks are measured against as long as the scene fits in memory.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--image-width", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3200, help="total steps of every arm")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = options.data or shared_data() / "aerial_sheffield"
    campaign = Campaign(ROOT / "benchmarks" / "results" / "sharing.json")
    for seed in range(options.seeds):
        for arm, flags in ARMS.items():
            blocks = 1 if arm == "single model" else options.blocks
            name = f"{data.name}/{options.image_width}px/{options.steps}/{options.blocks}/{arm}/{seed}"
            arguments = ["momentum-gs", "--data", str(data), "--blocks", str(blocks), "--seed", str(seed)]
            arguments += ["--iterations", str(options.steps // blocks), "--image-width", str(options.image_width)]
            campaign.run(name, [*arguments, *flags], ROOT / "outputs" / "sharing" / name.replace(" ", "-"))
            write_table(campaign, options, data.name)


def write_table(campaign: Campaign, options: argparse.Namespace, data: str) -> None:
    rows = []
    for arm in ARMS:
        prefix = f"{data}/{options.image_width}px/{options.steps}/{options.blocks}/{arm}/"
        runs = [value for name, value in campaign.results.items() if name.startswith(prefix)]
        if runs:
            rows.append(f"| {arm} | {len(runs)} | " + " | ".join(figures(runs)) + " |")
    head = [
        "# Does sharing help?",
        "",
        f"`python benchmarks/sharing.py` on {data}, {options.blocks} blocks ({options.steps} steps in all for every "
        f"arm), {options.image_width} px wide, CPU. Mean ± sample deviation over seeds; raw first.",
        "",
        "| arm | seeds | PSNR raw | SSIM raw | PSNR corrected | anchors | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    (ROOT / "docs" / "sharing.md").write_text("\n".join([*head, *rows, "", *READING]) + "\n")


def figures(runs: list[dict]) -> list[str]:
    def cell(values: list[float], digits: int) -> str:
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}"

    results = [run["results"] for run in runs]
    return [
        cell([r["psnr"] for r in results], 2),
        cell([r["ssim"] for r in results], 3),
        cell([r["psnr_corrected"] for r in results], 2),
        f"{statistics.fmean(run['primitives'] for run in runs):,.0f}",
        f"{statistics.fmean(run['seconds'] for run in runs):.0f}",
    ]


if __name__ == "__main__":
    main()
