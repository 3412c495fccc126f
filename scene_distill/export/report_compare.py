"""The page that compares runs: figures with confidence, pictures under a slider, curves, settings, provenance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scene_distill.core.memory import format_bytes
from scene_distill.data.scene import Frame
from scene_distill.export.report_charts import Series, dot_chart, line_chart
from scene_distill.export.report_page import chip, colour, facts, picture, section, table, text, write_page
from scene_distill.training.comparison import (
    ABSENT,
    METRICS,
    ComparedRun,
    Difference,
    config_differences,
    held_out,
)
from scene_distill.training.confidence import LEVEL, RESAMPLES, Interval
from scene_distill.training.estimates import duration

NAMES = {
    "psnr": "PSNR, dB", "ssim": "SSIM", "psnr_corrected": "PSNR colour-corrected, dB",
    "ssim_corrected": "SSIM colour-corrected", "lpips": "LPIPS", "lpips_corrected": "LPIPS colour-corrected",
}  # fmt: skip

DIGITS = {"psnr": 2, "psnr_corrected": 2}

CURVE_NAMES = {
    "train/loss": "loss", "train/psnr": "PSNR of training views, dB", "train/l1": "L1", "train/ssim": "SSIM (training)",
}  # fmt: skip

TILE_WIDTH = 200

PAIRED = (
    "Differences are paired: both runs are measured on the same drawn views. Green and red differences have an "
    "interval that leaves out zero. "
)

UNLIKE = " Losses of different methods, or with different weights, are not the same quantity."


def write_comparison(path: Path, runs: Sequence[ComparedRun], pictures: int, width: int,
                     told: Callable[[int], None] = lambda done: None) -> None:  # fmt: skip
    """Write the page. ``pictures`` views are shown, at most ``width`` pixels wide: half of them spread over the set,
    half where the runs differ most. ``told`` hears how many are drawn."""
    frames = held_out(runs[0].run)
    shown = chosen_views(runs, [frame.name for frame in frames], pictures)
    views = []
    for done, frame in enumerate((frame for frame in frames if frame.name in shown), 1):
        views.append(_view(runs, frame, width))
        told(done)
    sources = ["photo", *(run.label for run in runs)]
    body = "".join(
        [
            section("Held-out views", _figures(runs)),
            section("Pictures", _slider(runs, views, sources)),
            section("View by view", _view_by_view(runs)),
            section("Training", _curves(runs)),
            section("Settings that differ", _settings(runs)) if len(runs) > 1 else "",
            section("Provenance", _provenance(runs)),
        ]
    )
    scene = runs[0].run.scene.root.name
    kind = "held-out" if runs[0].run.scene.test_frames else "training"
    camera = runs[0].run.images.camera(frames[0])
    lead = f"{len(frames)} {kind} views of <b>{text(scene)}</b> at {camera.width} × {camera.height} px"
    title = " against ".join(run.label for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    write_page(path, title, lead, body, data={"sources": sources, "views": views}, script="compare.js")


def chosen_views(runs: Sequence[ComparedRun], names: Sequence[str], count: int) -> set[str]:
    """``count`` names: half spread evenly, the rest where the PSNR of the runs lies farthest apart (with one run: where
    it is lowest)."""
    if len(names) <= count:
        return set(names)
    spread = {names[i] for i in np.linspace(0, len(names) - 1, max(count // 2, 1)).round().astype(int)}

    def interest(name: str) -> float:
        values = [run.found.per_view[name]["psnr"] for run in runs]
        return max(values) - min(values) if len(values) > 1 else -values[0]

    for name in sorted(names, key=interest, reverse=True):
        if len(spread) >= count:
            break
        spread.add(name)
    return spread


@torch.no_grad()
def _view(runs: Sequence[ComparedRun], frame: Frame, width: int) -> dict[str, Any]:
    images = runs[0].run.images
    pictures = [picture(images.get(frame), width)]
    for run in runs:
        rendering = run.run.trained.render(run.run.images.camera(frame), with_depth=False)
        pictures.append(picture(rendering.image, width))
    psnr = [None, *(round(run.found.per_view[frame.name]["psnr"], 3) for run in runs)]
    return {
        "name": frame.name, "pictures": pictures, "thumbnail": picture(images.get(frame), TILE_WIDTH),
        "psnr": {str(k): value for k, value in enumerate(psnr) if value is not None},
    }  # fmt: skip


def _figures(runs: Sequence[ComparedRun]) -> str:
    metrics = [m for m in METRICS if all(m in view for run in runs for view in run.found.per_view.values())]
    head = ["run", *(NAMES[m] for m in metrics), "primitives", "training"]
    rows = []
    for index, run in enumerate(runs):
        figures = [_with_ends(run.interval(m), m) for m in metrics]
        seconds = duration(run.told["seconds"]) if "seconds" in run.told else "–"
        steps = f"{run.told['steps']:,} steps" if "steps" in run.told else ""
        name = _two_lines(chip(index) + f"<b>{text(run.label)}</b>", text(run.run.method))
        rows.append([name, *figures, f"{len(run.run.trained):,}", _two_lines(seconds, steps)])
    parts = [table(head, rows)]
    if len(runs) > 1:
        head = ["difference", *(NAMES[m] for m in metrics), "better views (PSNR)"]
        rows = [_difference(run, runs[0], metrics, index) for index, run in enumerate(runs[1:], 1)]
        parts.append(f"<h3>Against {text(runs[0].label)}, view by view</h3>" + table(head, rows))
    parts.append(
        f'<p class="note">Means over views, raw figures first, with {LEVEL:.0%} confidence in brackets: a bootstrap '
        f"over views ({RESAMPLES:,} draws, percentiles). {PAIRED if len(runs) > 1 else ''}The interval says how "
        "figures would vary with other views of this scene; it knows nothing of what another training seed would "
        "change. "
        "Colour-corrected figures fit a render's colours to its held-out photo first and are never mixed with raw ones."
        "</p>"
    )
    return "".join(parts)


def _with_ends(interval: Interval, metric: str) -> str:
    digits = DIGITS.get(metric, 4)
    return _two_lines(f"{interval.mean:.{digits}f}", f"[{interval.low:.{digits}f}, {interval.high:.{digits}f}]")


def _two_lines(above: str, below: str) -> str:
    """A cell with small print below its value, so that columns stay narrow; both are HTML."""
    return f'{above} <span class="ci below">{below}</span>'


def _difference(run: ComparedRun, baseline: ComparedRun, metrics: Sequence[str], index: int) -> list[str]:
    cells = [chip(index) + text(run.label)]
    for metric in metrics:
        found, digits = run.against(baseline, metric), DIGITS.get(metric, 4)
        better = found.mean < 0 if metric.startswith("lpips") else found.mean > 0
        kind = ("good" if better else "bad") if found.excludes_zero else ""
        ends = f"[{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
        cells.append(_two_lines(f'<span class="{kind}">{found.mean:+.{digits}f}</span>', ends))
    pairs = list(zip(run.values("psnr"), baseline.values("psnr"), strict=True))
    return [*cells, f"{sum(mine > other for mine, other in pairs)} of {len(pairs)}"]


def _slider(runs: Sequence[ComparedRun], views: Sequence[dict[str, Any]], sources: Sequence[str]) -> str:
    first, second = (0, 1) if len(runs) == 1 else (1, 2)

    def options(chosen: int) -> str:
        return "".join(
            f'<option value="{k}"{" selected" if k == chosen else ""}>{text(name)}</option>'
            for k, name in enumerate(sources)
        )

    hard = "where the runs differ most" if len(runs) > 1 else "where the PSNR is lowest"
    tiles = "".join(
        f'<div class="tile"><img src="{view["thumbnail"]}" alt=""><span>{text(view["name"])}</span></div>'
        for view in views
    )
    return f"""<div class="controls">
      <label>left <select id="left">{options(first)}</select></label>
      <label>right <select id="right">{options(second)}</select></label>
      <span><button data-mode="split" class="on">split</button>
      <button data-mode="difference">difference × 3</button></span>
      <span class="mono" id="viewname"></span></div>
      <div class="split"><div class="stack"><img class="base" alt=""><img class="over" alt=""></div>
      <div class="bar"></div><span class="tag l"></span><span class="tag r"></span></div>
      <div class="tiles">{tiles}</div>
      <p class="note">Drag across the picture; arrow keys change the view. Shown are {len(views)} of
      {len(runs[0].found.per_view)} views: some spread over the set, some {hard}. Pictures are
      compressed for this page; figures were measured before.</p>"""


def _legend(runs: Sequence[ComparedRun]) -> str:
    if len(runs) == 1:
        return ""
    entries = (f"<span>{chip(index)}{text(run.label)}</span>" for index, run in enumerate(runs))
    return f'<div class="legend">{"".join(entries)}</div>'


def _view_by_view(runs: Sequence[ComparedRun]) -> str:
    names = sorted(runs[0].found.per_view)
    order = np.argsort(runs[0].values("psnr"))
    places = np.arange(len(names))
    series = [
        Series(run.label, colour(index), places, np.array(run.values("psnr"))[order]) for index, run in enumerate(runs)
    ]
    chart = dot_chart(series, [names[k] for k in order], "PSNR, dB (raw)")
    hardest = "Hardest view of the first run" if len(runs) > 1 else "Hardest view"
    return f'{_legend(runs)}{chart}<p class="note">{hardest} on the left; hover for names.</p>'


def _curves(runs: Sequence[ComparedRun]) -> str:
    charts = []
    for name, label in CURVE_NAMES.items():
        having = [(index, run, run.curves[name]) for index, run in enumerate(runs) if name in run.curves]
        if not having:
            continue
        steps = [Series(run.label, colour(index), curve.steps, curve.values) for index, run, curve in having]
        times = [Series(run.label, colour(index), curve.seconds, curve.values) for index, run, curve in having]
        charts.append(
            f'<div><div class="by-step">{line_chart(steps, "step", label)}</div>'
            f'<div class="by-seconds">{line_chart(times, "seconds of training", label)}</div></div>'
        )
    if not charts:
        return f'<p class="note">{"None of the runs" if len(runs) > 1 else "The run has not"} kept its log.jsonl.</p>'
    buttons = '<button data-axis="step" class="on">by step</button> <button data-axis="seconds">by time</button>'
    return (
        f'<div class="controls"><span>{buttons}</span></div>{_legend(runs)}'
        f'<div id="curves" class="axis-step"><div class="grid2">{"".join(charts)}</div></div>'
        f'<p class="note">From {"each" if len(runs) > 1 else "the"} run\'s log.jsonl; a point is the mean of '
        f"neighbouring steps.{UNLIKE if len(runs) > 1 else ''}</p>"
    )


def _settings(runs: Sequence[ComparedRun]) -> str:
    differences = config_differences([run.run.config for run in runs])
    if not differences:
        return "<p>None: the runs have the same settings.</p>"
    head = ["setting", *(text(run.label) for run in runs)]
    common, own = list[Difference](), list[Difference]()
    for difference in differences:
        known = [value for value in difference.values if value is not ABSENT]
        alone = len(known) < len(runs) and all(value == known[0] for value in known)
        (own if alone else common).append(difference)
    parts = [table(head, [_row(d) for d in common])] if common else ["<p>None that all these methods have.</p>"]
    if own:
        rows = table(head, [_row(d) for d in own])
        parts.append(f"<details><summary>{len(own)} settings that not all methods have</summary>{rows}</details>")
    return "".join(parts)


def _row(difference: Difference) -> list[str]:
    how = "" if difference.decides else ' <span class="ci">(how it was run)</span>'
    values = ("–" if value is ABSENT else text(_shown(value)) for value in difference.values)
    return [f"<code>{text(difference.name)}</code>{how}", *(f"<code>{value}</code>" for value in values)]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value) or "(empty)"


def _provenance(runs: Sequence[ComparedRun]) -> str:
    parts = []
    for index, run in enumerate(runs):
        found, trained = run.provenance, run.told.get("trained")
        rows = {
            "folder": f"<code>{text(run.run.folder.path)}</code>",
            "method": f"{text(found['method'])}, seed {found['seed']}",
            "data": f"{text(found['data']['root'])}, {found['data']['photos']} photos, "
            f"{found['data']['points']:,} points, sha256 <code>{found['data']['sha256'][:16]}</code>",
            "trained": _made(trained) if trained else "by a version that did not note it",
            "measured": _made(found),
        }
        parts.append(f"<h3>{chip(index)}{text(run.label)}</h3>{facts(rows)}")
    return "".join(parts)


def _made(by: dict[str, Any]) -> str:
    code, machine = by["code"], by["machine"]
    commit = f", commit <code>{text(code['commit'][:12])}</code>" if "commit" in code else ""
    changed = " and changes" if code.get("changed_since") else ""
    device = machine["gpu"] or f"{machine['processor']}, {_cores(machine['cores'])} ({machine['kernels']})"
    return (
        f"{text(by['time'])}, scene-distill {text(code['version'])}{commit}{changed}, source "
        f"<code>{code['source_sha256'][:12]}</code>, on {text(device)}, {format_bytes(machine['memory_bytes'])}, "
        f"torch {text(machine['torch'])}"
    )


def _cores(count: int) -> str:
    return f"{count} core{'s' * (count != 1)}"
