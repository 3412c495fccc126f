"""Score-distillation methods on equal terms, at table size: five prompts, three seeds, Gaussians at 32 pixels.

    python benchmarks/text_to_3d_ablation.py               # everything, one run after another
    python benchmarks/text_to_3d_ablation.py --part 1 2    # the first of two halves, for two processes side by side
    python benchmarks/text_to_3d_ablation.py --table       # the page from what is there

Groups: every method on equal terms (`text_to_3d_runs`: levels, guidance, evaluations, gradient size); ISM at TSM's
interval t - mu and from the cleanest level, and TSM with the code's gamma; view words interpolated; CDS with fixed,
per-view and fresh noise; clips under simulated spikes; every method with its published levels and guidance. A JSON is
written after every run (benchmarks/results/text_to_3d_ablation.json) and docs/text_to_3d_ablation.md with it; a
campaign that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from campaign import Campaign
from text_to_3d_runs import (
    COLUMNS,
    LEGEND,
    SIZE,
    add_bench_flags,
    common,
    is_done,
    mine,
    open_bench,
    places,
    references,
    retimed,
    run,
    setting_of,
    steps_of,
    table,
)

from scene_distill.core.errors import UserError
from scene_distill.methods.dreamer_xl.config import DreamerXLConfig
from scene_distill.methods.text_to_3d.registry import TextMethod, find_text_method
from scene_distill.training.confidence import paired_interval

PROMPTS = (
    "a red chair", "a blue car", "a yellow duck", "a purple robot with white arms", "a pink house with blue roof",
    "a green teapot", "an orange rocket", "a white snowman with red hat",
)  # fmt: skip
METHODS = ("sds", "sjc", "csd", "vsd", "ism", "tsm", "cds", "sdi")

SPIKES = {"spikes": 0.002, "spike_size": 50.0, "clip_limit": 10 * SIZE}
"""One pixel in 500 is 50 times what it was; clips let a norm of ten times the gradient's root mean square pass."""


@dataclass(frozen=True)
class Arm:
    """A setting: a method by name, whether it is on equal terms, and changes to the loop's config."""

    method: str
    equal: bool = True
    changes: dict[str, Any] = field(default_factory=dict)


GROUPS: dict[str, dict[str, Arm]] = {
    "Equal terms": {name: Arm(name) for name in METHODS},
    "What TSM adds to ISM": {
        "ism at interval t - mu": Arm("ism", changes={"interval": (70.0, 56.0)}),
        "tsm, code's gamma": Arm("tsm", changes={"gamma_rule": "code"}),
        "ism from the cleanest level": Arm("ism", changes={"interval": (1000.0, 1000.0)}),
    },
    "View words": {"sds, view words interpolated": Arm("sds", changes={"view_words": "interpolated"})},
    "Noise of CDS": {
        "cds, noise per view": Arm("cds", changes={"noise": "per-view"}),
        "cds, fresh noise": Arm("cds", changes={"noise": "fresh"}),
    },
    "Clips": {
        "tsm, pixel clip": Arm("tsm", changes={"clip": "pixel", "clip_limit": SPIKES["clip_limit"]}),
        **{f"tsm, spikes, {clip} clip".replace("none", "no"): Arm("tsm", changes={**SPIKES, "clip": clip})
           for clip in ("none", "pixel", "element", "tensor")},
    },
    "Published levels and guidance": {f"{name}, published": Arm(name, equal=False) for name in METHODS},
}  # fmt: skip
ARMS = {name: arm for arms in GROUPS.values() for name, arm in arms.items()}

BESIDE = {
    "What TSM adds to ISM": ("ism", "tsm"), "View words": ("sds",), "Noise of CDS": ("cds",), "Clips": ("tsm",),
}  # fmt: skip
"""Arms of the first group that a later table shows again."""

