"""R-precision of Dreamer XL and Consistent3D on 24 held-out captions, two seeds: best and published switches.

    python benchmarks/text_to_3d_precision.py              # --part 1 2 and --part 2 2 for two processes side by side
    python benchmarks/text_to_3d_precision.py --table      # the page from what is there

At table size, 32 pixels and 400 steps, a run takes about a minute of one core.

Captions name pairs of colour and object that the prior was never trained on; every second one names a coloured part.
Best switches: the methods' defaults. Published: those of configs/<method>_published.yaml that are not a matter of size
(`OF_SIZE`: the toy world's pictures, cameras and step counts stay). Beside them the ceiling (the judge on pictures
sampled from the prior for the same captions and views), the toys themselves, and chance. A JSON is written after every
run, and docs/text_to_3d_precision.md with it; a campaign that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from campaign import ROOT, Campaign
from text_to_3d_runs import (
    LEGEND,
    add_bench_flags,
    common,
    is_done,
    mine,
    open_bench,
    places,
    references,
    run,
    setting_of,
    table,
)

from scene_distill.core.configs import from_plain
from scene_distill.core.errors import UserError
from scene_distill.core.seeds import numpy_generator
from scene_distill.data.captioned_shapes import COLOR_NAMES, Toy, pairs
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.methods.text_to_3d.registry import TextMethod, find_text_method
from scene_distill.training.confidence import mean_interval

METHODS = ("dreamer-xl", "consistent3d")
SWITCHES = ("best", "published")

OF_SIZE = frozenset(
    (
        "method", "prior", "prior_path", "prior_batch", "prior_precision", "negative", "iterations", "views",
        "image_size", "visits", "lanes", "workers", "threads", "seed", "distance", "elevation", "field_of_view",
        "zoom_every", "overhead", "background", "camera_jitter", "start", "start_path", "start_count", "start_radius",
        "largest_start", "growth_limit", "growth_gradient", "split_size", "max_size", "max_screen", "resolutions",
        "first_levels", "radius", "step", "cells", "supersampling", "negligible", "refine_image_size",
        "refine_field_of_view", "lr_means", "lr_colors", "lr_opacities", "lr_scales", "lr_rotations", "lr_density",
        "lr_surface", "lr_offsets", "tv", "tv_depth", "size_loss", "opacity_loss", "bounds",
        "opacity_resets", "density_scale", "blob_scale", "blob_std", "iso_density", "normal_consistency", "laplacian",
        "sign_agreement", "orientation",
    )
)  # fmt: skip
"""Fields that fit a method to its prior's pictures, to 600 steps instead of thousands, and to the machine: sizes,
learning rates, weights of regularisers. Both settings take the toy world's."""

TARGET, MOST_DIVERGED = 0.80, 0.05


def captions(count: int) -> tuple[str, ...]:
    """Held-out captions, always the same: every second one with a coloured part."""
    draw = numpy_generator(0, "held-out captions")
    held_out = [pairs("held_out")[i] for i in draw.permutation(len(pairs("held_out")))][:count]
    found = []
    for number, (color, shape) in enumerate(held_out):
        others = [name for name in COLOR_NAMES if name != color]
        part = others[int(draw.integers(len(others)))] if number % 2 else None
        found.append(Toy(color, shape, part).caption())
    return tuple(found)


