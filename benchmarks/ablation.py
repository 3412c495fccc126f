"""What each part of Momentum-GS is worth: one switch at a time, on the aerial scene, the same steps for everybody.

    python benchmarks/ablation.py              # 200 px, 480 steps, three seeds, then one seed on the procedural city
    python benchmarks/ablation.py --headline   # independent blocks, the plain paper, ours at 395 px
    python benchmarks/ablation.py --part 1 2   # the first of two halves, for two processes side by side

A JSON is written after every run (benchmarks/results/ablation.json) and the tables of docs/ablation.md with it; a
campaign that was stopped continues with the same command. The main arms come first, then seed by seed the others.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from campaign import ROOT, Campaign, shared_data

PAPER = ["--halo", "private", "--consistency", "50", "--attach-teacher", "--quaternion-loss", "plain"]
PAPER += ["--block-order", "contiguous"]

PAPER_RATES = ["--lr-offsets", "0.01", "0.0001", "--lr-features", "0.0075", "0.0075", "--lr-scales", "0.007", "0.007"]
PAPER_RATES += ["--lr-until", "0.5"]

HEADLINE: dict[str, list[str]] = {
    "independent blocks": ["--halo", "private", "--no-share-decoder", "--consistency", "0"],
    "plain paper": PAPER,
    "ours": [],
}

SETTINGS: dict[str, list[str]] = HEADLINE | {
    "one block": ["--blocks", "1"],
    "no teacher": ["--consistency", "0"],
    "private halo": ["--halo", "private"],
    "copies as far as alone": ["--copies-rate", "0"],
    "seam finish": ["--halo", "private", "--seam-finish", "0.2"],
    "no block weights": ["--weighting", "none"],
    "lambda_c 50": ["--consistency", "50"],
    "paper's rates": PAPER_RATES,
    "teacher per visit": ["--teacher-clock", "visit"],
    "attached teacher": ["--attach-teacher"],
    "memory": ["--memory", "2"],
    "exposure fitted": ["--exposure", "0.01"],
    "contiguous order": ["--block-order", "contiguous"],
    "distance inputs": ["--add-opacity-dist", "--add-cov-dist", "--add-color-dist"],
    "feature bank": ["--use-feat-bank"],
    "appearance vectors": ["--appearance-dim", "16"],
    "level of detail": ["--level-of-detail", "0.25"],
}
"""At most 20, each the defaults with the flags given here."""

COLUMNS = ("PSNR raw", "SSIM raw", "PSNR corrected", "seam ratio", "anchors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--headline", action="store_true", help="the three main arms only, 395 px, 3200 steps")
    parser.add_argument("--image-width", type=int)
    parser.add_argument("--steps", type=int, help="total steps of every run, shared out among the blocks")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--part", type=int, nargs=2, default=(1, 1), metavar=("I", "N"), help="every N-th run from the I-th"
    )
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), help="some of the settings")
    options = parser.parse_args()
    options.image_width = options.image_width or (395 if options.headline else 200)
    options.steps = options.steps or (3200 if options.headline else 480)
    rest = [] if options.headline else [name for name in SETTINGS if name not in HEADLINE]
    groups = [options.only] if options.only else [list(HEADLINE), rest]
    campaign = Campaign(ROOT / "benchmarks" / "results" / "ablation.json")
    aerial = shared_data() / "aerial_sheffield"
    runs = [(aerial, name, seed) for names in groups for seed in range(options.seeds) for name in names]
    if not options.headline:
        runs += [(procedural_city(), name, 0) for name in options.only or SETTINGS]
    part, parts = options.part
    for data, name, seed in runs[part - 1 :: parts]:
        run(campaign, data, name, seed, options)


def run(campaign: Campaign, data: Path, name: str, seed: int, options: argparse.Namespace) -> None:
    """Train one setting with one seed unless it is done, and write the tables anew."""
    flags = SETTINGS[name]
    blocks = 1 if name == "one block" else options.blocks
    key = f"{data.name}/{options.image_width}px/{options.steps}/{options.blocks}/{name}/{seed}"
    arguments = ["momentum-gs", "--data", str(data), "--blocks", str(blocks), "--seed", str(seed)]
    arguments += ["--iterations", str(options.steps // blocks), "--image-width", str(options.image_width)]
    arguments += ["--visits", "20" if options.headline else "10", "--max-memory", "6GB"]  # blocks stay in RAM
    arguments += [] if name == "one block" else flags
    campaign.run(key, arguments, ROOT / "outputs" / "ablation" / key.replace(" ", "-"))
    (ROOT / "docs" / "ablation.md").write_text(tables(campaign.results))


def procedural_city() -> Path:
    """The self-made town, made on first use."""
    folder = ROOT / "outputs" / "ablation" / "city_demo"
    if not (folder / "scene_info.json").exists():
        command = [sys.executable, "-m", "scene_distill", "data", "city", str(folder), "--recipe", "city_demo"]
        subprocess.run(command, check=True, cwd=ROOT)
    return folder


def tables(results: dict[str, Any]) -> str:
    """The page with one table for each scene, size and length that was run."""
    groups: dict[tuple[str, ...], dict[str, list[dict]]] = {}
    for key, report in results.items():
        *group, name, _ = key.split("/")
        groups.setdefault(tuple(group), {}).setdefault(name, []).append(report)
    lines = ["# What each part of Momentum-GS is worth", "", *READING]
    for (data, width, steps, blocks), settings in groups.items():
        lines += ["", f"## {data}, {width}, {steps} steps in all, {blocks} blocks", ""]
        lines += ["| setting | seeds | " + " | ".join(COLUMNS) + " | against ours |", "|---" * (len(COLUMNS) + 3) + "|"]
        for name in (name for name in SETTINGS if name in settings):
            gain = against(settings[name], settings.get("ours", []))
            lines.append(f"| {name} | {len(settings[name])} | " + " | ".join(figures(settings[name])) + f" | {gain} |")
    return "\n".join(lines) + "\n"


READING = [
    "`python benchmarks/ablation.py`; every row is the defaults (*ours*) with the switches that `SETTINGS` in that",
    "file names. Mean ± sample deviation over seeds, raw metrics first; *against ours*: difference of mean raw PSNR",
    "over the seeds that both have. Equal total steps, equal resolution, one machine for all rows of a table.",
    "",
    "- *independent blocks*: a decoder for every block, no teacher, private halos; merged by cells like the others.",
    "- *plain paper*: shared decoder, attached teacher with lambda_c 50, plain quaternion loss, blocks in cell order,",
    "  private halos.",
    "- *ours*: the defaults. *one block*: the same with a single block, which has no seams and needs all the memory.",
    "",
    "What is said about short runs holds for short runs: the paper trains 30,000 steps and more per block. Rows within",
    "0.1 dB of ours are not told apart by three seeds.",
]


def figures(runs: list[dict]) -> list[str]:
    """The cells of a row."""

    def cell(values: list[float], digits: int) -> str:
        if len(values) < len(runs):
            return "–"
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{digits}f}{spread}"

    results = [run["results"] for run in runs]
    return [
        cell([r["psnr"] for r in results], 2),
        cell([r["ssim"] for r in results], 3),
        cell([r["psnr_corrected"] for r in results], 2),
        cell([r["seam_ratio"] for r in results if "seam_ratio" in r], 3),
        f"{statistics.fmean(run['primitives'] for run in runs):,.0f}",
    ]


def against(runs: list[dict], ours: list[dict]) -> str:
    """Mean difference of raw PSNR in dB over the seeds that both have."""
    pairs = list(zip(runs, ours, strict=False))
    if not pairs or runs is ours:
        return "–"
    return f"{statistics.fmean(a['results']['psnr'] - b['results']['psnr'] for a, b in pairs):+.2f}"


if __name__ == "__main__":
    main()