QUESTIONS = (
    ("Does the middle point help, or only the smaller interval?", "tsm", "ism at interval t - mu"),
    ("Does TSM beat ISM?", "tsm", "ism"),
    ("Which gamma?", "tsm", "tsm, code's gamma"),
    ("Should the path begin at the cleanest level?", "ism from the cleanest level", "ism"),
    ("Does it help to interpolate view words?", "sds, view words interpolated", "sds"),
    ("Does CDS need its fixed noise?", "cds", "cds, fresh noise"),
    ("Does CDS beat SDS?", "cds", "sds"),
    ("Does a clip per pixel help against spikes?", "tsm, spikes, pixel clip", "tsm, spikes, no clip"),
    ("Per pixel or per element?", "tsm, spikes, pixel clip", "tsm, spikes, element clip"),
    ("Does it cost anything without spikes?", "tsm, pixel clip", "tsm"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_bench_flags(parser)
    parser.add_argument("--evaluations", type=int, default=6000, help="of the prior, in every run")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(ARMS), help="some of the arms")
    parser.add_argument("--table", action="store_true", help="no run, the page only")
    options = parser.parse_args(arguments)
    results, page = places(options, "text_to_3d_ablation")
    campaign, prompts = Campaign(results), PROMPTS[: options.prompts]
    if not options.table:
        size = options.image_size
        bench = open_bench(options, DreamerXLConfig(image_size=size), prompts, size)
        references(campaign, head(options), prompts, bench)
        for arm, seed, prompt in runs(options, prompts):
            key = f"{head(options)}/{arm}/{prompt}/{seed}"
            method, config = budgeted(ARMS[arm], seed, options)
            if not is_done(campaign, key, setting_of(method, config, bench)):
                campaign.keep(key, run(method, config, prompt, bench, key) | {"seed": seed})
                write(campaign, options, prompts, page)
                print(key, campaign.results[key], flush=True)
    write(campaign, options, prompts, page)
    print(page.read_text())


def runs(options: argparse.Namespace, prompts: Sequence[str]) -> list[tuple[str, int, str]]:
    """This part's runs: group by group, seed by seed, so that a campaign that is cut short has whole comparisons."""
    chosen = [[arm for arm in arms if not options.only or arm in options.only] for arms in GROUPS.values()]
    pairs = mine([(seed, prompt) for seed in range(options.seeds) for prompt in prompts], options.part)
    return [(arm, seed, prompt) for arms in chosen for seed, prompt in pairs for arm in arms]


def head(options: argparse.Namespace) -> str:
    """What all runs of a table share, as the beginning of their names."""
    return f"{options.prior}/{options.image_size}px/{options.evaluations}"


def budgeted(arm: Arm, seed: int, options: argparse.Namespace) -> tuple[TextMethod, DreamerXLConfig]:
    """The method and config of an arm, with as many steps as its evaluations allow."""
    method, config = setting(arm, seed, options)
    return method, replace(config, iterations=steps_of(method, config, options.evaluations))


def setting(arm: Arm, seed: int, options: argparse.Namespace) -> tuple[TextMethod, DreamerXLConfig]:
    """The method and config of an arm, its number of steps still open."""
    method = find_text_method(arm.method)
    levels = {} if arm.equal else {"levels": "published", "guidance": None}
    defaults = {**method.defaults, **common(options), "clip": "none", **levels, **arm.changes}
    config = DreamerXLConfig(image_size=options.image_size, seed=seed, visits=1, **defaults)
    return retimed(method, arm.equal), config


def write(campaign: Campaign, options: argparse.Namespace, prompts: Sequence[str], page: Path) -> None:
    """The page, from the runs that are done."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text_of(campaign.results, options, prompts))


def text_of(results: dict[str, Any], options: argparse.Namespace, prompts: Sequence[str]) -> str:
    """The page as Markdown."""
    every = rows_by_arm(results, head(options), prompts)
    references_of = {name: every.get(name, []) for name in ("the toy itself", "samples of the prior")}
    count, all_of_them = sum(len(every.get(arm, [])) for arm in ARMS), len(ARMS) * len(prompts) * options.seeds
    parts = [
        "# Score distillation on equal terms",
        f"`python benchmarks/text_to_3d_ablation.py` makes this page. {count} of {all_of_them} runs: {len(prompts)} "
        f"prompts ({', '.join(prompts)}), {options.seeds} seeds, Gaussians, {options.image_size} px, "
        f"{options.evaluations:,} evaluations of the {options.prior} prior in every run, whatever the method.",
        LEGEND,
        "On equal terms every method has the same annealed levels (900 to 20 thousandths, its own interval kept), "
        "guidance 7.5, gradients of one size, no clip, and as many steps as its evaluations allow (SJC, which on these "
        "terms is SDS, without its variance reduction). In the published table levels, guidance and the clip of x0 are "
        "the method's own; the size of gradients is still the same for all, and nothing is clipped in the rasterizer.",
    ]
    for group, arms in GROUPS.items():
        shown = {name: every.get(name, []) for name in (*BESIDE.get(group, ()), *arms)}
        if any(every.get(name) for name in arms):
            parts += [f"## {group}", table(shown | references_of)]
    return "\n\n".join([*parts, "## Answers", answers(every)]) + "\n"


def rows_by_arm(results: dict[str, Any], beginning: str, prompts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Runs by arm, each with its prompt."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, row in results.items():
        if key.startswith(f"{beginning}/"):
            arm, prompt, _ = key.removeprefix(f"{beginning}/").split("/")
            if prompt in (*prompts, f"{len(prompts)} captions"):
                found.setdefault(arm, []).append(row | {"prompt": prompt})
    return found


def answers(every: dict[str, list[dict[str, Any]]]) -> str:
    """Paired differences with 95 % intervals, run by run (same prompt, same seed)."""
    names = [("R-precision, points", "r_precision", 100.0), ("with parts, points", "r_precision_parts", 100.0),
             ("inconsistency", "inconsistency", 1.0), ("sharpness × 1000", "sharpness", 1000.0),
             ("clipped, points", "clipped", 100.0)]  # fmt: skip
    lines = ["| question | pairs | " + " | ".join(name for name, *_ in names) + " |", "|---|---|" + "---|" * len(names)]
    for question, a, b in QUESTIONS:
        pairs = paired(every.get(a, []), every.get(b, []))
        if len(pairs) > 1:
            cells = [difference(pairs, name, factor) for _, name, factor in names]
            lines.append(f"| {question} {a} minus {b} | {len(pairs)} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "Not enough runs yet."


def paired(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> list[tuple[dict, dict]]:
    """Rows of the same prompt and seed."""
    there = {(row["prompt"], row["seed"]): row for row in second}
    return [(row, there[row["prompt"], row["seed"]]) for row in first if (row["prompt"], row["seed"]) in there]


def difference(pairs: Sequence[tuple[dict, dict]], name: str, factor: float) -> str:
    """Mean difference [95 % interval]; bold where the interval leaves out zero."""
    known = [(a[name], b[name]) for a, b in pairs if a.get(name) is not None and b.get(name) is not None]
    if len(known) < 2:
        return "–"
    found = paired_interval([factor * a for a, _ in known], [factor * b for _, b in known])
    digits = next((digits for _, column, digits, _ in COLUMNS if column == name), 2)
    shown = f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"**{shown}**" if found.excludes_zero else shown


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
