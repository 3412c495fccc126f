"""Image metrics, raw first: PSNR, SSIM, and both again after the colour correction that published city tables use.

Images are [H, W, 3] in [0, 1] on any device; float32 or float64. LPIPS is in `lpips`: it needs network weights, and no
other number may stand under its name.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

MAX_PSNR_DB = 100.0
"""PSNR of identical images, so that averages and JSON stay finite."""

SSIM_WINDOW = 11
SSIM_SIGMA_PX = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2

SATURATION = 0.5 / 255
"""A channel value this close to 0 or 1 counts as saturated in `color_correct`."""

CORRECTION_ROUNDS = 5


def psnr(render: Tensor, photo: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, -10 log10 of the mean squared difference, at most `MAX_PSNR_DB`."""
    mean_squared = torch.mean((render - photo).double() ** 2).item()
    return min(MAX_PSNR_DB, -10 * math.log10(mean_squared)) if mean_squared > 0 else MAX_PSNR_DB


def ssim(render: Tensor, photo: Tensor) -> Tensor:
    """Mean structural similarity, a scalar, differentiable (Wang et al. 2004).

    Gaussian window 11x11 with sigma 1.5, zero padding, averaged over all pixels and channels: what 3DGS trains with
    and what the op ``l1_ssim`` computes.
    """
    offsets = torch.arange(SSIM_WINDOW, dtype=render.dtype, device=render.device) - SSIM_WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA_PX**2))
    window = window / window.sum()
    x, y = render.permute(2, 0, 1)[:, None], photo.permute(2, 0, 1)[:, None]  # channels as a batch
    stacked = torch.cat([x, y, x * x, y * y, x * y])
    half = SSIM_WINDOW // 2
    blurred = functional.conv2d(stacked, window.reshape(1, 1, -1, 1), padding=(half, 0))
    blurred = functional.conv2d(blurred, window.reshape(1, 1, 1, -1), padding=(0, half))
    mean_x, mean_y, square_x, square_y, product = blurred.chunk(5)
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return (luminance * structure).mean()


def _monomials(pixels: Tensor) -> Tensor:
    """[P, 10] = r², rg, rb, g², gb, b², r, g, b, 1 of pixels [P, 3]."""
    r, g, b = pixels.unbind(-1)
    return torch.stack([r * r, r * g, r * b, g * g, g * b, b * b, r, g, b, torch.ones_like(r)], dim=-1)


def color_correct(render: Tensor, photo: Tensor) -> Tensor:
    """The render [H, W, 3] with its colours fitted to the photo's (it uses the photo: never mix it with raw numbers).

    Per channel, least squares of the photo on ten monomials of the rendered colour, over the pixels unsaturated in
    both, then clipped to [0, 1]; repeated five times on its own result (Momentum-GS evaluation, after mip-NeRF
    360's). A channel with fewer unsaturated pixels than monomials is returned as it came.
    """
    original = render.reshape(-1, 3).double()
    target = photo.reshape(-1, 3).double()
    usable = _unsaturated(original) & _unsaturated(target)
    current = original
    for _ in range(CORRECTION_ROUNDS):
        monomials = _monomials(current)
        mask = usable & _unsaturated(current)
        columns = []
        for channel in range(3):
            rows = monomials[mask[:, channel]]
            if len(rows) < monomials.shape[1]:
                columns.append(current[:, channel])
                continue
            gram, moment = rows.T @ rows, rows.T @ target[mask[:, channel], channel]
            weights = torch.linalg.pinv(gram, rtol=1e-13, hermitian=True) @ moment
            columns.append((monomials @ weights).clamp(0.0, 1.0))
        current = torch.stack(columns, dim=-1)
    return current.reshape(render.shape).to(render.dtype)


def _unsaturated(pixels: Tensor) -> Tensor:
    return (pixels >= SATURATION) & (pixels <= 1 - SATURATION)


def shrink_psnr(photo: Tensor, factor: int = 8) -> float:
    """PSNR in dB of the photo [H, W, 3] against its copy shrunk by area averaging and enlarged bicubically.

    How much of a photograph is detail: a render below this number knows less than a thumbnail does.
    """
    height, width = photo.shape[:2]
    image = photo.permute(2, 0, 1)[None]
    small = functional.interpolate(image, size=(max(1, height // factor), max(1, width // factor)), mode="area")
    enlarged = functional.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
    return psnr(enlarged[0].permute(1, 2, 0).clamp(0.0, 1.0), photo)


def measure(render: Tensor, photo: Tensor, lpips: Callable[[Tensor, Tensor], float] | None = None) -> dict[str, float]:
    """Metrics of one render (clipped to [0, 1]) against its photo: psnr, ssim, then both after `color_correct`; lpips
    and lpips_corrected where a network is given."""
    clipped = render.clamp(0.0, 1.0)
    corrected = color_correct(clipped, photo)
    found = {
        "psnr": psnr(clipped, photo),
        "ssim": float(ssim(clipped, photo)),
        "psnr_corrected": psnr(corrected, photo),
        "ssim_corrected": float(ssim(corrected, photo)),
    }
    if lpips is not None:
        found |= {"lpips": lpips(clipped, photo), "lpips_corrected": lpips(corrected, photo)}
    return found


def summarise(per_image: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means under each key and sample deviations under ``key + "_std"``: nerfstudio's psnr, psnr_std and so on.

    Every image must have the same keys, e.g. `measure`'s, with ``fps`` or others beside them; the order is kept. The
    deviation of a single image is 0. Raises `ValueError` on an empty list or differing keys.
    """
    if not per_image or any(set(metrics) != set(per_image[0]) for metrics in per_image):
        raise ValueError("summarise needs at least one image, and the same metrics for every image")
    summary: dict[str, float] = {}
    for key in per_image[0]:
        values = [float(metrics[key]) for metrics in per_image]
        summary[key] = statistics.fmean(values)
        summary[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return summary
