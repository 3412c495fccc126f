"""The Janus score: how often an object's back is taken for a front.

by the judge   share of back views (azimuth within 45 degrees of straight behind) for which its p(front) > p(back)
by the prior   the same with the prior as the classifier (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot
               Classifier"): the view word whose prompt predicts the added noise with the smaller error, noise and
               levels the same for both words. It needs no judge, and works for every prior.

An object counts only where the rendered toy's own front is told from its back (`has_face`), and the rendered toy's
score stands beside every other. In the toy world light comes from the front and stands still, so that even a
mushroom has a front: its lit side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.seeds import torch_generator
from scene_distill.data.captioned_shapes import VIEWS
from scene_distill.priors.prior import Counted, NoisePrior, joined
from scene_distill.training.object_views import ObjectViews

Judge = Callable[[Tensor], Mapping[str, Tensor]]
"""Logits [B, answers] by question of pictures [B, 3, H, W] in [0, 1]: `nets.attribute_classifier`, or a test's own."""

FRONT, BACK = VIEWS.index("front"), VIEWS.index("back")

TOLD_APART = 0.5
"""A toy has a face when its front views are called front this much more often than its back views are."""


@dataclass(frozen=True)
class Janus:
    """Shares of back and of front views that are called front rather than back; NaN where there are none."""

    back: float
    front: float


def janus(logits: Mapping[str, Tensor], views: ObjectViews) -> Janus:
    """By the judge's logits of the views."""
    front = (logits["view"][:, FRONT] > logits["view"][:, BACK]).double()
    return Janus(_mean(front[views.of("back")]), _mean(front[views.of("front")]))


def has_face(toy: Janus) -> bool:
    """Whether a rendered toy's front is told from its back: whether objects that mean it can have a Janus score."""
    return toy.front - toy.back >= TOLD_APART


@torch.no_grad()
def janus_by_prior(prior: NoisePrior, prompt: str, views: ObjectViews, seed: int = 0, levels: int = 8) -> Janus:
    """By the prior's own prediction errors at ``levels`` noise levels between a fifth and four fifths of its schedule.

    Costs 2 ``levels`` evaluations of the prior for every front and back view.
    """
    rows = torch.cat([views.of("back"), views.of("front")])
    x0 = prior.encode(views.images[rows])
    errors = torch.zeros(2, len(rows), dtype=torch.float64)
    described = [prior.describe([f"{prompt}, {word} view"]).repeated(len(rows)) for word in ("front", "back")]
    counted = Counted(prior)
    for number, fraction in enumerate(torch.linspace(0.2, 0.8, levels).tolist()):
        level = torch.full((len(rows),), prior.schedule.level_of_fraction(fraction), dtype=torch.int64)
        noise = torch.randn(x0.shape, generator=torch_generator(seed, "janus", number)).to(x0)
        z = x0 + prior.schedule.sigma(level, x0) * noise
        eps = counted.eps(torch.cat([z, z]), torch.cat([level, level]).to(z.device), joined(described))
        errors += (eps - torch.cat([noise, noise])).double().square().flatten(1).mean(1).reshape(2, -1).cpu()
    front = (errors[0] < errors[1]).double()
    behind = len(views.of("back"))
    return Janus(_mean(front[:behind]), _mean(front[behind:]))


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else float("nan")
