"""One measured run of text to 3D, and what several campaigns of them share: the bench, equal terms, tables.

Equal terms: one schedule of levels (annealed, 900 to 20 thousandths), one guidance (7.5 in standard form), one budget
of evaluations of the prior (a method that asks more often makes fewer steps), one size of the gradient (its root mean
square, so that the optimiser's and the regularisers' weights mean the same), no clip. Everything else is the loop's.
With one level for all pictures of a step and gradients of one size SJC is SDS, so SJC goes without its variance
reduction there.

Every row says by `setting` what decided it: config, prior and judge; a campaign measures anew what was measured with
other ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from campaign import ROOT, Campaign
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.files import sha256
from scene_distill.export.object_files import turntable_strip
from scene_distill.export.pictures import write_png
from scene_distill.methods.dreamer_xl.recipe import Spikes
from scene_distill.methods.text_to_3d.backgrounds import plain
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.methods.text_to_3d.generate import text_to_3d
from scene_distill.methods.text_to_3d.registry import TextMethod
from scene_distill.methods.text_to_3d.representation import TrainedObject
from scene_distill.methods.text_to_3d.teachers import open_prior, toy_of
from scene_distill.objectives.score import Objective, distill
from scene_distill.objectives.score_clip import Clip
from scene_distill.objectives.score_presets import on_equal_terms
from scene_distill.objectives.score_sds import SJC
from scene_distill.objectives.score_teacher import Progress
from scene_distill.objectives.score_times import AnnealedTimes
from scene_distill.priors.gaussian import GaussianPrior
from scene_distill.priors.prior import NoisePrior
from scene_distill.priors.schedules import cosine
from scene_distill.priors.tiny import PACKAGED, read_tiny
from scene_distill.renderers.stored_splats import activated
from scene_distill.representations.splats import Splats
from scene_distill.training.attribute_classifier import PACKAGED as JUDGE
from scene_distill.training.attribute_classifier import read_judge
from scene_distill.training.janus import Janus, has_face
from scene_distill.training.object_views import Draw, Orbit
from scene_distill.training.text_to_3d_metrics import Asked, ceiling, measured
from scene_distill.training.toy_objects import toy_object

LEVELS, GUIDANCE, SIZE = AnnealedTimes(900, 20), 7.5, 0.2
"""SIZE: about what Dreamer XL's own gradients have on the tiny prior (0.6 at first, 0.07 at last)."""

PROBES = 64
"""Steps at which the evaluations of a method are counted before it runs."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What every run of a campaign is given."""

    prior: NoisePrior
    judge: Any
    orbit: Orbit
    hashes: str
    """Of the files of prior and judge."""
    pictures: Path | None = None
    """Where a turntable of every object is kept; None: nowhere."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A picture of a trained object (`training.object_views.Drawn`)."""

    image: Tensor
    alpha: Tensor
    depth: Tensor | None


class SameSize:
    """A `score_clip.GradientTransform`: the gradient with root mean square ``size``; one of zeros stays as it is."""

    def __init__(self, size: float = SIZE) -> None:
        self.size = size

    def __call__(self, gradient: Tensor, progress: Progress) -> Tensor:
        """The scaled gradient."""
        rms = gradient.square().mean().sqrt()
        return gradient * (self.size / rms) if float(rms) > 0 else gradient


@dataclass(frozen=True)
class Retimed(TextMethod):
    """A method whose objectives get gradients of one size, and with ``equal`` the common levels and guidance."""

    equal: bool = True

    @property
    def recipe(self) -> Any:
        """The stages of the method, each with the changed objective."""
        stages_of = super().recipe

        def stages(config: TextTo3DConfig, prior: NoisePrior) -> tuple:
            return tuple(
                replace(stage, objective=lambda make=stage.objective: self.changed(make()))
                for stage in stages_of(config, prior)
            )

        return stages

    def changed(self, objective: Objective) -> Objective:
        """One objective on the terms of the campaign."""
        clips = tuple(each for each in objective.transforms if isinstance(each, Clip))
        spikes = tuple(each for each in objective.transforms if isinstance(each, Spikes))
        if not self.equal:
            return replace(objective, transforms=(*clips, SameSize(), *spikes))
        plain_form: dict[str, Any] = {"variance_reduction": False} if isinstance(objective.method, SJC) else {}
        objective = on_equal_terms(objective, LEVELS, guidance=GUIDANCE, **plain_form)
        return replace(objective, transforms=(SameSize(), *spikes))


