"""A trained prior and its judge put where the package looks for them, with their pictures for the documentation."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.priors.tiny import PACKAGED, TinyNetwork, read_tiny
from scene_distill.training.attribute_classifier import read_judge
from scene_distill.training.picture_networks import read_log
from scene_distill.training.prior_pictures import loss_chart, write_png
from scene_distill.training.tiny_prior import WEIGHTS

MOST_BYTES = 12_000_000
"""What the weights of a packaged prior may take."""


def package_prior(folder: Path, weights: Path, images: Path, sheet: Callable[[TinyNetwork, Path], None]) -> list[Path]:
    """Copy a finished training's weights to ``weights``, draw its loss curve and (by ``sheet``) samples to ``images``.

    Returns the four files. Raises `UserError`, before anything is written, for a training that is not finished, whose
    prior is larger than `MOST_BYTES`, or that has no judge.
    """
    prior, judge = folder / WEIGHTS, folder / "judge.safetensors"
    network, _ = read_tiny(prior), read_judge(judge)
    step, steps = network.about.get("step"), dict(network.about.get("training", {})).get("steps")
    if step != steps:
        raise UserError(
            f"the training in {folder} stands at step {step} of {steps}; finish it with "
            f"'scene-distill prior train --output-dir {folder} --resume'"
        )
    if prior.stat().st_size > MOST_BYTES:
        raise UserError(f"{prior} has {prior.stat().st_size / 1e6:.1f} MB; a packaged prior may have 12 MB")
    lines = read_log(folder / "prior-log.jsonl")
    made = [weights / PACKAGED.name, weights / judge.name, images / "prior_loss.png", images / "prior_samples.png"]
    for source, target in ((prior, made[0]), (judge, made[1])):
        write_atomically(target, partial(_copy, source))
    write_png(made[2], loss_chart([line["step"] for line in lines], [line["loss"] for line in lines]))
    sheet(network, made[3])
    return made


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
