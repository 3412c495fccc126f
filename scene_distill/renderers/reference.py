"""The oracle: every op of `ops` written as dense torch, differentiable by autograd, in float32 or float64.

Slow on purpose (all pixels of a tile times all its Gaussians, or all pixels times all Gaussians in `blend`); the
kernels are tested against it, and SCENE_DISTILL_BACKEND=reference runs a whole training on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core import conventions
from scene_distill.core import spherical_harmonics as harmonics
from scene_distill.core.errors import UserError
from scene_distill.core.geometry import rotmats_from_quats

SSIM_TAPS, SSIM_SIGMA, SSIM_C1, SSIM_C2 = 11, 1.5, 0.01**2, 0.03**2


@dataclass(frozen=True)
class Limits:
    """Thresholds of the rasterizer, by default those of core/conventions.py; tests switch them off."""

    alpha_min: float = conventions.ALPHA_MIN
    alpha_max: float = conventions.ALPHA_MAX
    transmittance_min: float = conventions.TRANSMITTANCE_MIN
    eps2d: float = conventions.EPS2D_PX2
    near_m: float = conventions.NEAR_M
    frustum_margin: float = 0.3


LIMITS = Limits()


def project(
    world: tuple[Tensor, Tensor, Tensor, Tensor],
    camera: tuple[Tensor, Tensor],
    size: tuple[int, int],
    antialiased: bool,
    limits: Limits = LIMITS,
    orthographic: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """means2d [N, 2], conics [N, 3], depths [N], opacities2d [N], extents [N, 2]; culled rows are zero in all of them.

    Local affine projection of 3DGS (eq. 5) with x/z, y/z clamped in the Jacobian (gsplat); the clamp's bounds are
    constants for the gradient of the intrinsics. Orthographic: u = fx x + cx, v = fy y + cy, fx and fy in px per metre.
    """
    means, quats, scales, opacities = world
    pose, (fx, fy, cx, cy) = camera[0], camera[1].unbind()
    width, height = size
    cam = means @ pose[:3, :3].T + pose[:3, 3]
    depths = cam[:, 2]
    ahead = (depths >= limits.near_m) & (opacities >= limits.alpha_min)
    z = torch.where(ahead & (not orthographic), depths, torch.ones_like(depths))
    x, y = cam[:, 0] / z, cam[:, 1] / z
    with torch.no_grad():
        margin_x, margin_y = limits.frustum_margin * 0.5 * width / fx, limits.frustum_margin * 0.5 * height / fy
        low_x, high_x = -cx / fx - margin_x, (width - cx) / fx + margin_x
        low_y, high_y = -cy / fy - margin_y, (height - cy) / fy + margin_y
    zero = torch.zeros_like(z)
    slant_x, slant_y = -fx * x.clamp(low_x, high_x) / z, -fy * y.clamp(low_y, high_y) / z
    if orthographic:
        slant_x, slant_y = zero, zero
    jacobian = torch.stack([fx / z, zero, slant_x, zero, fy / z, slant_y], dim=-1).reshape(-1, 2, 3)
    factor = jacobian @ pose[:3, :3] @ (rotmats_from_quats(quats) * scales[:, None, :])
    sharp = factor @ factor.transpose(1, 2)
    a, b, c = sharp[:, 0, 0] + limits.eps2d, sharp[:, 0, 1], sharp[:, 1, 1] + limits.eps2d
    normal = torch.linalg.cross(factor[:, 0], factor[:, 1])
    det_sharp = (normal * normal).sum(-1)
    det = det_sharp + limits.eps2d * (sharp[:, 0, 0] + sharp[:, 1, 1]) + limits.eps2d**2
    opacities2d = opacities * torch.sqrt(det_sharp.clamp(min=1e-12) / det) if antialiased else opacities
    means2d = torch.stack([fx * x + cx, fy * y + cy], dim=-1)
    conics = torch.stack([c, -b, a], dim=-1) / det[:, None]
    with torch.no_grad():
        cut = 2.0 * torch.log((opacities2d / limits.alpha_min).clamp(min=1.0))
        extents = torch.sqrt(cut[:, None] * torch.stack([a, c], dim=-1)).clamp(min=1e-6)
        inside = (means2d + extents >= 0.5) & (means2d - extents <= means2d.new_tensor(size) - 0.5)
        seen = ahead & (opacities2d >= limits.alpha_min) & inside.all(-1) & torch.isfinite(extents).all(-1)

    def drawn(values: Tensor) -> Tensor:
        mask = seen if values.dim() == 1 else seen[:, None]
        return torch.where(mask, values, torch.zeros_like(values))

    return drawn(means2d), drawn(conics), drawn(depths), drawn(opacities2d), drawn(extents)


def alphas_at(pixels: Tensor, screen: tuple[Tensor, Tensor, Tensor], limits: Limits = LIMITS) -> Tensor:
    """alpha [P, N] of every Gaussian at pixel positions [P, 2], clamped at alpha_max, before the alpha_min test."""
    means2d, conics, opacities2d = screen
    d = pixels[:, None, :] - means2d  # [N, 2], or [P, N, 2] where each pixel has a copy of its own
    a, b, c = conics.unbind(-1)
    power = -0.5 * (a * d[..., 0] ** 2 + c * d[..., 1] ** 2) - b * d[..., 0] * d[..., 1]
    return (opacities2d * torch.exp(power)).clamp(max=limits.alpha_max)


def blending_weights(pixels: Tensor, screen: tuple[Tensor, Tensor, Tensor], limits: Limits = LIMITS) -> Tensor:
    """Weights [P, N] at pixel positions [P, 2] of Gaussians sorted front to back (3DGS eq. 3).

    A contribution below alpha_min is skipped; the first one that would bring the transmittance to transmittance_min or
    below finishes the pixel and is not drawn.
    """
    alphas = alphas_at(pixels, screen, limits)
    alphas = torch.where(alphas >= limits.alpha_min, alphas, torch.zeros_like(alphas))
    after = torch.cumprod(1.0 - alphas, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    return torch.where(after > limits.transmittance_min, alphas * before, torch.zeros_like(alphas))


def blend(
    pixels: Tensor, screen: tuple[Tensor, Tensor, Tensor], features: Tensor, background: Tensor, limits: Limits = LIMITS
) -> tuple[Tensor, Tensor]:
    """Colours [P, D] and alpha [P] at pixel positions [P, 2] of Gaussians sorted front to back: `blending_weights`."""
    weights = blending_weights(pixels, screen, limits)
    alpha = weights.sum(1)
    return weights @ features + (1.0 - alpha)[:, None] * background, alpha


def pixel_centres(size: tuple[int, int], like: Tensor) -> Tensor:
    """(x, y) of every pixel centre, [H * W, 2] row by row, in the dtype and on the device of ``like``."""
    width, height = size
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)


def _tiles(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    width, height = size
    side = conventions.TILE
    return [
        (y, min(y + side, height), x, min(x + side, width))
        for y in range(0, height, side)
        for x in range(0, width, side)
    ]


def bin(
    screen: tuple[Tensor, Tensor, Tensor],
    depths: Tensor,
    extents: Tensor,
    size: tuple[int, int],
    limits: Limits = LIMITS,
) -> tuple[Tensor, Tensor]:
    """tile_offsets [T + 1] and pair_gaussian [M] (int32): a pair per tile with a pixel where alpha >= alpha_min."""
    with torch.no_grad():
        order = torch.argsort(depths, stable=True)
        order = order[extents[order, 0] > 0]
        centres = pixel_centres(size, screen[0]).reshape(size[1], size[0], 2)
        sorted_screen = (screen[0][order], screen[1][order], screen[2][order])
        lists = []
        for y0, y1, x0, x1 in _tiles(size):
            alphas = alphas_at(centres[y0:y1, x0:x1].reshape(-1, 2), sorted_screen, limits)
            lists.append(order[(alphas >= limits.alpha_min).any(0)].to(torch.int32))
        counts = torch.tensor([0] + [len(ids) for ids in lists], device=depths.device)
        return torch.cumsum(counts, 0).to(torch.int32), torch.cat(lists)


def raster(
    screen: tuple[Tensor, Tensor, Tensor],
    features: Tensor,
    background: Tensor,
    lists: tuple[Tensor, Tensor],
    size: tuple[int, int],
    limits: Limits = LIMITS,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """image [H, W, D] and alpha [H, W]: `blend` tile by tile with the Gaussians of its list; background where mask
    [H, W] is False."""
    width, height = size
    offsets, pair_gaussian = lists[0].tolist(), lists[1].long()
    centres = pixel_centres(size, screen[0]).reshape(height, width, 2)
    rows: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for tile, (y0, y1, x0, x1) in enumerate(_tiles(size)):
        ids = pair_gaussian[offsets[tile] : offsets[tile + 1]]
        here = (screen[0][ids], screen[1][ids], screen[2][ids])
        color, alpha = blend(centres[y0:y1, x0:x1].reshape(-1, 2), here, features[ids], background, limits)
        rows.setdefault(y0, []).append((color.reshape(y1 - y0, x1 - x0, -1), alpha.reshape(y1 - y0, x1 - x0)))
    image = torch.cat([torch.cat([color for color, _ in row], dim=1) for row in rows.values()])
    alpha = torch.cat([torch.cat([alpha for _, alpha in row], dim=1) for row in rows.values()])
    return (image, alpha) if mask is None else (torch.where(mask[..., None], image, background), alpha * mask)


def tile_weights(
    screen: tuple[Tensor, Tensor, Tensor], lists: tuple[Tensor, Tensor], size: tuple[int, int], limits: Limits = LIMITS
) -> list[tuple[tuple[int, int, int, int], Tensor, Tensor]]:
    """Per tile: its box (y0, y1, x0, x1), its Gaussians [n] and their blending weights [P, n]."""
    centres = pixel_centres(size, screen[0]).reshape(size[1], size[0], 2)
    offsets, pair_gaussian = lists[0].tolist(), lists[1].long()
    found = []
    for tile, box in enumerate(_tiles(size)):
        ids = pair_gaussian[offsets[tile] : offsets[tile + 1]]
        pixels = centres[box[0] : box[1], box[2] : box[3]].reshape(-1, 2)
        found.append((box, ids, blending_weights(pixels, (screen[0][ids], screen[1][ids], screen[2][ids]), limits)))
    return found


def raster_contributions(
    screen: tuple[Tensor, Tensor, Tensor], lists: tuple[Tensor, Tensor], mask: Tensor | None, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and maximum of every Gaussian's blending weights, and in how many pixels it is drawn, where mask is True."""
    total, largest = torch.zeros_like(screen[2]), torch.zeros_like(screen[2])
    pixels = torch.zeros_like(screen[2], dtype=torch.int32)
    for (y0, y1, x0, x1), ids, weights in tile_weights(screen, lists, size):
        shown = weights if mask is None else weights * mask[y0:y1, x0:x1].reshape(-1, 1)
        total[ids] += shown.sum(0)
        largest[ids] = torch.maximum(largest[ids], shown.amax(0))
        pixels[ids] += (shown > 0).sum(0, dtype=torch.int32)
    return total, largest, pixels


