"""Momentum self-distillation (Momentum-GS, section 3.2 and 3.3).

Teacher:   a slowly moving copy of the shared Gaussian decoder: theta_t <- m theta_t + (1 - m) theta_s before every
step, m = 0.9.
Student:   the decoder in training, on the same anchors and the same view.
Gradient:  into the student decoder and the anchors' features and scales; never into the teacher's weights. With
           ``attached`` it also reaches features and scales through the teacher's branch, as in the paper's code.
Cost:      a second decode (and, when attached, its backward); no second render.

    L_c = MSE(colour) + MSE(unit quaternion) + MSE(size)  over slots the student draws,  + MSE(opacity) over all slots

The quaternion term takes the nearer of q and -q unless told otherwise. Reconstruction-guided weights favour blocks that
lag behind the best:

    w_b = 2 - exp(-[(P* - P_b)^2 + 100 (Q* - Q_b)^2] / (2 sigma_w^2))   in [1, 2)

with P_b, Q_b running means of PSNR (dB) and SSIM on a block's own views, P*, Q* their maxima over blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from scene_distill.core.gaussians import Gaussians
from scene_distill.core.stages import staged
from scene_distill.nets.gaussian_decoder import GaussianDecoder
from scene_distill.renderers import ops


class MomentumTeacher:
    """The teacher decoder and its momentum."""

    def __init__(self, student: GaussianDecoder, momentum: float) -> None:
        self.decoder = student.copy()
        self.momentum = momentum

    @torch.no_grad()
    def follow(self, student: GaussianDecoder) -> None:
        """theta_t <- m theta_t + (1 - m) theta_s, in place."""
        for teacher, weight in zip(self.decoder.weights, student.weights, strict=True):
            teacher.mul_(self.momentum).add_(weight, alpha=1 - self.momentum)


@staged("loss")
def consistency(student: Gaussians, teacher: Gaussians, quaternions: str = "nearer") -> Tensor:
    """L_c, a scalar; zero terms where the student draws nothing.

    ``quaternions``: 'nearer' compares with the nearer of q and -q; 'plain' with q as it is (the paper's code), which
    punishes a rotation for being written with the other sign: |s - t|^2 - |s + t|^2 = -4 s.t more where s.t < 0.
    """
    loss = ops.momentum_consistency(
        [student.scales, student.quats, student.opacities, student.features],
        [teacher.scales, teacher.quats, teacher.opacities, teacher.features],
    )
    if quaternions == "nearer":
        return loss
    drawn = student.opacities > 0
    s, t = (torch.nn.functional.normalize(g.quats, dim=1) for g in (student, teacher))
    flipped = torch.relu(-(s * t).sum(1)) * drawn
    return loss + flipped.sum() / drawn.sum().clamp(min=1)


def block_weight(scores: Mapping[int, tuple[float, float]], block: int, sigma: float, signal: str = "both") -> float:
    """w_b of a block from running (PSNR in dB, SSIM) of all blocks; 1 for a block that was never measured.

    ``signal``: 'both' (the paper's full method), 'psnr', 'ssim' (its ablation), or 'none' (always 1).
    """
    if block not in scores or signal == "none":
        return 1.0
    best_psnr = max(psnr for psnr, _ in scores.values())
    best_ssim = max(ssim for _, ssim in scores.values())
    psnr_gap = best_psnr - scores[block][0] if signal in ("both", "psnr") else 0.0
    ssim_gap = best_ssim - scores[block][1] if signal in ("both", "ssim") else 0.0
    return 2.0 - math.exp(-(psnr_gap**2 + 100.0 * ssim_gap**2) / (2.0 * sigma**2))
