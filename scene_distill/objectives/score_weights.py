"""Named weights w(t), float64 [B]."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.schedules import NoiseSchedule

Weighting = Literal["uniform", "one_minus_abar", "fantasia3d", "sigma"]


def weight_of(name: Weighting, level: Tensor, schedule: NoiseSchedule) -> Tensor:
    """1; 1 - abar (threestudio's 'sds'); sqrt(abar) (1 - abar) (Fantasia3D); sigma (ISM, TSM, SDI)."""
    abar = schedule.abar(level)
    if name == "uniform":
        return torch.ones_like(abar)
    if name == "one_minus_abar":
        return 1 - abar
    if name == "fantasia3d":
        return abar.sqrt() * (1 - abar)
    if name == "sigma":
        return schedule.sigma(level)
    raise UserError(f"weights are {', '.join(get_args(Weighting))}, got {name!r}")
