"""`scene-distill prior train|eval|info|package`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scene_distill.core.console import progress, say, say_next, show_table
from scene_distill.core.errors import UserError
from scene_distill.training.prior_settings import JudgeTraining, PriorEvaluation, PriorTraining

if TYPE_CHECKING:
    from torch import Tensor

    from scene_distill.data.captioned_shapes_pictures import Pictures, PictureSet
    from scene_distill.nets.attribute_classifier import AttributeClassifier
    from scene_distill.priors.prior import NoisePrior
    from scene_distill.training.tiny_prior import PriorTrainer

SHEET_CAPTIONS = (
    "a red chair", "a blue car", "a green teapot", "a yellow duck", "an orange rocket", "a purple robot",
    "a white snowman with red hat", "a pink house with blue roof",
)  # fmt: skip
"""What the sheets of samples ask for, from four views."""


@dataclass(frozen=True)
class PriorTrain(PriorTraining):
    """Train the tiny text-to-picture prior and its judge on toy pictures that it renders itself. Stopped at any time,
    it continues with --resume and ends with the same weights."""

    output_dir: Path = Path("outputs/prior")
    """Folder for pictures, checkpoint, log, samples, judge.safetensors and prior.safetensors."""
    judge_pictures: int = JudgeTraining.pictures
    """Pictures the judge learns from."""
    judge_steps: int = JudgeTraining.steps
    """Training steps of the judge; 0 trains none."""
    save_every: int = 250
    """Steps between checkpoints."""
    sample_every: int = 1000
    """Steps between sheets of samples; 0 draws one at the end."""
    threads: int = 0
    """CPU threads; 0 takes all. Weights agree bit by bit only for the same number."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the training in the folder."""

    def training(self) -> PriorTraining:
        """What decides the prior, without how the command runs."""
        return PriorTraining(**{field.name: getattr(self, field.name) for field in fields(PriorTraining)})


@dataclass(frozen=True)
class PriorEval(PriorEvaluation):
    """Sample a tiny prior and let the judge read the pictures: R-precision on known and on held-out pairs of colour and
    object, beside the ceiling of rendered pictures and chance."""

    prior: tyro.conf.Positional[Path | None] = None
    """prior.safetensors or a folder with it; default: the packaged prior."""
    judge: Path | None = None
    """judge.safetensors or a folder with it; default: beside the prior, else the packaged one."""
    sheet: Path | None = None
    """Also write a sheet of samples (PNG)."""
    json: Path | None = None
    """Also write the figures to this file."""

    def measuring(self) -> PriorEvaluation:
        """What decides the figures."""
        return PriorEvaluation(**{field.name: getattr(self, field.name) for field in fields(PriorEvaluation)})


@dataclass(frozen=True)
class PriorInfo:
    """What a tiny prior is: size, parameters, words, training, hash."""

    prior: tyro.conf.Positional[Path | None] = None
    """prior.safetensors or a folder with it; default: the packaged prior."""


@dataclass(frozen=True)
class PriorPackage:
    """Put a finished training's prior and judge where this checkout's package looks for them, and its loss curve and
    samples into the documentation's pictures. For whoever ships the package."""

    folder: tyro.conf.Positional[Path] = Path("outputs/prior")
    """Folder of 'prior train'."""
    weights_dir: Path | None = None
    """Where the weights go; default: scene_distill/priors/weights of this checkout."""
    images_dir: Path | None = None
    """Where the pictures go; default: docs/images of this checkout."""


ACTIONS = {"train": PriorTrain, "eval": PriorEval, "info": PriorInfo, "package": PriorPackage}


def main(arguments: list[str]) -> None:
    """Train, measure, describe or package a prior."""
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: scene-distill prior train|eval|info|package ...\n")
        for name, kind in ACTIONS.items():
            say(f"  {name:<8} {' '.join((kind.__doc__ or '').split())}")
        return
    name, *rest = arguments
    if name not in ACTIONS:
        raise UserError(f"there is no 'prior {name}'; choose one of {', '.join(ACTIONS)}")
    options: Any = tyro.cli(ACTIONS[name], args=rest, prog=f"scene-distill prior {name}")
    actions: dict[str, Callable[[Any], None]] = {"train": train, "eval": evaluate, "info": info, "package": package}
    actions[name](options)


