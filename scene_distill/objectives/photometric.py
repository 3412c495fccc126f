"""Photometric reconstruction.

Teacher:   the photograph.
Student:   the render of the same view.
Gradient:  flows into everything that made the render; none into the photograph.
Cost:      one fused L1 + separable SSIM pass forward and backward over H*W*3 values.

L_rec = (1 - lambda) mean|I - P| + lambda (1 - SSIM(I, P)), lambda = 0.2 (3DGS eq. 7; Momentum-GS section 3.1), SSIM
with an 11 x 11
Gaussian window, sigma 1.5, zero padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.core.stages import Stage, picture_seen
from scene_distill.renderers import ops


def reconstruction(render: Tensor, photo: Tensor, dssim: float) -> tuple[Tensor, Tensor, Tensor]:
    """(L_rec, L1, SSIM), three scalars, of a render and a photograph [H, W, 3] in [0, 1]."""
    with Stage("loss"):
        l1, ssim = ops.l1_ssim(render, photo)
    picture_seen(render, photo)
    return (1 - dssim) * l1 + dssim * (1 - ssim), l1, ssim


def exposure_fit(render: Tensor, photo: Tensor, prior: float) -> Tensor:
    """Gain and bias of each channel [2, 3] that bring a render [H, W, 3] nearest to a photo.

    Minimises mean (g I + b - P)^2 + prior ((g - 1)^2 + b^2) per channel, in closed form. It takes no gradient and is
    found anew at every step, so it needs no numbers of views.
    """
    image, target = render.detach().reshape(-1, 3), photo.reshape(-1, 3)
    mean, square, cross = image.mean(0), (image * image).mean(0) + prior, (image * target).mean(0) + prior
    determinant = square * (1 + prior) - mean * mean
    gain = (cross * (1 + prior) - mean * target.mean(0)) / determinant
    bias = (square * target.mean(0) - mean * cross) / determinant
    return torch.stack([gain, bias])


def exposed(render: Tensor, fit: Tensor, usual: Tensor) -> Tensor:
    """The render [H, W, 3] in the exposure ``fit`` of its photo, if in the exposure ``usual`` it would stay as it is.

    Both [2, 3], gain and bias of each channel. Fits alone leave the scene's own brightness open: any scene times any
    gain fits as well. What is usual holds it.
    """
    gain = fit[0] / usual[0].clamp(min=0.05)
    return render * gain + (fit[1] - usual[1] * gain)


def volume(scales: Tensor, drawn: Tensor, unit: float) -> Tensor:
    """Mean product of the three sizes of the drawn Gaussians in units of ``unit``^3 (spec momentum_gs.md, section 3.3).

    scales [N, 3] metres, drawn [N] bool; zero when nothing is drawn. The paper's code multiplies it by 0.01.
    """
    products = scales.prod(1) * drawn
    return products.sum() / (drawn.sum().clamp(min=1) * unit**3)
