"""A prompt with words for where the object is seen from: "a red chair, side view".

The embeddings of the four prompts are interpolated by angle (LucidDreamer, Dreamer XL): with |azimuth| = a up to 90,
(1 - a / 90) front + (a / 90) side, beyond it side to back; from `OVERHEAD_FROM` to `OVERHEAD_FULL` of elevation the
result goes over into the overhead view (Dreamer XL has none; the toy world has). 'nearest' takes one word per view, cut
at 45, 135 and the same elevations' middle, as the toy world's captions are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.guidance import Combination, PerpNeg
from scene_distill.priors.prior import Condition, NoisePrior

VIEW_WORDS = ("front", "side", "back", "overhead")
OVERHEAD_FROM, OVERHEAD_FULL = 50.0, 70.0
"""Elevations in degrees between which the overhead view takes over; their middle is the toy world's bound."""

Blend = Literal["interpolated", "nearest", "none"]


def view_weights(azimuth: Tensor, elevation: Tensor, blend: Blend = "interpolated") -> Tensor:
    """Share of front, side, back and overhead, [C, 4], rows add up to 1, for angles [C] in degrees."""
    ahead = (torch.remainder(azimuth + 180, 360) - 180).abs()
    back = (ahead - 90).clamp(min=0) / 90
    front = (90 - ahead).clamp(min=0) / 90
    above = ((elevation - OVERHEAD_FROM) / (OVERHEAD_FULL - OVERHEAD_FROM)).clamp(0, 1)
    around = torch.stack([front, 1 - front - back, back], 1)
    weights = torch.cat([around * (1 - above)[:, None], above[:, None]], 1)
    if blend == "interpolated":
        return weights
    word = around.argmax(1)
    word = torch.where(above > 0.5, torch.full_like(word, 3), word)
    return torch.nn.functional.one_hot(word, 4).to(weights)


@dataclass(frozen=True)
class ViewPrompts:
    """The conditions of one prompt: ``views`` has four rows (front, side, back, overhead), or one for blend 'none'."""

    views: Condition
    unwanted: Condition
    empty: Condition
    blend: Blend

    def roles(self, azimuth: Tensor, elevation: Tensor) -> dict[str, Condition]:
        """Conditions by role for C views: 'wanted' one row per view, 'unwanted' and 'empty' one for all."""
        wanted = self.views
        if self.blend != "none":
            wanted = blended(self.views, view_weights(azimuth, elevation, self.blend))
        return {"wanted": wanted, "unwanted": self.unwanted, "empty": self.empty}


FRONT_DECAY, SIDE_DECAY = 2.0, 10.0
"""How fast a negative view loses weight as the wanted view comes near it (Dreamer XL)."""


def negative_weights(azimuth: Tensor, strength: float) -> Tensor:
    """Weights of front and side as negative views of Perp-Neg, [C, 2], not above 0, for azimuths [C] in degrees.

    With r the share of the nearer of the two words that are blended (front or side, side or back): in front -s
    exp(-2 r) for the front and -s exp(-10 (1 - r)) for the side; behind -s for the front and -s exp(-10 r) for the
    side.
    """
    ahead = (torch.remainder(azimuth + 180, 360) - 180).abs()
    before, behind = 1 - ahead / 90, 2 - ahead / 90
    is_front = ahead < 90
    front = torch.where(is_front, torch.exp(-FRONT_DECAY * before), torch.ones_like(ahead))
    side = torch.where(is_front, torch.exp(-SIDE_DECAY * (1 - before)), torch.exp(-SIDE_DECAY * behind))
    return -strength * torch.stack([front, side], 1)


def perp_neg(
    prompts: ViewPrompts, azimuth: Tensor, strength: float
) -> tuple[dict[str, Condition], Callable[[float], Combination]]:
    """Conditions of the negative views by role, and guidance that pushes away from them; two more evaluations a
    picture. Raises UserError for prompts without view words."""
    if prompts.blend == "none":
        raise UserError("--perp-neg pushes away from views and needs view words; leave --view-words as it is")
    weights = negative_weights(azimuth, strength).unbind(1)
    rows = {f"negative {i}": prompts.views.select(torch.tensor([i])) for i in range(2)}
    return rows, lambda scale: PerpNeg(scale, tuple(weights))


def describe_views(prior: NoisePrior, prompt: str, negative: str = "", blend: Blend = "interpolated") -> ViewPrompts:
    """What a prior makes of a prompt from all sides; ``negative`` is the reference of guidance.

    Raises UserError for a prompt that names a view itself, and where the prior does not know the words.
    """
    if not prompt.strip():
        raise UserError('the prompt is empty; say what to make, for example "a red chair"')
    if blend != "none" and re.search(rf"\b({'|'.join(VIEW_WORDS)}) view\b", prompt.lower()):
        raise UserError(f"'{prompt}' names a view; leave it out, views are added by the camera's angle")
    prompts = [prompt] if blend == "none" else [f"{prompt}, {word} view" for word in VIEW_WORDS]
    empty = prior.describe([""])
    return ViewPrompts(prior.describe(prompts), prior.describe([negative]) if negative else empty, empty, blend)


def blended(table: Condition, weights: Tensor) -> Condition:
    """Rows of ``table`` [K] mixed by weights [C, K]: a condition of C rows."""
    total = table.select(torch.zeros(len(weights), dtype=torch.int64))
    sum_so_far = weights[:, 0].clone()
    for k in range(1, weights.shape[1]):
        sum_so_far = sum_so_far + weights[:, k]
        share = weights[:, k] / sum_so_far.clamp(min=1e-12)
        total = total.mixed(table.select(torch.full((len(weights),), k)), share)
    return total
