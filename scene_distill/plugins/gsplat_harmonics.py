"""gsplat's spherical harmonics for CPU tensors, in torch: any channels, any leading axes, degree 0 to 4.

Degrees 0 to 3 are those of `core/spherical_harmonics.py`. Degree 4 adds the nine real harmonics of l = 4 in the same
order and sign (k = l² + l + m, Condon-Shortley phase); no file format of splats stores them, so no kernel of ours has
them: they cost about 40 torch operations on [N] vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scene_distill.core import spherical_harmonics as harmonics
from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.renderers import ops

MAX_DEGREE = 4

_C4_4 = 0.75 * math.sqrt(35 / math.pi)
_C4_3 = 0.75 * math.sqrt(35 / (2 * math.pi))
_C4_2 = 0.75 * math.sqrt(5 / math.pi)
_C4_1 = 0.75 * math.sqrt(5 / (2 * math.pi))
_C4_0 = 0.1875 / math.sqrt(math.pi)


def basis(directions: Tensor, degree: int) -> Tensor:
    """Values [..., (degree + 1)²] of the harmonics up to ``degree`` <= 4 at unit directions [..., 3]."""
    lower = harmonics.basis(directions, min(degree, harmonics.MAX_DEGREE))
    if degree <= harmonics.MAX_DEGREE:
        return lower
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    fourth = [
        _C4_4 * x * y * (xx - yy),
        -_C4_3 * y * z * (3 * xx - yy),
        _C4_2 * x * y * (7 * zz - 1),
        -_C4_1 * y * z * (7 * zz - 3),
        _C4_0 * (35 * zz * zz - 30 * zz + 3),
        -_C4_1 * x * z * (7 * zz - 3),
        0.5 * _C4_2 * (xx - yy) * (7 * zz - 1),
        -_C4_3 * x * z * (xx - 3 * yy),
        0.25 * _C4_4 * (xx * (xx - 3 * yy) - yy * (3 * xx - yy)),
    ]
    return torch.cat([lower, torch.stack(fourth, dim=-1)], dim=-1)


def refuse_degree(degree: int, bases: int) -> None:
    """Raises `UserError` for a degree outside 0 to 4 and for too few coefficients."""
    if not 0 <= degree <= MAX_DEGREE or bases < harmonics.basis_count(degree):
        raise UserError(
            f"gsplat on the CPU: spherical harmonics of degree {degree} with {bases} coefficients; "
            f"the degree must be 0 to {MAX_DEGREE} with at least (degree + 1)² coefficients"
        )


def spherical_harmonics(degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None = None) -> Tensor:
    """Sum of the first (degree + 1)² harmonics at dirs [..., 3] (any length) with coeffs [..., K, D]: [..., D].

    Coefficients without the leading axes of the directions ([N, K, D], gsplat 1.6) count for all of them. Zero where
    masks [...] is False. The caller adds 0.5. Raises `UserError` for a degree above 4 or too few coefficients.
    """
    refuse_degree(degree, coeffs.shape[-2])
    count = harmonics.basis_count(degree)
    coeffs = coeffs[..., :count, :].expand(*dirs.shape[:-1], count, coeffs.shape[-1])
    if masks is not None:
        at = torch.where(masks)
        colors = spherical_harmonics(degree, dirs[at], coeffs[at])
        return colors.new_zeros((*dirs.shape[:-1], coeffs.shape[-1])).index_put(at, colors)
    if degree == 0:
        return SH_C0 * coeffs[..., 0, :]
    values = basis(torch.nn.functional.normalize(dirs, dim=-1), degree)
    return (values[..., None] * coeffs).sum(-2)


def seen_colors(means: Tensor, coeffs: Tensor, center: Tensor, degree: int, extents: Tensor) -> Tensor:
    """Colours [N, D] = max(0, 1/2 + harmonics) of coeffs [N, K >= (degree + 1)², D] from the camera centre [3].

    Colour and gradient are 0 where extents [N, 2] are. Three channels up to degree 3 run on our kernel.
    """
    refuse_degree(degree, coeffs.shape[-2])
    if degree > harmonics.MAX_DEGREE or coeffs.shape[-1] != 3:
        drawn = extents[:, 0] > 0
        colors = (spherical_harmonics(degree, means - center, coeffs, drawn) + 0.5).clamp(min=0.0)
        return torch.where(drawn[:, None], colors, torch.zeros_like(colors))
    if coeffs.shape[-2] not in (1, 4, 9, 16):
        coeffs = coeffs[:, : harmonics.basis_count(degree)]
    return ops.spherical_harmonics(means, coeffs, center, degree, extents)
