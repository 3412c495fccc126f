"""Rotations and opacities as the packed splat formats store them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def unit_quaternions(quats: Tensor) -> Tensor:
    """Quaternions [n, 4] (w, x, y, z) of length one; one without direction becomes the identity."""
    lengths = quats.norm(dim=1, keepdim=True)
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0])
    return torch.where(lengths > 0, quats / lengths.clamp_min(torch.finfo(torch.float32).tiny), identity)


def smallest_three(quats: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Index [n] of the largest component of unit quaternions, and the others [n, 3] in order, the largest positive."""
    table = quats.numpy()
    largest = np.abs(table).argmax(axis=1)
    signs = np.where(np.take_along_axis(table, largest[:, None], axis=1) < 0, np.float32(-1), np.float32(1))
    others = np.arange(3)[None] + (np.arange(3)[None] >= largest[:, None])
    return largest, np.take_along_axis(table, others, axis=1) * signs


def from_smallest_three(largest: np.ndarray, rest: np.ndarray) -> Tensor:
    """Inverse of `smallest_three`: unit quaternions [n, 4], as near as the three given components allow."""
    quats = np.empty((len(rest), 4), np.float32)
    others = np.arange(3)[None] + (np.arange(3)[None] >= largest[:, None])
    np.put_along_axis(quats, others, rest.astype(np.float32), axis=1)
    missing = np.sqrt((1 - (rest.astype(np.float64) ** 2).sum(axis=1)).clip(0))
    np.put_along_axis(quats, largest[:, None].astype(np.int64), missing[:, None].astype(np.float32), axis=1)
    return torch.from_numpy(quats)


def logits_of_bytes(opacity_bytes: np.ndarray) -> Tensor:
    """Finite opacity logits of 0 to 255; the ends become the middle of what is rounded to them."""
    units = torch.from_numpy(np.asarray(opacity_bytes, np.float32)) / 255
    return units.clamp(0.25 / 255, 254.75 / 255).logit()
