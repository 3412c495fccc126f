"""What keeps a radiance field an object while noisy pictures pull at it.

Teacher:   none; priors about density.
Student:   the field, through samples of rays (weights w_i) or through its table.
Gradient:  into weights and table.

    orientation       sum over samples of sg(w) max(0, n . d)^2 per ray (Ref-NeRF 2022; DreamFusion): normals of what is
                      seen face the camera                              (Consistent3D: weight 10, later 1000)
    opacity           mean of sqrt(opacity^2 + 0.01) (DreamFusion): as little object as the pictures allow
    binary opacity    mean of the entropy of opacity: there or not there
    variation         mean square difference of neighbours in the table, density and colour alike
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def orientation(normals: Tensor, directions: Tensor, weights: Tensor, rays: int) -> Tensor:
    """Scalar for outward normals [M, 3] of any length, directions [M, 3] and weights [M] of samples of ``rays``."""
    facing = (functional.normalize(normals, dim=1, eps=1e-8) * directions).sum(dim=1).clamp(min=0)
    return (weights.detach() * facing.square()).sum() / rays


def opacity_size(opacity: Tensor) -> Tensor:
    """Scalar for opacities of any shape."""
    return (opacity.square() + 0.01).sqrt().mean()


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Scalar, 0 where every opacity is 0 or 1."""
    held = opacity.clamp(1e-3, 1 - 1e-3)
    return -(held * held.log() + (1 - held) * (1 - held).log()).mean()


def variation(table: Tensor) -> Tensor:
    """Scalar for a table [R, R, R, D]."""
    return sum((table.diff(dim=axis).square().mean() for axis in range(3)), torch.zeros((), dtype=table.dtype))