def raster_median(
    screen: tuple[Tensor, Tensor, Tensor], lists: tuple[Tensor, Tensor], mask: Tensor | None, size: tuple[int, int]
) -> Tensor:
    """[H, W] int32: the Gaussian with which the sum of weights reaches one half, -1 where it never does or where mask
    is False."""
    median = torch.full((size[1], size[0]), -1, dtype=torch.int32)
    for (y0, y1, x0, x1), ids, weights in tile_weights(screen, lists, size):
        reached = torch.cumsum(weights, 1) >= 0.5
        if len(ids):
            first = ids[reached.int().argmax(1)].to(torch.int32)
            median[y0:y1, x0:x1] = torch.where(reached.any(1), first, -1).reshape(y1 - y0, x1 - x0)
    return median if mask is None else torch.where(mask, median, -1)


def clip_pixels(v_image: Tensor, bound: float) -> Tensor:
    """The gradient [H, W, D] of an image, each pixel scaled so that no channel exceeds ``bound`` (PGC, ICLR 2024)."""
    largest = v_image.abs().amax(-1, keepdim=True)
    return v_image * torch.where(largest > bound, bound / largest, torch.ones_like(largest))


def absolute_gradients(
    screen: tuple[Tensor, Tensor, Tensor],
    features: Tensor,
    background: Tensor,
    lists: tuple[Tensor, Tensor],
    size: tuple[int, int],
    grads: tuple[Tensor, Tensor | None],
) -> Tensor:
    """[N, 2]: sum over pixels of |dL/d means2d| of that pixel alone (AbsGS), by giving every pixel its own centres."""
    total = torch.zeros_like(screen[0])
    centres = pixel_centres(size, screen[0]).reshape(size[1], size[0], 2)
    offsets, pair_gaussian = lists[0].tolist(), lists[1].long()
    for tile, (y0, y1, x0, x1) in enumerate(_tiles(size)):
        ids = pair_gaussian[offsets[tile] : offsets[tile + 1]]
        pixels = centres[y0:y1, x0:x1].reshape(-1, 2)
        with torch.enable_grad():
            own = screen[0][ids].expand(len(pixels), -1, -1).clone().requires_grad_()
            color, alpha = blend(pixels, (own, screen[1][ids], screen[2][ids]), features[ids], background)
            loss = (color * grads[0][y0:y1, x0:x1].reshape(len(pixels), -1)).sum()
            if grads[1] is not None:
                loss = loss + (alpha * grads[1][y0:y1, x0:x1].reshape(-1)).sum()
        if len(ids):
            total[ids] += torch.autograd.grad(loss, own)[0].abs().sum(0)
    return total


