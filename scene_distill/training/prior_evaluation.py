"""What a prior can do: pictures sampled from it, read by a judge that never taught it.

R-precision   share of pictures for which the judge ranks the caption's (colour, object) pair first among all 160
              (chance 0.6 %), for pairs the prior was trained on and for held-out ones
ceiling       the same for rendered pictures of the same captions: what the judge itself misses
views, parts  share whose view word, and whose coloured part, the judge reads as the caption says
distance      Frechet distance of the judge's features between samples and renders; beside it that between two sets of
              renders of the same size, which is what noise of the measure amounts to
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.seeds import numpy_generator
from scene_distill.data.captioned_shapes import (
    BACKGROUND,
    COLOR_NAMES,
    PARTS,
    SHAPE_NAMES,
    VIEWS,
    Shot,
    Split,
    draw_shot,
    pairs,
)
from scene_distill.data.captioned_shapes_pictures import NATURAL
from scene_distill.nets.attribute_classifier import AttributeClassifier, retrieved
from scene_distill.priors.prior import NoisePrior
from scene_distill.training.picture_networks import composed
from scene_distill.training.prior_settings import PriorEvaluation
from scene_distill.training.tiny_prior import sampled


def evaluate_prior(prior: NoisePrior, judge: AttributeClassifier, options: PriorEvaluation) -> dict[str, Any]:
    """The figures of both splits; the keys are those of this file's head."""
    report: dict[str, Any] = {"chance": 1 / len(pairs("all")), "parts_known": len(PARTS)}
    splits: tuple[Split, ...] = ("known", "held_out")
    for split in splits:
        shots = [evaluation_shot(options.seed, number, split) for number in range(options.samples)]
        captions = [shot.caption for shot in shots]
        images = sampled(prior, captions, options.seed, options.guidance, options.steps)
        real = rendered(shots, prior.x0_shape[1])
        other = rendered(
            [evaluation_shot(options.seed + 1, n, split) for n in range(options.samples)], prior.x0_shape[1]
        )
        report[split] = {
            "sampled": judged(judge, images, shots),
            "rendered": judged(judge, real, shots),
            "distance": {
                "sampled": feature_distance(judge.features(images), judge.features(real)),
                "rendered": feature_distance(judge.features(other), judge.features(real)),
            },
        }
    return report


def evaluation_shot(seed: int, number: int, split: Split) -> Shot:
    """A toy to ask for, from a view that its word stands for (no overhead views, none at the edge of two words)."""
    shot = draw_shot(seed, "evaluation", number, split)
    generator = numpy_generator(seed, "evaluation view", split, number)
    view = VIEWS[number % 3]
    middle = {"front": 0.0, "side": 90.0 * generator.choice([-1, 1]), "back": 180.0}[view]
    azimuth, elevation = middle + generator.uniform(-30, 30), generator.uniform(0, 35)
    return replace(shot, azimuth=float(azimuth), elevation=float(elevation))


def rendered(shots: list[Shot], size: int) -> Tensor:
    """Pictures [N, 3, S, S] in [0, 1] of shots, over the house background."""
    images = np.stack([shot.picture(size) for shot in shots])
    return composed(images, torch.tensor(BACKGROUND).expand(len(shots), 3))


@torch.no_grad()
def judged(judge: AttributeClassifier, images: Tensor, shots: list[Shot]) -> dict[str, float]:
    """Shares of pictures [N, 3, H, W] that the judge reads as their captions say."""
    logits = judge(images)
    toys = [shot.toy for shot in shots]
    colors = torch.tensor([COLOR_NAMES.index(toy.color) for toy in toys])
    shapes = torch.tensor([SHAPE_NAMES.index(toy.shape) for toy in toys])
    parts = torch.tensor([COLOR_NAMES.index(t.part_color) if t.part_color else NATURAL for t in toys])
    views = torch.tensor([VIEWS.index(shot.view) for shot in shots])
    named = parts != NATURAL
    right_part = (logits["part_color"].argmax(1) == parts)[named]
    return {
        "r_precision": float(retrieved(logits, colors, shapes).float().mean()),
        "color": float((logits["color"].argmax(1) == colors).float().mean()),
        "shape": float((logits["shape"].argmax(1) == shapes).float().mean()),
        "view": float((logits["view"].argmax(1) == views).float().mean()),
        "part_color": float(right_part.float().mean()) if len(right_part) else float("nan"),
    }


def feature_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of features [N, D] and [M, D].

    The trace of the root is the sum of roots of the eigenvalues of C_a C_b, which are real and not negative.
    """
    first, second = a.double().numpy(), b.double().numpy()
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0))
    gap = first.mean(0) - second.mean(0)
    return float(gap @ gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum())
