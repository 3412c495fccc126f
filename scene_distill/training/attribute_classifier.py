"""The judge: an attribute classifier trained apart from every prior, on pictures of all pairs of colour and object.

Teacher:   the captions of rendered toys, held-out pairs included, from seeds that no prior sees.
Student:   `nets.attribute_classifier`; gradient into it alone.
Use:       R-precision of sampled or rendered pictures, the Janus score, distances between sets of pictures. It never
           guides anything, so an object cannot learn to please it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scene_distill.core.configs import from_plain
from scene_distill.core.errors import UserError
from scene_distill.core.seeds import key
from scene_distill.data.captioned_shapes_pictures import Pictures
from scene_distill.nets.attribute_classifier import QUESTIONS, AttributeClassifier, ClassifierConfig
from scene_distill.nets.weight_files import read_weights, save_weights
from scene_distill.priors.tiny import HOW_TO_TRAIN
from scene_distill.priors.tiny import PACKAGED as TINY
from scene_distill.training.picture_networks import Batches, Fit, Log, Schedule, backgrounds, composed, run_fit
from scene_distill.training.prior_settings import JudgeTraining

PACKAGED = TINY.with_name("judge.safetensors")
"""The judge that comes with the package."""

KIND = "scene-distill attribute classifier 1"


def train_judge(config: JudgeTraining, pictures: Pictures, folder: Path,
                told: Callable[[int, dict[str, float]], None] = lambda *_: None) -> AttributeClassifier:  # fmt: skip
    """Train, continue, or just read the judge in ``folder``/judge.safetensors."""
    path, checkpoint = folder / "judge.safetensors", folder / "judge-state.pt"
    settings = dataclasses.asdict(config)
    if path.exists():
        judge, about = read_judge(path)
        if about.get("training") == settings:
            return judge
        raise UserError(f"{path} was trained with other settings; delete it or choose another --output-dir")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(config.seed, "judge", "weights"))
        network = AttributeClassifier(ClassifierConfig(config.size)).to(memory_format=torch.channels_last)
    fit = Fit(network, Schedule(config.rate, config.steps, 100), 0.995)
    if checkpoint.exists():
        fit.load(checkpoint, settings)
    batches = Batches(pictures, config.batch, config.seed, "judge batches")
    labels = labels_of(pictures)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = batches.generator(step)
        chosen, images = batches.draw(generator)
        return judge_loss(network, worn(images, generator), {name: labels[name][chosen] for name in QUESTIONS})

    for step in run_fit(fit, loss_of, Log(folder / "judge-log.jsonl", fit.step), 50, told):
        if step % 500 == 0:
            fit.save(checkpoint, settings)
    network.load_state_dict(fit.average)
    save_judge(path, network, {"training": settings, "accuracy": accuracy(network, pictures, config.seed)})
    checkpoint.unlink(missing_ok=True)
    return read_judge(path)[0]


def labels_of(pictures: Pictures) -> dict[str, Tensor]:
    """The right answers [N] int64 by question."""
    arrays = (pictures.colors, pictures.shapes, pictures.part_colors, pictures.views)
    return {name: torch.from_numpy(array) for name, array in zip(QUESTIONS, arrays, strict=True)}


def judge_loss(
    network: AttributeClassifier, images: Tensor, labels: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Sum of the questions' cross entropies, and the share of right answers to each."""
    logits = network(images.contiguous(memory_format=torch.channels_last))
    losses = [functional.cross_entropy(logits[name], labels[name]) for name in QUESTIONS]
    right = {name: float((logits[name].argmax(1) == labels[name]).float().mean()) for name in QUESTIONS}
    return torch.stack(losses).sum(), right


def worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures as imperfect as those it will judge: a third blurred, all a little noisy, some brighter or darker."""
    count = len(images)
    coarse = functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    blur = torch.rand(count, 1, 1, 1, generator=generator) < 1 / 3
    level = 0.08 * torch.rand(count, 1, 1, 1, generator=generator)
    gain = 1 + 0.16 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    noise = torch.randn(images.shape, generator=generator)
    return (torch.where(blur, coarse, images) * gain + level * noise).clamp(0, 1)


@torch.no_grad()
def accuracy(network: AttributeClassifier, pictures: Pictures, seed: int) -> dict[str, float]:
    """Share of right answers by question on a set of pictures."""
    labels, hits = labels_of(pictures), {name: 0.0 for name in QUESTIONS}
    batches = Batches(pictures, 1, seed, "judge accuracy")
    for start in range(0, len(pictures), 250):
        rows = np.arange(start, min(start + 250, len(pictures)))
        logits = network(composed(pictures.images[rows], backgrounds(len(rows), batches.generator(start))))
        for name in QUESTIONS:
            hits[name] += float((logits[name].argmax(1) == labels[name][rows]).sum())
    return {name: hit / len(pictures) for name, hit in hits.items()}


def save_judge(path: Path, network: AttributeClassifier, about: dict[str, Any]) -> None:
    """Write the judge in half precision."""
    description = {"kind": KIND, "config": dataclasses.asdict(network.config), "about": about}
    save_weights(path, network.state_dict(), description)


def read_judge(path: Path | None = None) -> tuple[AttributeClassifier, dict[str, Any]]:
    """The judge in a file (default: the packaged one) and what its header tells; `UserError` when it is none."""
    path = path or PACKAGED
    if path.is_dir():
        path = path / "judge.safetensors"
    if not path.exists():
        raise UserError(f"there is no attribute classifier at {path}; {HOW_TO_TRAIN}, which makes both")
    weights, description = read_weights(path, KIND)
    try:
        network = AttributeClassifier(from_plain(ClassifierConfig, description["config"], str(path)))
        network.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); train it again") from error
    return network.eval().requires_grad_(False), description.get("about", {})