def spherical_harmonics(
    means: Tensor, coefficients: Tensor, camera_center: Tensor, degree: int, extents: Tensor | None
) -> Tensor:
    """Colours [N, 3] = max(0, 1/2 + basis(direction) . coefficients [N, K, 3]), 0 where ``extents`` [N, 2] are 0."""
    directions = torch.nn.functional.normalize(means - camera_center, dim=-1)
    colors = harmonics.evaluate(coefficients[:, : harmonics.basis_count(degree)], directions).clamp(min=0.0)
    return colors if extents is None else torch.where(extents[:, :1] > 0, colors, torch.zeros_like(colors))


def project_splats(
    stored: tuple[Tensor, ...], camera: tuple[Tensor, Tensor], size: tuple[int, int], degree: int, antialiased: bool
) -> tuple[Tensor, ...]:
    """`project` of (means, quats, exp(log_scales), sigmoid(opacity_logits)), and colours [N, 3] from sh, or [0, 3]."""
    means, quats, log_scales, opacity_logits, sh = stored
    screen = project((means, quats, log_scales.exp(), opacity_logits.sigmoid()), camera, size, antialiased)
    if sh is None:
        return *screen, means.new_empty((0, 3))
    center = -camera[0][:3, :3].T @ camera[0][:3, 3]
    return *screen, spherical_harmonics(means, sh, center, degree, screen[4])


