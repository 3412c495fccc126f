"""Several runs measured on the same held-out views, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scene_distill.core.configs import HOW_TO_RUN, to_plain
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json
from scene_distill.data.scene import Frame
from scene_distill.training.confidence import Interval, mean_interval, paired_interval
from scene_distill.training.evaluation import Evaluation, evaluate_views
from scene_distill.training.lpips import Lpips
from scene_distill.training.provenance import provenance
from scene_distill.training.report import Measured
from scene_distill.training.run_log import Curve, read_curves

METRICS = ("psnr", "ssim", "psnr_corrected", "ssim_corrected", "lpips", "lpips_corrected")
"""Figures of a view, raw ones first; the last two only where weights of LPIPS are given."""

CURVES = ("train/loss", "train/psnr", "train/l1", "train/ssim")

Told = Callable[[str], None]
"""Called with a run's label before it is measured."""


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run with its label, its figures measured now, its training curves, its provenance, and what its metrics.json
    told of the training (seconds, steps, peak_memory_bytes, trained)."""

    label: str
    run: Measured
    found: Evaluation
    curves: dict[str, Curve]
    provenance: dict[str, Any]
    told: dict[str, Any]

    def values(self, metric: str) -> list[float]:
        """A figure of every view, by the views' names."""
        return [self.found.per_view[name][metric] for name in sorted(self.found.per_view)]

    def interval(self, metric: str) -> Interval:
        """Its mean over views with confidence."""
        return mean_interval(self.values(metric))

    def against(self, baseline: ComparedRun, metric: str) -> Interval:
        """The mean difference to another run on the same views, with confidence."""
        return paired_interval(self.values(metric), baseline.values(metric))


def compare(runs: Sequence[Measured], lpips: Lpips | None = None, tell: Told = lambda label: None) -> list[ComparedRun]:
    """Measure the runs, of any methods, on their held-out views. Raises `UserError`, in one sentence and before
    anything slow, when these views are not the same."""
    refuse_other_views(runs)
    compared: list[ComparedRun] = []
    for label, run in zip(labels([run.folder.path for run in runs]), runs, strict=True):
        tell(label)
        found = evaluate_views(run.trained, held_out(run), run.images, lpips=lpips)
        told = read_json(run.folder.metrics) if run.folder.metrics.exists() else {}
        if compared and found.photos_sha256 != compared[0].found.photos_sha256:
            raise UserError(
                f"{run.folder.path} sees other photos under the same names than {runs[0].folder.path}; their figures "
                "do not compare, check --data"
            )
        curves = read_curves(run.folder.log, CURVES)
        compared.append(ComparedRun(label, run, found, curves, provenance(run.method, run.config, run.scene), told))
    return compared


def held_out(run: Measured) -> tuple[Frame, ...]:
    """The views a run is measured on: those held out, or all when none are."""
    return run.scene.test_frames or run.scene.frames


def refuse_other_views(runs: Sequence[Measured]) -> None:
    """Raise `UserError` when the runs hold out other views, or see them at other sizes, than the first."""
    first = {frame.name: runs[0].images.camera(frame) for frame in held_out(runs[0])}
    for run in runs[1:]:
        mine = {frame.name: run.images.camera(frame) for frame in held_out(run)}
        if set(mine) != set(first):
            raise UserError(
                f"{run.folder.path} holds out other views than {runs[0].folder.path} ({len(mine)} and {len(first)}, "
                f"{len(set(mine) & set(first))} of them the same); their figures do not compare, train both with one "
                "--test-every or --test-list"
            )
        for name, camera in mine.items():
            other = first[name]
            if (camera.width, camera.height) != (other.width, other.height):
                raise UserError(
                    f"{run.folder.path} is measured on photos {camera.width} px wide and {runs[0].folder.path} on "
                    f"{other.width} px; their figures do not compare, train both with one --image-width"
                )


def labels(folders: Sequence[Path]) -> list[str]:
    """Names that tell the runs apart: the folders' own, with as many parents as it takes."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("the same run folder is given twice; name different runs")


ABSENT = object()
"""Stands for the value of a setting that a method does not have."""

NOT_TOLD = frozenset({"output_dir", "resume", "dry_run"})
"""Settings that differ between any two runs and say nothing."""


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs: its value per run, and whether it decides what is trained."""

    name: str
    values: tuple[Any, ...]
    decides: bool


def config_differences(configs: Sequence[Any]) -> list[Difference]:
    """Settings that are not the same in all configs, in the order of the fields."""
    plain = [to_plain(config) for config in configs]
    names = dict.fromkeys(name for config in plain for name in config if name not in NOT_TOLD)
    values = {name: tuple(config.get(name, ABSENT) for config in plain) for name in names}
    return [Difference(n, v, n not in HOW_TO_RUN) for n, v in values.items() if any(one != v[0] for one in v)]