def setting(name: str, switches: str) -> tuple[TextMethod, TextTo3DConfig]:
    """A method with its best or its published switches, at the toy world's size."""
    method = find_text_method(name)
    if switches == "best":
        return method, method.default()
    path = ROOT / "configs" / f"{name.replace('-', '_')}_published.yaml"
    if not path.exists():
        raise UserError(f"{path.name} is missing in configs; restore it to measure published switches")
    values = {field: value for field, value in yaml.safe_load(path.read_text()).items() if field not in OF_SIZE}
    return method, from_plain(method.config, {**method.defaults, **values}, path.name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_bench_flags(parser)
    parser.add_argument("--captions", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=400, help="steps of an object")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--switches", nargs="+", choices=SWITCHES, default=SWITCHES)
    parser.add_argument("--table", action="store_true", help="no run, the page only")
    options = parser.parse_args(arguments)
    results, page = places(options, "text_to_3d_precision")
    campaign, asked = Campaign(results), captions(options.captions)
    if not options.table:
        bench = open_bench(options, setting("dreamer-xl", "best")[1], asked)
        references(campaign, options.prior, asked, bench)
        for name, switches, prompt, seed in runs(options, asked):
            key = f"{options.prior}/{name}, {switches}/{prompt}/{seed}"
            method, config = sized(name, switches, seed, options)
            if not is_done(campaign, key, setting_of(method, config, bench)):
                campaign.keep(key, run(method, config, prompt, bench, key) | {"seed": seed})
                write(campaign, page, options)
                print(key, campaign.results[key], flush=True)
    write(campaign, page, options)
    print(page.read_text())


def runs(options: argparse.Namespace, asked: Sequence[str]) -> list[tuple[str, str, str, int]]:
    """This part's runs: best switches first, seed by seed."""
    pairs = mine([(seed, prompt) for seed in range(options.seeds) for prompt in asked], options.part)
    return [(name, switches, prompt, seed) for switches in options.switches for seed, prompt in pairs
            for name in options.methods]  # fmt: skip


def sized(name: str, switches: str, seed: int, options: argparse.Namespace) -> tuple[TextMethod, TextTo3DConfig]:
    """A setting at this campaign's size."""
    method, config = setting(name, switches)
    size = {"image_size": options.image_size, "iterations": options.iterations}
    return method, replace(config, seed=seed, visits=1, **size, **common(options))


def write(campaign: Campaign, page: Path, options: argparse.Namespace) -> None:
    """The page, from the runs that are done."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text_of(campaign.results, options))


def text_of(results: dict[str, Any], options: argparse.Namespace) -> str:
    """The page as Markdown."""
    names = [f"{name}, {switches}" for name in METHODS for switches in SWITCHES]
    arms: dict[str, list[dict[str, Any]]] = {name: [] for name in (*names, "the toy itself", "samples of the prior")}
    for key, row in results.items():
        prior, arm, prompt, _ = key.split("/")
        if prior == options.prior:
            arms.setdefault(arm, []).append(row | {"prompt": prompt})
    done = sum(len(arms[name]) for name in names)
    sampled, all_of_them = next(iter(arms["samples of the prior"]), {}), len(names) * options.captions * options.seeds
    parts = [
        "# R-precision on held-out captions",
        f"`python benchmarks/text_to_3d_precision.py` makes this page. {done} of {all_of_them} runs: "
        f"{options.captions} captions of pairs of colour and object that the {options.prior} prior was never trained "
        f"on, {options.seeds} seeds.",
        LEGEND,
        table(arms, "method, switches"),
        "\n".join(verdict(name, arms[name], sampled) for name in names if arms[name]) or "No runs yet.",
        "## Caption by caption",
        by_caption({name: arms[name] for name in names if arms[name]}),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(name: str, rows: Sequence[dict[str, Any]], sampled: dict[str, Any]) -> str:
    """One line: the figure against its goal, its ceiling and chance."""
    found = mean_interval([row["r_precision"] for row in rows])
    diverged = sum(row["diverged"] for row in rows) / len(rows)
    reached = "reached" if found.mean >= TARGET and diverged <= MOST_DIVERGED else "missed"
    beside = f"ceiling {100 * sampled['r_precision']:.1f} %, chance {100 * sampled['chance']:.1f} %" if sampled else ""
    goal = f"{100 * TARGET:.0f} % with at most {100 * MOST_DIVERGED:.0f} % diverged"
    return (
        f"- **{name}**: {100 * found.mean:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}] over {len(rows)} "
        f"objects ({beside}); {100 * diverged:.1f} % diverged. Goal {goal}: {reached}."
    )


def by_caption(arms: dict[str, list[dict[str, Any]]]) -> str:
    """R-precision of views by caption, mean over seeds."""
    asked = sorted({row["prompt"] for rows in arms.values() for row in rows})
    lines = ["| caption | " + " | ".join(arms) + " |", "|---|" + "---|" * len(arms)]
    for prompt in asked:
        cells = []
        for rows in arms.values():
            mine = [row["r_precision"] for row in rows if row["prompt"] == prompt]
            cells.append(f"{100 * sum(mine) / len(mine):.0f} %" if mine else "–")
        lines.append(f"| {prompt} | {' | '.join(cells)} |")
    return "\n".join(lines) if asked else "No runs yet."


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