def ssim_window(like: Tensor) -> Tensor:
    """The normalised 11-tap Gaussian of SSIM, [11]."""
    offsets = torch.arange(SSIM_TAPS, dtype=like.dtype, device=like.device) - SSIM_TAPS // 2
    window = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return window / window.sum()


def l1_ssim(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean |image - target| and mean SSIM of [H, W, 3] images (Wang et al. 2004, window as in 3DGS, zero padding)."""
    window = ssim_window(image)
    x, y = image.permute(2, 0, 1)[:, None], target.permute(2, 0, 1)[:, None]

    def blur(maps: Tensor) -> Tensor:
        half = SSIM_TAPS // 2
        maps = torch.nn.functional.conv2d(maps, window.reshape(1, 1, 1, -1), padding=(0, half))
        return torch.nn.functional.conv2d(maps, window.reshape(1, 1, -1, 1), padding=(half, 0))

    mx, my = blur(x), blur(y)
    variances = blur(x * x) - mx * mx + blur(y * y) - my * my
    covariance = blur(x * y) - mx * my
    ssim = (2 * mx * my + SSIM_C1) * (2 * covariance + SSIM_C2)
    ssim = ssim / ((mx * mx + my * my + SSIM_C1) * (variances + SSIM_C2))
    return (image - target).abs().mean(), ssim.mean()


def adam_(
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    rates: tuple[float, float, float, float],
    step: int,
    visible: Tensor | None,
) -> None:
    """One Adam step in place on state = (param, grad, exp_avg, exp_avg_sq); rows with visible == 0 stay as they are."""
    param, grad, exp_avg, exp_avg_sq = state
    lr, beta1, beta2, eps = rates
    first = beta1 * exp_avg + (1 - beta1) * grad
    second = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    scale = lr / (1 - beta1**step)
    moved = param - scale * first / (torch.sqrt(second) / (1 - beta2**step) ** 0.5 + eps)
    rows = None if visible is None else visible.bool().reshape(-1, *[1] * (param.dim() - 1))
    with torch.no_grad():
        for old, new in ((param, moved), (exp_avg, first), (exp_avg_sq, second)):
            old.copy_(new if rows is None else torch.where(rows, new, old))


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """The rows [V, ...] of a tensor."""
    _check_rows("take_rows", rows, len(tensor))
    return tensor.index_select(0, rows)


def adam_rows_(
    state: tuple[Tensor, Tensor, Tensor, Tensor], rows: Tensor, rates: tuple[float, float, float, float], step: int,
    leading: tuple[int, float],
) -> None:  # fmt: skip
    """`adam_` on rows of (param, _, exp_avg, exp_avg_sq) with the gradient [V, ...] in second place; so many leading
    numbers of a row have a learning rate of their own."""
    param, grad, exp_avg, exp_avg_sq = state
    _check_rows("adam_rows_", rows, len(param))
    chosen = [tensor.index_select(0, rows) for tensor in (param, exp_avg, exp_avg_sq)]
    for columns, lr in ((slice(0, leading[0]), leading[1]), (slice(leading[0], None), rates[0])):
        flat = [tensor.reshape(len(rows), -1 if len(rows) else 0)[:, columns] for tensor in (*chosen, grad)]
        adam_((flat[0], flat[3], flat[1], flat[2]), (lr, *rates[1:]), step, None)
    for tensor, stepped in zip((param, exp_avg, exp_avg_sq), chosen, strict=True):
        tensor.index_copy_(0, rows, stepped)


def _check_rows(op: str, rows: Tensor, count: int) -> None:
    wrong = int(((rows < 0) | (rows >= count)).sum())
    if wrong:
        raise UserError(f"{op}: {wrong} of the row indices are not in 0 .. {count - 1}")


def decode_anchors(
    anchors: Sequence[Tensor], visible: Tensor, camera_center: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """means, scales, quats, alphas, colors of the V * 10 slots; anchors = (positions, features, offsets, log_scales).

    Specification: Momentum-GS section 1 (Scaffold-GS decoder); see `ops.decode_anchors`.
    """
    positions, features, offsets, log_scales = (field[visible] for field in anchors)
    count, slots = offsets.shape[0], offsets.shape[1]
    direction = torch.nn.functional.normalize(positions - camera_center, dim=-1)
    inputs = torch.cat([features, direction], dim=-1)
    heads = []
    for w1, b1, w2, b2 in (weights[0:4], weights[4:8], weights[8:12]):
        heads.append(torch.relu(inputs @ w1.T + b1) @ w2.T + b2)
    covariance = heads[1].reshape(count, slots, 7)
    scales = torch.exp(log_scales[:, None, 3:6]) * torch.sigmoid(covariance[..., :3])
    quats = torch.nn.functional.normalize(covariance[..., 3:], dim=-1)
    means = positions[:, None] + offsets * torch.exp(log_scales[:, None, 0:3])
    alphas, colors = torch.tanh(heads[0]).reshape(-1), torch.sigmoid(heads[2]).reshape(-1, 3)
    return means.reshape(-1, 3), scales.reshape(-1, 3), quats.reshape(-1, 4), alphas, colors


def momentum_consistency(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """L_c of Momentum-GS (section 3.3) of two decodings (scales, quats, alphas, colors): a scalar.

    MSE of colours, unit quaternions and sizes over the slots that the student draws (alpha > 0), plus MSE of alpha
    over all slots; the teacher's quaternion is compared with the sign that is nearer to the student's.
    """
    scales, quats, alphas, colors = student
    kept = (alphas > 0).to(alphas.dtype)
    count = kept.sum().clamp(min=1.0)
    unit = torch.nn.functional.normalize(quats, dim=-1)
    other = torch.nn.functional.normalize(teacher[1], dim=-1)
    with torch.no_grad():
        sign = torch.where((unit * other).sum(-1, keepdim=True) < 0, -1.0, 1.0).to(unit.dtype)
    per_slot = ((colors - teacher[3]) ** 2).mean(-1) + ((unit - sign * other) ** 2).mean(-1)
    per_slot = per_slot + ((scales - teacher[0]) ** 2).mean(-1)
    return (per_slot * kept).sum() / count + ((alphas - teacher[2]) ** 2).mean()