def retimed(method: TextMethod, equal: bool) -> Retimed:
    """The method on equal terms, or with its published levels and guidance."""
    return Retimed(method.name, method.package, method.config_class, method.description, method.defaults, equal)


def steps_of(method: TextMethod, config: TextTo3DConfig, evaluations: int) -> int:
    """Steps that a method can make with ``evaluations`` of the prior (and of a network of its own)."""
    stand_in = GaussianPrior({"": torch.zeros(3, 2, 2), "y": torch.ones(3, 2, 2)}, 0.3, cosine(1000))
    asked = 0
    prompts = {role: stand_in.describe([word]) for role, word in (("wanted", "y"), ("empty", ""), ("unwanted", ""))}
    stages = method.recipe(config, stand_in)
    total = sum(stage.share for stage in stages)
    for stage in stages:
        objective, generator = stage.objective(), torch.Generator().manual_seed(0)
        image, ids = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
        found = [
            distill(objective, stand_in, image, prompts, generator, Progress(step, PROBES), view_ids=ids)
            for step in range(PROBES)
        ]
        asked += stage.share / total * sum(each.evaluations + each.own_evaluations for each in found) / PROBES
    return max(1, round(evaluations / (asked * config.views)))


def run(method: TextMethod, config: TextTo3DConfig, prompt: str, bench: Bench, name: str) -> dict[str, Any]:
    """Make one object and measure it: the figures of `text_to_3d_metrics`, steps, evaluations and seconds. ``name`` is
    its picture's."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = text_to_3d(method, config, [prompt], bench.prior, Path(folder) / "run")[0]
    seconds = time.perf_counter() - started
    cost = {"steps": config.iterations, "evaluations": made.evaluations, "seconds": round(seconds, 2),
            "setting": setting_of(method, config, bench)}  # fmt: skip
    asked = Asked(toy_of(prompt), bench.judge)
    if not made.finite:
        return {"diverged": 1.0, "why": "not a number", "r_precision": 0.0, "r_precision_parts": 0.0,
                "r_precision_object": 0.0} | cost  # fmt: skip
    if bench.pictures is not None:
        bench.pictures.mkdir(parents=True, exist_ok=True)
        path = bench.pictures / f"{name.replace('/', '-').replace(' ', '_')}.png"
        write_png(turntable_strip(made.trained, 8, 96), path)
    geometry = made.trained.geometry()
    gaussians = activated(geometry, torch.eye(4)) if isinstance(geometry, Splats) else None
    cost |= {"gaussians": len(gaussians.means)} if gaussians is not None else {}
    figures = measured(draw_of(made.trained), asked, bench.orbit, bench.prior, gaussians)
    return {name: clean(value) for name, value in figures.items()} | cost


def setting_of(method: TextMethod, config: TextTo3DConfig, bench: Bench) -> str:
    """A short hash of all that decides a run."""
    plain_config = {name: value for name, value in asdict(config).items() if name not in ("threads", "prior_path")}
    terms = (method.equal, SIZE, LEVELS, GUIDANCE) if isinstance(method, Retimed) else None
    text = json.dumps([method.name, plain_config, bench.hashes, terms], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_done(campaign: Campaign, key: str, setting: str) -> bool:
    """Whether a run is there, made with this setting."""
    return key in campaign.results and campaign.results[key].get("setting") == setting


def mine(pairs: Sequence[Any], part: tuple[int, int]) -> list[Any]:
    """This process's share: every N-th, so that comparisons of one prompt and seed stay together."""
    return list(pairs[part[0] - 1 :: part[1]])