def train(options: PriorTrain) -> None:
    """Render the pictures, train the judge, train the prior, write samples and the loss curve."""
    import torch

    from scene_distill.training.tiny_prior import PriorTrainer

    config = options.training()
    check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    if (options.output_dir / "prior-state.pt").exists() and not options.resume:
        raise UserError(
            f"{options.output_dir} holds a training already; continue it with --resume or choose another folder"
        )
    if options.judge_steps:
        train_judge(options)
    trainer = PriorTrainer(
        config, pictures(config.picture_set(), options.output_dir), options.output_dir, options.resume
    )
    learn(trainer, options)
    say(f"{options.output_dir / 'prior.safetensors'}: step {trainer.fit.step}, loss {trainer.curve[-1]['loss']:.4f}")
    say_next(f"scene-distill prior eval {options.output_dir}", "R-precision of its samples")


def check(options: PriorTrain) -> None:
    """Refuse sizes that the network cannot have."""
    cells = options.size // max(options.patch, 1)
    if options.patch < 1 or options.size % options.patch or cells % 4 or cells < 8:
        raise UserError(
            f"--size {options.size} with --patch {options.patch} gives no grid of 8, 12, 16, ... cells a side"
        )
    if min(options.pictures, options.batch, options.steps, options.save_every) < 1:
        raise UserError("--pictures, --batch, --steps and --save-every must be at least 1")


def pictures(wanted: PictureSet, folder: Path) -> Pictures:
    """Rendered pictures, with a meter."""
    from scene_distill.data.captioned_shapes_pictures import load_pictures

    with progress(f"pictures for the {wanted.purpose}", wanted.count) as meter:
        return load_pictures(wanted, folder / "pictures", meter.update)


def train_judge(options: PriorTrain) -> None:
    """Train the attribute classifier, or keep the one that is there."""
    from scene_distill.training.attribute_classifier import train_judge

    config = JudgeTraining(options.size, options.judge_pictures, options.judge_steps, seed=options.seed)
    shown = pictures(config.picture_set(), options.output_dir)
    with progress("judge", config.steps) as meter:

        def told(step: int, means: dict[str, float]) -> None:
            meter.update(step, f"loss {means['loss']:.3f}  colour {means['color']:.2f}  object {means['shape']:.2f}")

        train_judge(config, shown, options.output_dir, told)


