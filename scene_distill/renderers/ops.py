"""The op set of every renderer: one schema per op, namespace ``scene_distill``, chosen by the device of the tensors.

On the CPU the native library runs; ``SCENE_DISTILL_BACKEND=reference`` runs `reference` instead. Other devices register
their own kernels for the same schemas (`renderers/cuda.py`). Every op has a fake kernel, and those that can be
differentiated an autograd formula made of another op, so that the backward pass is dispatched in the same way.

All tensors are float32 (the reference also takes float64) and are made contiguous here. Wrong shapes and types raise
`UserError`. The same inputs give the same bytes on any number of CPU threads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from scene_distill.core import spherical_harmonics as harmonics
from scene_distill.core.conventions import TILE
from scene_distill.core.errors import UserError
from scene_distill.renderers import autograd, cpu, cuda

LIBRARY = torch.library.Library("scene_distill", "DEF")
MAX_CHANNELS = 512

for _schema in (
    "project(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor cam_from_world, Tensor intrinsics, "
    "int width, int height, bool antialiased) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "project_backward(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor cam_from_world, "
    "Tensor intrinsics, int width, int height, bool antialiased, Tensor extents, Tensor? v_means2d, Tensor? v_conics, "
    "Tensor? v_depths, Tensor? v_opacities2d, bool camera_grad) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "bin(Tensor means2d, Tensor conics, Tensor opacities2d, Tensor depths, Tensor extents, int width, int height) "
    "-> (Tensor, Tensor)",
    "raster(Tensor means2d, Tensor conics, Tensor opacities2d, Tensor features, Tensor background, "
    "Tensor tile_offsets, Tensor pair_gaussian, int width, int height, Tensor? mask=None) -> (Tensor, Tensor)",
    "raster_backward(Tensor means2d, Tensor conics, Tensor opacities2d, Tensor features, Tensor background, "
    "Tensor tile_offsets, Tensor pair_gaussian, Tensor image, Tensor alpha, Tensor v_image, Tensor? v_alpha, "
    "Tensor? mask=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "l1_ssim(Tensor image, Tensor target, bool with_gradient) -> (Tensor, Tensor, Tensor)",
    "l1_ssim_backward(Tensor image, Tensor target, Tensor ssim_gradient, Tensor v_l1, Tensor v_ssim) -> Tensor",
    "adam_(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, float lr, float beta1, "
    "float beta2, float eps, int step, Tensor? visible) -> ()",
    "decode_anchors(Tensor positions, Tensor features, Tensor offsets, Tensor log_scales, Tensor visible, "
    "Tensor camera_center, Tensor[] weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "decode_anchors_backward(Tensor positions, Tensor features, Tensor offsets, Tensor log_scales, Tensor visible, "
    "Tensor camera_center, Tensor[] weights, Tensor?[] grads) -> Tensor[]",
    "momentum_consistency(Tensor[] student, Tensor[] teacher) -> Tensor",
    "momentum_consistency_backward(Tensor[] student, Tensor[] teacher, Tensor v_loss) -> Tensor[]",
):
    LIBRARY.define(_schema)

_PROJECT = "Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor cam_from_world, Tensor intrinsics, "
_STORED = (
    "Tensor means, Tensor quats, Tensor log_scales, Tensor opacity_logits, Tensor? sh, Tensor cam_from_world, "
    "Tensor intrinsics, "
)
_SCREEN = "Tensor means2d, Tensor conics, Tensor opacities2d, "
_LISTS = "Tensor tile_offsets, Tensor pair_gaussian, "
for _schema in (
    f"project_orthographic({_PROJECT}int width, int height, bool antialiased) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"project_orthographic_backward({_PROJECT}int width, int height, bool antialiased, Tensor extents, "
    "Tensor? v_means2d, Tensor? v_conics, Tensor? v_depths, Tensor? v_opacities2d, bool camera_grad) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "raster_probed(Tensor means2d, Tensor probe, Tensor conics, Tensor opacities2d, Tensor features, "
    f"Tensor background, {_LISTS}int width, int height, float gradient_bound, Tensor? mask=None) -> (Tensor, Tensor)",
    f"raster_probed_backward({_SCREEN}Tensor features, Tensor background, {_LISTS}Tensor image, Tensor alpha, "
    "Tensor v_image, Tensor? v_alpha, float gradient_bound, bool absolute, Tensor? mask=None) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"raster_contributions({_SCREEN}{_LISTS}int width, int height, Tensor? mask=None) -> (Tensor, Tensor, Tensor)",
    f"raster_median({_SCREEN}{_LISTS}int width, int height, Tensor? mask=None) -> Tensor",
    "spherical_harmonics(Tensor means, Tensor coefficients, Tensor camera_center, int degree, Tensor? extents) -> "
    "Tensor",
    "spherical_harmonics_backward(Tensor means, Tensor coefficients, Tensor camera_center, int degree, "
    "Tensor? extents, Tensor colors, Tensor v_colors, bool center_grad) -> (Tensor, Tensor, Tensor)",
    f"project_splats({_STORED}int width, int height, int degree, bool antialiased) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"project_splats_backward({_STORED}int width, int height, int degree, bool antialiased, Tensor extents, "
    "Tensor colors, Tensor? v_means2d, Tensor? v_conics, Tensor? v_depths, Tensor? v_opacities2d, Tensor? v_colors) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "take_rows(Tensor tensor, Tensor rows) -> Tensor",
    "adam_rows_(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor rows, float lr, "
    "float beta1, float beta2, float eps, int step, int leading, float leading_lr) -> ()",
):
    LIBRARY.define(_schema)
cpu.register(LIBRARY)
cuda.register(LIBRARY)
autograd.register(LIBRARY)

_OPS = torch.ops.scene_distill


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    cam_from_world: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    antialiased: bool = False,
    orthographic: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Screen ellipses of world Gaussians seen by one pinhole camera (3DGS eq. 5, with gsplat's frustum clamp), or
    by an orthographic one, where u = fx x + cx and v = fy y + cy with fx, fy in px per metre.

    means [N, 3] and scales [N, 3] in metres, quats [N, 4] (w, x, y, z), opacities [N], cam_from_world [4, 4],
    intrinsics [4] = (fx, fy, cx, cy) px. Returns means2d [N, 2] px; conics [N, 3] = (a, b, c) of exp(-(a dx^2 + c
    dy^2) / 2 - b dx dy); depths [N] metres; opacities2d [N] (times sqrt(det / blurred det) when antialiased,
    Mip-Splatting); extents [N, 2], the half sizes in px of the box where alpha >= ALPHA_MIN. Culled Gaussians (depth
    < NEAR_M, opacity < ALPHA_MIN, off screen) are zero everywhere. Differentiable in all tensors but the extents.
    Raises `UserError` for NaN or infinite Gaussians, on CUDA in `bin`.
    """
    count = means.shape[0] if means.dim() else 0
    _check("project", {"means": (means, (count, 3)), "quats": (quats, (count, 4)), "scales": (scales, (count, 3)),
                       "opacities": (opacities, (count,)), "cam_from_world": (cam_from_world, (4, 4)),
                       "intrinsics": (intrinsics, (4,))})  # fmt: skip
    _check_size(width, height)
    draw = _OPS.project_orthographic if orthographic else _OPS.project
    return draw(means, quats, scales, opacities, cam_from_world, intrinsics, width, height, antialiased)


