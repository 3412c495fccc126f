"""Every figure about one text-to-3D object, and the two things to read it beside: the toy itself, and the ceiling.

`measured` gives the figures of anything that draws (a result, or `toy_objects.toy_object`, the toy that the caption
means). `ceiling` gives R-precision and Janus score of pictures sampled from the prior for the same captions and views:
what a perfect distillation of that prior, read by this judge, would score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scene_distill.core.gaussians import Gaussians
from scene_distill.data.captioned_shapes import Toy
from scene_distill.priors.prior import NoisePrior
from scene_distill.training.caption_retrieval import CHANCE_PAIRS, CHANCE_PARTS, pictures_retrieved, retrieval
from scene_distill.training.janus import BACK, FRONT, Janus, Judge, janus, janus_by_prior
from scene_distill.training.object_health import divergence, saturation
from scene_distill.training.object_views import Draw, ObjectViews, Orbit, object_views
from scene_distill.training.tiny_prior import sampled
from scene_distill.training.view_consistency import consistency

FIGURES = {
    "r_precision": "R-precision of views among 160 pairs of colour and object",
    "r_precision_parts": "R-precision of views among 1760 captions with parts",
    "r_precision_object": "R-precision of the whole object among the pairs",
    "inconsistency": "colour difference between neighbouring views, 0 to 1",
    "overlap": "share of pixels that neighbours could be compared at",
    "sharpness": "gradient energy inside the object",
    "janus": "share of back views the judge calls front",
    "front_found": "share of front views the judge calls front",
    "clipped": "share of pixels at the end of the range",
    "chroma": "mean largest minus smallest channel",
    "diverged": "1 for an object that is none",
}
"""The keys of `measured` and what they are; `janus_prior` and `front_found_prior` join them where a prior is asked."""

NO_FACE = Janus(float("nan"), float("nan"))
"""Of an object that has diverged: it has neither front nor back."""


@dataclass(frozen=True)
class Asked:
    """What a result is measured against: the toy its caption means, and the judge that reads pictures."""

    toy: Toy
    judge: Judge


def measured(draw: Draw, asked: Asked, orbit: Orbit, prior: NoisePrior | None = None,
             gaussians: Gaussians | None = None) -> dict[str, Any]:  # fmt: skip
    """The figures of `FIGURES`, and 'why' with the reason of a divergence ('' without)."""
    return figures_of(object_views(draw, orbit), asked, prior, gaussians)


def figures_of(views: ObjectViews, asked: Asked, prior: NoisePrior | None = None,
               gaussians: Gaussians | None = None) -> dict[str, Any]:  # fmt: skip
    """`measured` of pictures that are there."""
    with torch.no_grad():
        logits = asked.judge(views.images)
    found, same, colors = retrieval(logits, asked.toy), consistency(views), saturation(views)
    why = divergence(views, gaussians)
    faces = NO_FACE if why else janus(logits, views)
    figures: dict[str, Any] = {
        "r_precision": found.pairs, "r_precision_parts": found.parts, "r_precision_object": found.whole_pairs,
        "inconsistency": same.inconsistency, "overlap": same.overlap, "sharpness": same.sharpness,
        "janus": faces.back, "front_found": faces.front, "clipped": colors.clipped, "chroma": colors.chroma,
        "diverged": float(bool(why)), "why": why,
    }  # fmt: skip
    if prior is not None:
        by_prior = NO_FACE if why else janus_by_prior(prior, asked.toy.caption(), views)
        figures |= {"janus_prior": by_prior.back, "front_found_prior": by_prior.front}
    return figures


def ceiling(prior: NoisePrior, judge: Judge, toys: Sequence[Toy], orbit: Orbit, seed: int = 0,
            guidance: float = 3.0, steps: int = 30) -> dict[str, float]:  # fmt: skip
    """R-precision, and the Janus score, of one sample of the prior for every toy from every view of the orbit; chance
    beside them."""
    asked = [(toy, word) for toy in toys for word in orbit.words]
    images = sampled(prior, [toy.caption(word) for toy, word in asked], seed, guidance, steps)
    with torch.no_grad():
        logits = judge(images)
    pairs, parts = pictures_retrieved(logits, [toy for toy, _ in asked])
    front = logits["view"][:, FRONT] > logits["view"][:, BACK]
    back = torch.tensor([word == "back" for _, word in asked])
    taken = float(front[back].double().mean()) if bool(back.any()) else float("nan")
    return {
        "r_precision": pairs, "r_precision_parts": parts, "janus": taken, "pictures": float(len(asked)),
        "chance": CHANCE_PAIRS, "chance_parts": CHANCE_PARTS,
    }  # fmt: skip