def draw_of(trained: TrainedObject) -> Draw:
    """The object over the toy world's background, as the figures want it."""

    def draw(camera: Camera) -> Seen:
        views = trained.render([camera], plain())
        depth = None if views.depth_m is None else views.depth_m[0]
        return Seen(views.image[0], views.alpha[0], depth)

    return draw


def toy_figures(prompt: str, bench: Bench) -> dict[str, Any]:
    """The same figures of the toy that the caption means: what a perfect object would score."""
    asked = Asked(toy_of(prompt), bench.judge)
    figures = measured(toy_object(asked.toy, "reference"), asked, bench.orbit, bench.prior)
    return {name: clean(value) for name, value in figures.items()}


def references(campaign: Campaign, head: str, prompts: Sequence[str], bench: Bench) -> None:
    """What results are read beside, once for a prior and judge: the toys themselves, and samples of the prior, under
    names that begin with ``head``."""
    about = {"seed": 0, "setting": bench.hashes}
    for prompt in prompts:
        key = f"{head}/the toy itself/{prompt}/0"
        if not is_done(campaign, key, bench.hashes):
            campaign.keep(key, toy_figures(prompt, bench) | about)
    key = f"{head}/samples of the prior/{len(prompts)} captions/0"
    if not is_done(campaign, key, bench.hashes):
        found = ceiling(bench.prior, bench.judge, [toy_of(prompt) for prompt in prompts], bench.orbit)
        campaign.keep(key, {name: clean(value) for name, value in found.items()} | about)


def clean(value: Any) -> Any:
    """Short numbers; None for a figure that is none."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def add_bench_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `open_bench`."""
    parser.add_argument("--prior", choices=("tiny", "mixture"), default="tiny")
    parser.add_argument("--prior-path", type=Path, help="file or folder of the prior; default: the packaged one")
    parser.add_argument("--judge", type=Path, help="judge.safetensors; default: beside the prior, else the packaged")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of the tiny prior")
    parser.add_argument("--threads", type=int, default=1, help="threads of a process; results do not depend on them")
    parser.add_argument("--part", type=int, nargs=2, default=(1, 1), metavar=("I", "N"), help="every N-th run")
    parser.add_argument("--results", type=Path, help="JSON; default: benchmarks/results/<name>.json")
    parser.add_argument("--pictures", type=Path, help="also write a turntable of every object here")
    parser.add_argument("--page", type=Path, help="Markdown; default: docs/<name>.md")


def open_bench(options: argparse.Namespace, config: TextTo3DConfig, prompts: Sequence[str], size: int = 64) -> Bench:
    """The prior and the judge that the flags name, and views of ``size`` pixels; UserError where one is missing or the
    prior is not trained to its end."""
    torch.set_num_threads(1)
    judge = options.judge
    if judge is None and options.prior_path is not None and (options.prior_path / "judge.safetensors").exists():
        judge = options.prior_path
    config = replace(config, prior_path=options.prior_path, prompts=tuple(prompts), **common(options))
    prior = open_prior(config, torch.device("cpu"), options.threads)
    files = [judge or JUDGE]
    if options.prior == "tiny":
        check_trained(options.prior_path)
        files.append(options.prior_path or PACKAGED)
    elif options.prior_path is not None:
        files.append(options.prior_path)
    return Bench(prior, read_judge(judge)[0], Orbit(size=size), " ".join(map(hash_of, files)), options.pictures)


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Fields that all configs of a campaign share. Precision is fixed, so that rows of different machines agree."""
    return {"prior": options.prior, "prior_precision": options.precision, "prior_parts": 1, "threads": options.threads}


def check_trained(path: Path | None) -> None:
    """Raise UserError for a tiny prior whose training was not finished."""
    about = read_tiny(path).about
    step, steps = about.get("step"), dict(about.get("training", {})).get("steps")
    if step != steps:
        raise UserError(f"the prior in {path} stands at step {step} of {steps}; finish its training first")


def hash_of(path: Path) -> str:
    """Of a file, or of what a folder of 'prior train' is read for."""
    names = ("prior.safetensors", "judge.safetensors")
    files = [path] if path.is_file() else [path / name for name in names if (path / name).exists()]
    return "".join(sha256(file)[:12] for file in files)


def places(options: argparse.Namespace, name: str) -> tuple[Path, Path]:
    """Where results and page go."""
    results = options.results or ROOT / "benchmarks" / "results" / f"{name}.json"
    return results, options.page or ROOT / "docs" / f"{name}.md"


def mean(rows: Sequence[dict[str, Any]], name: str, digits: int = 2, factor: float = 1.0) -> str:
    """Mean over runs of a figure, with the sample deviation over seeds of the prompts' means; a dash for none."""
    known = [row for row in rows if row.get(name) is not None]
    if not known:
        return "–"
    seeds = {row.get("seed", 0) for row in known}
    by_seed = [statistics.mean(factor * row[name] for row in known if row.get("seed", 0) == seed) for seed in seeds]
    middle = statistics.mean(factor * row[name] for row in known)
    spread = f" ± {statistics.stdev(by_seed):.{digits}f}" if len(by_seed) > 1 else ""
    return f"{middle:.{digits}f}{spread}"


