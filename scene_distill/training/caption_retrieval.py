"""R-precision: whether a judge that never taught picks a picture's own caption among all captions of the toy world.

    score(picture, caption) = log p(colour | picture) + log p(object | picture) [+ log p(part's colour | picture)]

Two lists of captions: 160 pairs of colour and object ('a red chair'; chance 0.6 %), and 1760 with the part ('a red
chair with green legs'; a caption that names no part means its natural colour; chance 0.06 %). Captions that tie share
the place, so a judge that sees nothing scores exactly chance.

Source: R-precision of Park et al. 2021 and DreamFusion (2022) with CLIP; here the judge is `nets.attribute_classifier`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.data.captioned_shapes import COLOR_NAMES, SHAPE_NAMES, Toy
from scene_distill.data.captioned_shapes_pictures import NATURAL


@dataclass(frozen=True)
class Retrieval:
    """Shares of pictures whose caption came first: of 160 pairs, and of 1760 captions with parts; and the same for the
    object as a whole (log probabilities summed over its pictures: 1 or 0, or a share where captions tie)."""

    pairs: float
    parts: float
    whole_pairs: float
    whole_parts: float


CHANCE_PAIRS = 1 / (len(COLOR_NAMES) * len(SHAPE_NAMES))
CHANCE_PARTS = CHANCE_PAIRS / (len(COLOR_NAMES) + 1)
"""What guessing scores."""


def retrieval(logits: Mapping[str, Tensor], toy: Toy) -> Retrieval:
    """Of pictures of one toy, by the judge's logits [V, answers] of its questions."""
    views = {name: torch.log_softmax(value.double(), 1) for name, value in logits.items()}
    whole = {name: value.sum(0, keepdim=True) for name, value in views.items()}
    shares = [float(first_share(s, place_of(toy, p)).mean()) for s, p in _lists(views) + _lists(whole)]
    return Retrieval(*shares)


def _lists(logs: Mapping[str, Tensor]) -> list[tuple[Tensor, bool]]:
    return [(caption_scores(logs, parts=False), False), (caption_scores(logs, parts=True), True)]


def caption_scores(logs: Mapping[str, Tensor], parts: bool) -> Tensor:
    """Scores [B, captions] of log probabilities by question; colours vary slowest, the part's colour fastest."""
    pairs = (logs["color"][:, :, None] + logs["shape"][:, None, :]).flatten(1)
    return (pairs[:, :, None] + logs["part_color"][:, None, :]).flatten(1) if parts else pairs


def place_of(toy: Toy, parts: bool) -> int:
    """The toy's caption in the order of `caption_scores`."""
    pair = COLOR_NAMES.index(toy.color) * len(SHAPE_NAMES) + SHAPE_NAMES.index(toy.shape)
    part = NATURAL if toy.part_color is None else COLOR_NAMES.index(toy.part_color)
    return pair * (NATURAL + 1) + part if parts else pair


def first_share(scores: Tensor, place: int) -> Tensor:
    """For each row of scores [B, captions]: 0 where another caption scores higher than number ``place``, else 1 shared
    among those that score the same."""
    own = scores[:, place : place + 1]
    close = (scores - own).abs() <= 1e-9 * (1 + own.abs())
    beaten = ((scores > own) & ~close).any(1)
    return torch.where(beaten, torch.zeros(len(scores), dtype=scores.dtype), 1.0 / close.sum(1))


def pictures_retrieved(logits: Mapping[str, Tensor], toys: Sequence[Toy]) -> tuple[float, float]:
    """R-precision of pictures of different toys, one each: among pairs, and among captions with parts."""
    each = [retrieval({name: value[i : i + 1] for name, value in logits.items()}, toy) for i, toy in enumerate(toys)]
    return sum(one.pairs for one in each) / len(each), sum(one.parts for one in each) / len(each)
