"""Real spherical harmonics up to degree 3, in the order and with the signs of 3DGS files.

Basis function k = l² + l + m is the orthonormal real harmonic of degree l and order m with the Condon-Shortley phase,
for a unit direction (x, y, z) that points **from the camera centre to the Gaussian** in the world frame. Colours are
rgb = 0.5 + sum over k of basis_k(direction) · coefficient_k (3DGS, section 6; constants after Sloan, "Efficient
Spherical Harmonic Evaluation", JCGT 2013).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scene_distill.core.conventions import SH_C0

MAX_DEGREE = 3

_C1 = math.sqrt(3 / (4 * math.pi))
_C2_XY = math.sqrt(15 / (4 * math.pi))
_C2_ZZ = math.sqrt(5 / (16 * math.pi))
_C2_XX = math.sqrt(15 / (16 * math.pi))
_C3_XXX = math.sqrt(35 / (32 * math.pi))
_C3_XYZ = math.sqrt(105 / (4 * math.pi))
_C3_XZZ = math.sqrt(21 / (32 * math.pi))
_C3_ZZZ = math.sqrt(7 / (16 * math.pi))
_C3_ZXX = math.sqrt(105 / (16 * math.pi))


def basis_count(degree: int) -> int:
    """Number K of basis functions of all degrees up to ``degree``."""
    return (degree + 1) ** 2


def degree_of(count: int) -> int:
    """Degree of a set of ``count`` = 1, 4, 9 or 16 basis functions; raises `ValueError` on any other count."""
    degree = math.isqrt(max(count, 0)) - 1
    if basis_count(degree) != count or not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"{count} spherical harmonics: expected 1, 4, 9 or 16 (degree 0 to {MAX_DEGREE})")
    return degree


def basis(directions: Tensor, degree: int = MAX_DEGREE) -> Tensor:
    """Values [..., K] of the first K = (degree + 1)² harmonics at unit directions [..., 3]."""
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, SH_C0)]
    if degree >= 1:
        values += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        values += [
            _C2_XY * x * y,
            -_C2_XY * y * z,
            _C2_ZZ * (2 * zz - xx - yy),
            -_C2_XY * x * z,
            _C2_XX * (xx - yy),
        ]
    if degree >= 3:
        values += [
            -_C3_XXX * y * (3 * xx - yy),
            _C3_XYZ * x * y * z,
            -_C3_XZZ * y * (4 * zz - xx - yy),
            _C3_ZZZ * z * (2 * zz - 3 * xx - 3 * yy),
            -_C3_XZZ * x * (4 * zz - xx - yy),
            _C3_ZXX * z * (xx - yy),
            -_C3_XXX * x * (xx - 3 * yy),
        ]
    return torch.stack(values, dim=-1)


def evaluate(coefficients: Tensor, directions: Tensor) -> Tensor:
    """RGB [N, 3] = 0.5 + basis · coefficients, not clamped, of coefficients [N, K, 3] at unit directions [N, 3]."""
    degree = degree_of(coefficients.shape[-2])
    if degree == 0:
        return 0.5 + SH_C0 * coefficients[..., 0, :]
    return 0.5 + (basis(directions, degree)[..., None, :] @ coefficients).squeeze(-2)


def constant_coefficients(colors: Tensor) -> Tensor:
    """Coefficients [N, 1, 3] of degree 0 that give the view-independent ``colors`` [N, 3] back."""
    return ((colors - 0.5) / SH_C0)[..., None, :]


def rotated(coefficients: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients [..., K, 3] of the same colours after the scene was turned by ``rotation`` [3, 3].

    The harmonics of each degree turn among themselves: c' solves B(d) c' = B(R^T d) c for all directions d, here for
    more of them than there are harmonics, in float64.
    """
    degree = degree_of(coefficients.shape[-2])
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=1)
    turned = basis(directions @ rotation.to("cpu", torch.float64), degree)
    matrix = torch.linalg.lstsq(basis(directions, degree), turned).solution
    return matrix.to(coefficients) @ coefficients
