"""Several predictions made into one: classifier-free guidance, Perp-Neg, rescaling; always in standard form.

    CFG        e = u + g (c - u)       g = 0 the reference alone, g = 1 the wanted prompt alone  (Ho and Salimans 2022)

Some code bases write c + s (c - u) instead, which is g = s + 1: their "100" is 101 here. `standard_scale` converts.

Predictions are named by role, never by position in a batch, so that reference and prompt cannot be swapped:
'wanted' is the prompt, 'empty' the empty prompt, 'unwanted' the negative prompt; Perp-Neg adds 'negative 0', ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.prior import Condition, NoisePrior, joined

Prompts = Mapping[str, Condition]
"""Conditions by role, each with one row for all pictures or one row per picture."""
Convention = Literal["standard", "threestudio"]


class Combination(Protocol):
    """A rule that makes one prediction of the predictions for several roles."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The predictions it needs; each costs one evaluation per picture."""
        ...

    def combine(self, eps: Mapping[str, Tensor]) -> Tensor:
        """The combined prediction, shaped like each of them."""
        ...


def standard_scale(scale: float, convention: Convention) -> float:
    """g of u + g (c - u) for a scale written in another code base's convention."""
    if convention not in ("standard", "threestudio"):
        raise UserError(f"guidance conventions are standard and threestudio, got {convention!r}")
    return scale + 1.0 if convention == "threestudio" else scale


@dataclass(frozen=True)
class Alone:
    """One prediction as it is."""

    role: str

    @property
    def roles(self) -> tuple[str, ...]:
        """That role."""
        return (self.role,)

    def combine(self, eps: Mapping[str, Tensor]) -> Tensor:
        """eps of the role."""
        return eps[self.role]


@dataclass(frozen=True)
class Guided:
    """e = u + g (c - u), optionally rescaled to the spread of c; a prediction that does not matter is not asked for.

    ``rescale`` phi in [0, 1]: e <- phi e std(c) / std(e) + (1 - phi) e, std over each picture (Lin et al. 2023, applied
    to noise as diffusers does).
    """

    scale: float
    reference: str = "unwanted"
    rescale: float = 0.0

    @property
    def roles(self) -> tuple[str, ...]:
        """Reference and wanted; only one of them where g is 0 or 1."""
        if self.scale == 1:
            return ("wanted",)
        if self.scale == 0 and self.rescale == 0:
            return (self.reference,)
        return (self.reference, "wanted")

    def combine(self, eps: Mapping[str, Tensor]) -> Tensor:
        """The guided prediction."""
        if len(self.roles) == 1:
            return eps[self.roles[0]]
        reference, wanted = eps[self.reference], eps["wanted"]
        guided = reference + self.scale * (wanted - reference)
        return rescaled(guided, wanted, self.rescale) if self.rescale else guided


@dataclass(frozen=True)
class PerpNeg:
    """Guidance pushed away from negative prompts without weakening the wanted one (Perp-Neg, Armandpour et al. 2023).

        d_i = e_i - u,   e = u + g [ d_0 + sum_i w_i (d_i - <d_i, d_0> / |d_0|^2 d_0) ]

    ``weights``: one [B] tensor (or number) per negative, negative numbers push away; inner products are per picture.
    """

    scale: float
    weights: tuple[Tensor | float, ...]
    reference: str = "unwanted"

    @property
    def roles(self) -> tuple[str, ...]:
        """Reference, wanted and one role per negative."""
        return (self.reference, "wanted", *(f"negative {i}" for i in range(len(self.weights))))

    def combine(self, eps: Mapping[str, Tensor]) -> Tensor:
        """The guided prediction."""
        reference = eps[self.reference]
        main = eps["wanted"] - reference
        away = [perpendicular(eps[f"negative {i}"] - reference, main) for i in range(len(self.weights))]
        total = main
        for weight, direction in zip(self.weights, away, strict=True):
            w = torch.as_tensor(weight, dtype=main.dtype, device=main.device)
            total = total + w.reshape(-1, *[1] * (main.ndim - 1)) * direction
        return reference + self.scale * total


def perpendicular(direction: Tensor, main: Tensor) -> Tensor:
    """The part of direction [B, ...] that is orthogonal to main in each picture; all of it where main is zero."""
    d, m = direction.flatten(1), main.flatten(1)
    square = (m * m).sum(1, keepdim=True)
    share = torch.where(square > 0, (d * m).sum(1, keepdim=True) / square.clamp(min=torch.finfo(m.dtype).tiny), 0.0)
    return (d - share * m).reshape(direction.shape)


def rescaled(guided: Tensor, wanted: Tensor, share: float) -> Tensor:
    """phi e std(c) / std(e) + (1 - phi) e with standard deviations over each picture."""
    spread = [x.flatten(1).std(1).reshape(-1, *[1] * (x.ndim - 1)) for x in (guided, wanted)]
    ratio = spread[1] / spread[0].clamp(min=torch.finfo(guided.dtype).tiny)
    return guided * (1 + share * (ratio - 1))


@dataclass(frozen=True)
class Request:
    """A prediction wanted from a prior: at which states z [B, ...], at which levels int64 [B], combined how."""

    z: Tensor
    level: Tensor
    combination: Combination


def ask(prior: NoisePrior, prompts: Prompts, requests: Sequence[Request]) -> list[Tensor]:
    """The combined predictions of all requests, from one call of the prior.

    Raises UserError for a role that has no prompt.
    """
    rows: list[tuple[Tensor, Tensor, Condition]] = []
    for request in requests:
        for role in request.combination.roles:
            if role not in prompts:
                raise UserError(f"this guidance needs the prompt {role!r}; given are {', '.join(sorted(prompts))}")
            rows.append((request.z, request.level, prompts[role].repeated(len(request.z))))
    states, levels, conditions = zip(*rows, strict=True)
    predicted = prior.eps(torch.cat(states), torch.cat(levels), joined(conditions))
    parts = iter(predicted.split([len(z) for z in states]))
    return [r.combination.combine({role: next(parts) for role in r.combination.roles}) for r in requests]