COLUMNS = (
    ("R-precision, %", "r_precision", 1, 100.0), ("with parts, %", "r_precision_parts", 1, 100.0),
    ("object, %", "r_precision_object", 0, 100.0), ("Janus: judge, %", "janus", 0, 100.0),
    ("Janus: prior, %", "janus_prior", 0, 100.0), ("inconsistency", "inconsistency", 3, 1.0),
    ("sharpness × 1000", "sharpness", 1, 1000.0), ("clipped, %", "clipped", 1, 100.0), ("chroma", "chroma", 2, 1.0),
    ("diverged, %", "diverged", 0, 100.0),
)  # fmt: skip


def table(arms: dict[str, list[dict[str, Any]]], first: str = "arm") -> str:
    """A Markdown table of arms by name; arms without runs are left out, and so are Janus figures of objects whose own
    toy, the rows of "the toy itself", has no face."""
    toys = {row.get("prompt"): row for row in arms.get("the toy itself", ())}
    arms = {arm: [counted(row, toys.get(row.get("prompt"))) for row in rows] for arm, rows in arms.items()}
    head = [first, "runs", *(name for name, *_ in COLUMNS), "steps", "evaluations", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, rows in arms.items():
        if not rows:
            continue
        cells = [mean(rows, *column[1:]) for column in COLUMNS]
        cost = [_middle(rows, name) for name in ("steps", "evaluations", "seconds")]
        lines.append("| " + " | ".join([arm, str(len(rows)), *cells, *cost]) + " |")
    return "\n".join(lines)


def counted(row: dict[str, Any], toy: dict[str, Any] | None) -> dict[str, Any]:
    """A row without the Janus figures that its toy cannot have."""
    if toy is None:
        return row
    none = {f"janus{by}": None for by in ("", "_prior") if not has_face(faces_of(toy, by))}
    return row | none


def faces_of(row: dict[str, Any], by: str) -> Janus:
    """A row's Janus figures, by the judge ('') or by the prior ('_prior')."""
    known = (row.get(f"janus{by}"), row.get(f"front_found{by}"))
    return Janus(*(math.nan if value is None else value for value in known))


def _middle(rows: Sequence[dict[str, Any]], name: str) -> str:
    known = [row[name] for row in rows if name in row]
    return f"{statistics.mean(known):,.0f}" if known else "–"


LEGEND = (
    "R-precision: the judge, trained apart from the prior, ranks the caption's colour and object first among all 160 "
    "pairs (chance 0.6 %), with the part's colour among 1760 captions (chance 0.06 %); per view (24 views around the "
    "object), and for the object as a whole. Janus: share of back views that are taken for a front, by the judge and "
    "by the prior itself, of objects whose toy has a front that they find. Inconsistency: colour difference of the "
    "same place in neighbouring views (0 to 1); it means nothing without sharpness, the gradient energy inside the "
    "object: a blur is consistent. Clipped: pixels with a channel at the end of the range. ±: deviation over seeds of "
    "the mean over prompts."
)
