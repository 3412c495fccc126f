"""What gsplat's optimizer and strategies call besides the rasterizer, for CPU tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.geometry import rotmats_from_quats
from scene_distill.renderers import ops

UNCORRECTED = 2**31
"""A step of Adam after which the bias corrections 1 - beta^step are 1."""

UPPER = ([0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2])
"""Rows and columns of the six numbers of a symmetric matrix, in gsplat's order."""


def quat_scale_to_covar_preci(given: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Covariance and precision matrices [..., 3, 3] ([..., 6] upper triangles with ``triu``); None if not asked."""
    rotations = rotmats_from_quats(given["quats"])

    def squared(scales: Tensor) -> Tensor:
        factor = rotations * scales[..., None, :]
        matrices = factor @ factor.transpose(-1, -2)
        return matrices[..., UPPER[0], UPPER[1]] if given["triu"] else matrices

    scales = given["scales"]
    return (
        squared(scales) if given["compute_covar"] else None,
        squared(1.0 / scales) if given["compute_preci"] else None,
    )


def world_to_cam(given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Means [..., C, N, 3] and covariances [..., C, N, 3, 3] in the frames of viewmats [..., C, 4, 4]."""
    turn, shift = given["viewmats"][..., :3, :3], given["viewmats"][..., None, :3, 3]
    means = given["means"][..., None, :, :] @ turn.transpose(-1, -2) + shift
    turn = turn[..., None, :, :]
    return means, turn @ given["covars"][..., None, :, :, :] @ turn.transpose(-1, -2)


def compute_relocation(given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Opacities [N] and scales [N, 3] of Gaussians that ``ratios`` [N] copies of one share (3DGS-MCMC, equation 9).

    o' = 1 - (1 - o)^(1/n); s' = s o / sum over i = 1..n, k = 0..i-1 of C(i-1, k) (-1)^k / sqrt(k + 1) o'^(k+1). Like
    gsplat, clamps the ratios in place to 1..n_max, the size of the table ``binoms``.
    """
    opacities, scales, binoms = given["opacities"], given["scales"], given["binoms"]
    limit = binoms.shape[0]
    copies = given["ratios"].clamp_(min=1, max=limit).long()
    shared = 1.0 - (1.0 - opacities) ** (1.0 / copies)
    k = torch.arange(limit, device=opacities.device)
    signs = torch.where(k % 2 == 0, 1.0, -1.0) / torch.sqrt(k + 1.0)
    summed = torch.cumsum(binoms.double() * signs, dim=0)[copies - 1]
    powers = shared.double()[:, None] ** (k + 1)
    share = opacities / (summed * powers).sum(-1).to(opacities.dtype)
    return shared, share[:, None] * scales


@torch.no_grad()
def adam(given: Mapping[str, Any]) -> None:
    """One step in place of gsplat's `SelectiveAdam`: Adam without bias correction; rows with valid [N] = 0 stay."""
    valid = given["valid"]
    ops.adam_(
        given["param"], given["param_grad"].contiguous(), given["exp_avg"], given["exp_avg_sq"], given["lr"],
        given["b1"], given["b2"], given["eps"], UNCORRECTED, None if valid is None else (valid != 0).to(torch.uint8),
    )  # fmt: skip