def learn(trainer: PriorTrainer, options: PriorTrain) -> None:
    """Train with a meter, drawing samples on the way."""
    end = trainer.config.steps
    with progress("prior", end, trainer.fit.step) as meter:

        def told(step: int, means: dict[str, float]) -> None:
            meter.update(step, f"loss {means['loss']:.4f}")

        while True:
            every = options.sample_every or end
            trainer.run(told, options.save_every, min(end, (trainer.fit.step // every + 1) * every))
            write_sheet(trainer.prior(), options.output_dir / f"samples-{trainer.fit.step:06d}.png")
            write_curve(trainer.curve, options.output_dir / "loss.png")
            if trainer.fit.step >= end:
                return


def write_sheet(prior: NoisePrior, path: Path, guidance: float = 3.0, steps: int = 30) -> None:
    """Samples of eight captions from four views as one PNG."""
    from scene_distill.data.captioned_shapes import VIEWS
    from scene_distill.training.prior_pictures import picture_grid, write_png
    from scene_distill.training.tiny_prior import sampled

    captions = [f"{caption}, {view} view" for caption in SHEET_CAPTIONS for view in VIEWS]
    images: Tensor = sampled(prior, captions, 0, guidance, steps)
    write_png(path, picture_grid(images, len(VIEWS) * 2))


def write_curve(lines: list[dict[str, float]], path: Path) -> None:
    """The loss by step as a PNG."""
    from scene_distill.training.prior_pictures import loss_chart, write_png

    write_png(path, loss_chart([line["step"] for line in lines], [line["loss"] for line in lines]))


def evaluate(options: PriorEval) -> None:
    """Print and write the figures."""
    from scene_distill.core.files import write_json
    from scene_distill.priors.tiny import load_tiny
    from scene_distill.training.prior_evaluation import evaluate_prior

    prior = load_tiny(options.prior)
    judge, about = find_judge(options)
    how = options.measuring()
    report = evaluate_prior(prior, judge, how) | {"judge": about}
    show(report)
    if options.json:
        write_json(options.json, report | {"options": vars(how)})
    if options.sheet:
        write_sheet(prior, options.sheet, options.guidance, options.steps)
    say_next('scene-distill text-to-3d "a red chair"', "an object from this prior")


def find_judge(options: PriorEval) -> tuple[AttributeClassifier, dict[str, Any]]:
    """The judge that was named, or the one beside the prior, or the packaged one."""
    from scene_distill.training.attribute_classifier import read_judge

    if options.judge is None and options.prior is not None:
        beside = (options.prior if options.prior.is_dir() else options.prior.parent) / "judge.safetensors"
        return read_judge(beside if beside.exists() else None)
    return read_judge(options.judge)


def show(report: dict[str, Any]) -> None:
    """The figures as a table."""
    rows = []
    for split in ("known", "held_out"):
        for kind in ("sampled", "rendered"):
            figures, distance = report[split][kind], report[split]["distance"][kind]
            shares = [
                f"{100 * figures[name]:.1f} %" for name in ("r_precision", "color", "shape", "view", "part_color")
            ]
            rows.append([f"{split.replace('_', '-')} pairs, {kind}", *shares, f"{distance:.2f}"])
    columns = ("pictures", "R-precision", "colour", "object", "view", "part's colour", "distance")
    show_table(f"read by the judge; chance {100 * report['chance']:.1f} %", columns, rows)


def info(options: PriorInfo) -> None:
    """Print what the file is."""
    from scene_distill.core.files import sha256
    from scene_distill.priors.tiny import PACKAGED, read_tiny

    network = read_tiny(options.prior)
    path = options.prior or PACKAGED
    path = path / "prior.safetensors" if path.is_dir() else path
    unet, about = network.unet, network.about
    say(f"{path}: {path.stat().st_size / 1e6:.2f} MB, sha256 {sha256(path)}")
    count = sum(value.numel() for value in unet.parameters())
    folded = f"{unet.config.patch}x{unet.config.patch}"
    say(f"{count / 1e6:.2f} M parameters, pictures of {unet.config.size} pixels, folded {folded}")
    say(f"trained {about.get('step')} steps, last loss {about.get('loss')}, settings {about.get('training')}")
    say(f"words: {' '.join(network.vocabulary.words)}")
    say_next(f"scene-distill prior eval {options.prior or ''}".rstrip(), "R-precision of its samples")


def package(options: PriorPackage) -> None:
    """Copy the weights and draw the pictures."""
    import scene_distill
    from scene_distill.core.files import sha256
    from scene_distill.priors.tiny import PACKAGED
    from scene_distill.training.prior_packaging import package_prior

    checkout = Path(scene_distill.__file__).resolve().parents[1]
    if options.images_dir is None and not (checkout / "docs" / "images").is_dir():
        raise UserError("this is an installed package without documentation; name --weights-dir and --images-dir")
    weights, images = options.weights_dir or PACKAGED.parent, options.images_dir or checkout / "docs" / "images"
    for path in package_prior(options.folder, weights, images, lambda network, to: write_sheet(network.prior(), to)):
        say(f"{path}: {path.stat().st_size / 1e3:.0f} kB, sha256 {sha256(path)}")
    say_next("scene-distill prior eval", "R-precision of the packaged prior's samples")
