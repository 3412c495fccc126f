"""The only copy of rotation and covariance maths in Python (the kernels have their own, tested against this)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotmats_from_quats(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] (w, x, y, z), normalised here."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quats.shape[:-1], 3, 3)


def quats_from_rotmats(rotmats: Tensor) -> Tensor:
    """Unit quaternions [..., 4] (w, x, y, z), w >= 0, of rotation matrices [..., 3, 3] (Shepperd's method)."""
    m = rotmats
    m00, m11, m22 = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    squared = torch.stack([1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], -1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    candidates = torch.stack(
        [
            torch.stack([squared[..., 0], a, b, c], -1),
            torch.stack([a, squared[..., 1], d, e], -1),
            torch.stack([b, d, squared[..., 2], f], -1),
            torch.stack([c, e, f, squared[..., 3]], -1),
        ],
        dim=-2,
    )
    best = squared.argmax(-1)[..., None, None].expand(*squared.shape[:-1], 1, 4)
    quats = torch.nn.functional.normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def covariances(quats: Tensor, scales: Tensor) -> Tensor:
    """World covariances [..., 3, 3] = R diag(s)^2 R^T of quats [..., 4] and standard deviations [..., 3] (3DGS eq.
    6)."""
    factor = rotmats_from_quats(quats) * scales[..., None, :]
    return factor @ factor.transpose(-1, -2)