def project_splats(
    stored: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    cam_from_world: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    degree: int | None = None,
    antialiased: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`project` and `spherical_harmonics` of stored = (means [N, 3], quats [N, 4], log_scales [N, 3], opacity_logits
    [N], sh [N, K, 3]) in one pass, without activated copies: what `project` returns, and colours [N, 3].

    Without sh (None) there are no colours ([0, 3]). Differentiable in the stored tensors, not in the camera: activate
    them for that (`stored_splats.activated`). Raises `UserError` for NaN or infinite Gaussians.
    """
    means, quats, log_scales, opacity_logits, sh = stored
    count = means.shape[0] if means.dim() else 0
    named: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "means": (means, (count, 3)), "quats": (quats, (count, 4)), "log_scales": (log_scales, (count, 3)),
        "opacity_logits": (opacity_logits, (count,)), "cam_from_world": (cam_from_world, (4, 4)),
        "intrinsics": (intrinsics, (4,)),
    }  # fmt: skip
    held = 0
    if sh is not None:
        held = harmonics.degree_of(sh.shape[1])
        named["sh"] = (sh, (count, sh.shape[1], 3))
    _check("project_splats", named)
    _check_size(*size)
    if torch.is_grad_enabled() and (cam_from_world.requires_grad or intrinsics.requires_grad):
        raise UserError("project_splats: the camera gets no gradient here; activate the splats and use `project`")
    if degree is not None and not 0 <= degree <= held:
        raise UserError(f"project_splats: degree {degree} of coefficients up to degree {held}")
    used = held if degree is None else degree
    return _OPS.project_splats(*stored, cam_from_world, intrinsics, *size, used, antialiased)


def take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """The rows [V, ...] of a tensor [N, ...] at ``rows`` [V] int64, on all threads; rows may lie apart (a slice of the
    second axis). Not differentiable. Raises `UserError` for an index out of range."""
    _check("take_rows", {"tensor": (tensor, None)})
    _check_rows("take_rows", rows, tensor)
    with torch.no_grad():
        return _OPS.take_rows(tensor, rows)


def adam_rows_(
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    rows: Tensor,
    rates: tuple[float, float, float, float],
    step: int,
    leading: tuple[int, float] = (0, 0.0),
) -> None:
    """`adam_` on chosen rows of state = (param [N, ...], grad [V, ...], exp_avg, exp_avg_sq) in place.

    rows [V] int64, none twice, name the rows that the rows of ``grad`` belong to; rates = (lr, beta1, beta2, eps);
    leading = (count, lr): so many numbers at the beginning of every row have a learning rate of their own. The rows of
    every tensor may lie apart (a slice of the second axis). Raises `UserError` for an index out of range.
    """
    param, grad, exp_avg, exp_avg_sq = state
    shape = tuple(param.shape)
    _check("adam_rows_", {"param": (param, shape), "grad": (grad, (len(rows), *shape[1:])), "exp_avg": (exp_avg, shape),
                          "exp_avg_sq": (exp_avg_sq, shape)})  # fmt: skip
    _check_rows("adam_rows_", rows, param, grad, exp_avg, exp_avg_sq)
    if not 0 <= leading[0] <= math.prod(shape[1:]):
        raise UserError(f"adam_rows_: {leading[0]} leading numbers in rows of {math.prod(shape[1:])}")
    if not param.stride(0) == exp_avg.stride(0) == exp_avg_sq.stride(0):
        raise UserError("adam_rows_: the parameter and its moments must have the same row stride")
    with torch.no_grad():
        _OPS.adam_rows_(param, grad, exp_avg, exp_avg_sq, rows, *rates, step, *leading)


def _check_rows(op: str, rows: Tensor, *tensors: Tensor) -> None:
    if rows.dtype != torch.int64 or rows.dim() != 1 or not rows.is_contiguous():
        raise UserError(f"{op}: rows must be int64 [V], not {rows.dtype} {tuple(rows.shape)}")
    if not all(len(tensor) == 0 or tensor[0].is_contiguous() for tensor in tensors):
        raise UserError(f"{op}: the numbers of one row must lie side by side")


def bin(
    means2d: Tensor, conics: Tensor, opacities2d: Tensor, depths: Tensor, extents: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Lists of what each 16x16 tile draws, front to back, from the outputs of `project`.

    Returns tile_offsets [T + 1] int32 (tiles row by row) and pair_gaussian [M] int32: the Gaussians of tile t are
    pair_gaussian[tile_offsets[t]:tile_offsets[t + 1]], sorted by depth, ties by index. Not differentiable.
    """
    count = means2d.shape[0]
    _check("bin", {"means2d": (means2d, (count, 2)), "conics": (conics, (count, 3)), "depths": (depths, (count,)),
                   "opacities2d": (opacities2d, (count,)), "extents": (extents, (count, 2))})  # fmt: skip
    _check_size(width, height)
    return _OPS.bin(means2d, conics, opacities2d, depths, extents, width, height)


def raster(
    means2d: Tensor,
    conics: Tensor,
    opacities2d: Tensor,
    features: Tensor,
    background: Tensor,
    tile_offsets: Tensor,
    pair_gaussian: Tensor,
    width: int,
    height: int,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Alpha-blended image [H, W, D] and alpha [H, W] (3DGS eq. 3) of features [N, D <= 512] over background [D].

    Pixels where mask [H, W] bool is False show the background with alpha 0; tiles without any other pixel cost nothing.
    Differentiable in means2d, conics, opacities2d, features and background; the tile lists come from `bin`.
    """
    count, channels = features.shape
    _check("raster", {"means2d": (means2d, (count, 2)), "conics": (conics, (count, 3)), "features": (features, None),
                      "opacities2d": (opacities2d, (count,)), "background": (background, (channels,))})  # fmt: skip
    _check_size(width, height)
    _check_mask("raster", mask, (width, height), features.device)
    tiles = -(-width // TILE) * -(-height // TILE)
    if tile_offsets.shape != (tiles + 1,) or tile_offsets.dtype != torch.int32 or pair_gaussian.dtype != torch.int32:
        raise UserError(
            f"raster: tile_offsets must be int32 [{tiles + 1}] and pair_gaussian int32, as `bin` returns them"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise UserError(f"raster: features have {channels} channels; draw 1 to {MAX_CHANNELS} at a time")
    return _OPS.raster(
        means2d, conics, opacities2d, features, background, tile_offsets, pair_gaussian, width, height, mask
    )


def raster_probed(
    screen: tuple[Tensor, Tensor, Tensor],
    probe: Tensor,
    features: Tensor,
    background: Tensor,
    lists: tuple[Tensor, Tensor],
    size: tuple[int, int],
    gradient_bound: float = math.inf,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`raster` of screen = (means2d, conics, opacities2d) whose backward pass can be clipped and read.

    Before it is spread over the Gaussians, the gradient of each pixel's channels is scaled down until none exceeds
    ``gradient_bound`` (pixel-wise gradient clipping, PGC; Dreamer XL). ``probe`` [N, 2] is not drawn: where it requires
    a gradient it receives sum over pixels of |dL/d means2d|, the absolute gradient of AbsGS.
    """
    _check("raster_probed", {"means2d": (screen[0], tuple(probe.shape)), "probe": (probe, (len(screen[0]), 2)),
                             "features": (features, None),
                             "background": (background, (features.shape[1],))})  # fmt: skip
    _check_mask("raster_probed", mask, size, features.device)
    if not gradient_bound > 0:
        raise UserError(f"raster_probed: the gradient bound must be positive, not {gradient_bound}")
    means2d, conics, opacities2d = screen
    return _OPS.raster_probed(
        means2d, probe, conics, opacities2d, features, background, *lists, *size, float(gradient_bound), mask
    )


def raster_contributions(
    screen: tuple[Tensor, Tensor, Tensor],
    lists: tuple[Tensor, Tensor],
    size: tuple[int, int],
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What each Gaussian of screen = (means2d, conics, opacities2d) adds to a picture: pruning and visibility scores.

    Returns weight_sum [N] and weight_max [N] of its blending weights alpha * transmittance, and pixels [N] int32, the
    number of pixels it is drawn in; pixels where mask [H, W] bool is False do not count. Not differentiable.
    """
    _check_mask("raster_contributions", mask, size, screen[0].device)
    with torch.no_grad():
        return _OPS.raster_contributions(*screen, *lists, *size, mask)


def raster_median(
    screen: tuple[Tensor, Tensor, Tensor],
    lists: tuple[Tensor, Tensor],
    size: tuple[int, int],
    mask: Tensor | None = None,
) -> Tensor:
    """[H, W] int32: the Gaussian that takes the transmittance of a pixel to at or below 1/2; -1 where none does or
    where mask [H, W] bool is False."""
    _check_mask("raster_median", mask, size, screen[0].device)
    with torch.no_grad():
        return _OPS.raster_median(*screen, *lists, *size, mask)


def spherical_harmonics(
    means: Tensor,
    coefficients: Tensor,
    camera_center: Tensor,
    degree: int | None = None,
    extents: Tensor | None = None,
) -> Tensor:
    """Colours [N, 3] = max(0, 1/2 + basis(d) . coefficients [N, K, 3]), d the direction from camera_center to means.

    ``degree`` uses the coefficients up to that degree only (training that starts with few); extents [N, 2] of the
    projection spare the Gaussians that are not drawn (colour and gradient 0). Basis: core/spherical_harmonics.py.
    Differentiable in means, coefficients and camera_center.
    """
    count, bases = coefficients.shape[:2]
    _check("spherical_harmonics", {"means": (means, (count, 3)), "coefficients": (coefficients, (count, bases, 3)),
                                   "camera_center": (camera_center, (3,))})  # fmt: skip
    stored = harmonics.degree_of(bases)
    if degree is not None and not 0 <= degree <= stored:
        raise UserError(f"spherical_harmonics: degree {degree} of coefficients up to degree {stored}")
    return _OPS.spherical_harmonics(means, coefficients, camera_center, stored if degree is None else degree, extents)


def l1_ssim(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean |image - target| and mean SSIM of two [H, W, 3] images in [0, 1], two scalars differentiable in the image.

    SSIM with an 11x11 Gaussian window of sigma 1.5, zero padding, C1 = 0.01^2, C2 = 0.03^2, as in 3DGS.
    """
    shape = (*image.shape[:2], 3)
    _check("l1_ssim", {"image": (image, shape), "target": (target, shape)})
    l1, ssim, _ = _OPS.l1_ssim(image, target, image.requires_grad and torch.is_grad_enabled())
    return l1, ssim


def adam_(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    visible: Tensor | None = None,
) -> None:
    """One step of Adam (Kingma & Ba 2015) in place; ``step`` counts from 1.

    visible [rows] uint8 leaves parameter and moments of the rows with 0 as they are. Every tensor has the parameter's
    shape.
    """
    with torch.no_grad():
        shape = tuple(param.shape)
        _check("adam_", {"param": (param, shape), "grad": (grad, shape), "exp_avg": (exp_avg, shape),
                         "exp_avg_sq": (exp_avg_sq, shape)})  # fmt: skip
        if not (param.is_contiguous() and exp_avg.is_contiguous() and exp_avg_sq.is_contiguous()):
            raise UserError("adam_: the parameter and its moments are changed in place and must be contiguous")
        if visible is not None and (visible.dtype != torch.uint8 or visible.shape != shape[:1]):
            raise UserError(
                f"adam_: visible must be uint8 [{shape[0] if shape else 1}], not {visible.dtype} {tuple(visible.shape)}"
            )
        _OPS.adam_(param, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, step, visible)


def decode_anchors(
    positions: Tensor,
    features: Tensor,
    offsets: Tensor,
    log_scales: Tensor,
    visible: Tensor,
    camera_center: Tensor,
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The V * 10 Gaussians of the visible anchors (Momentum-GS section 1; Scaffold-GS decoder).

    positions [A, 3], features [A, 32], offsets [A, 10, 3], log_scales [A, 6], visible [V] int64 anchor ids (none
    twice), camera_center [3]; weights: for opacity, covariance, colour w1 [32, 35], b1 [32], w2 [out, 32], b2 [out],
    out = 10, 70, 30. Returns means [V*10, 3], scales [V*10, 3], quats [V*10, 4] unit, alphas [V*10] in (-1, 1),
    colors [V*10, 3]: z = [f, (p - c) / |p - c|], heads with one ReLU layer of 32, alpha = tanh, colour = sigmoid,
    size = exp(s[3:6]) sigmoid(u), mean = p + O exp(s[0:3]). Differentiable in the anchor tensors and the weights.
    """
    count = positions.shape[0]
    named: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "positions": (positions, (count, 3)), "features": (features, (count, 32)),
        "offsets": (offsets, (count, 10, 3)), "log_scales": (log_scales, (count, 6)),
        "camera_center": (camera_center, (3,)),
    }  # fmt: skip
    shapes = [shape for out in (10, 70, 30) for shape in ((32, 35), (32,), (out, 32), (out,))]
    if len(weights) != len(shapes):
        raise UserError(f"decode_anchors: the decoder has {len(weights)} weight tensors, expected {len(shapes)}")
    named |= {f"weights[{i}]": (weight, shape) for i, (weight, shape) in enumerate(zip(weights, shapes, strict=True))}
    _check("decode_anchors", named)
    if visible.dtype != torch.int64 or visible.dim() != 1:
        raise UserError("decode_anchors: visible must be int64 [V]")
    return _OPS.decode_anchors(positions, features, offsets, log_scales, visible, camera_center, list(weights))


def momentum_consistency(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Momentum-GS consistency L_c (section 3.3) of two decodings (scales [P, 3], quats [P, 4], alphas [P], colors [P,
    3]).

    MSE(colour) + MSE(unit quaternion, sign-invariant) + MSE(size) over slots with student alpha > 0, + MSE(alpha)
    over all. A scalar, differentiable in all eight tensors.
    """
    count = student[2].shape[0]
    for role, slots in (("student", student), ("teacher", teacher)):
        scales, quats, alphas, colors = slots
        _check("momentum_consistency", {
            f"{role} scales": (scales, (count, 3)), f"{role} quats": (quats, (count, 4)),
            f"{role} alphas": (alphas, (count,)), f"{role} colors": (colors, (count, 3)),
        })  # fmt: skip
    return _OPS.momentum_consistency(list(student), list(teacher))


def _check(op: str, named: Mapping[str, tuple[Tensor, tuple[int, ...] | None]]) -> None:
    device = dtype = None
    for name, (tensor, shape) in named.items():
        if shape is not None and tensor.shape != shape:
            raise UserError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        if device is None:
            device, dtype = tensor.device, tensor.dtype
        if tensor.device != device or tensor.dtype != dtype:
            raise UserError(f"{op}: {name} is {tensor.dtype} on {tensor.device}, the others are {dtype} on {device}")
    if dtype != torch.float32 and not (dtype == torch.float64 and cpu.uses_reference()):
        raise UserError(f"{op}: tensors are {dtype}; the kernels work in float32")


def _check_mask(op: str, mask: Tensor | None, size: tuple[int, int], device: torch.device) -> None:
    width, height = size
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.shape != (height, width) or mask.device != device:
        raise UserError(
            f"{op}: the mask must be bool [{height}, {width}] on {device}, not {mask.dtype} {list(mask.shape)} on "
            f"{mask.device}"
        )


def _check_size(width: int, height: int) -> None:
    if not (1 <= width <= 16384 and 1 <= height <= 16384):
        raise UserError(f"an image of {width} x {height} pixels cannot be drawn; each side must be 1 to 16384")
