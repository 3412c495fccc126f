"""CPU kernels of the op set: the native library, or the reference where SCENE_DISTILL_BACKEND=reference asks for it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.renderers import native, native_anchors, native_features, native_splats, reference

MAX_ANCHORS = 2**31 // 32
"""Anchors that the kernels' 32-bit row offsets reach."""


def uses_reference() -> bool:
    """Whether SCENE_DISTILL_BACKEND=reference asks for the oracle on the CPU."""
    return os.environ.get("SCENE_DISTILL_BACKEND") == "reference"


def _project(means, quats, scales, opacities, cam_from_world, intrinsics, width, height, antialiased,
             orthographic=False):  # fmt: skip
    world, camera = _contiguous(means, quats, scales, opacities), _contiguous(cam_from_world, intrinsics)
    if uses_reference():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in world):
            raise UserError("some Gaussians have a NaN or infinite mean, quaternion, scale or opacity")
        return _fresh(reference.project(world, camera, (width, height), antialiased, orthographic=orthographic))
    return native.project(world, camera, (width, height), antialiased, orthographic=orthographic)


def _project_backward(means, quats, scales, opacities, cam_from_world, intrinsics, width, height, antialiased, extents,
                          v_means2d, v_conics, v_depths, v_opacities2d, camera_grad, orthographic=False):  # fmt: skip
    world, camera = _contiguous(means, quats, scales, opacities), _contiguous(cam_from_world, intrinsics)
    grads = _contiguous(v_means2d, v_conics, v_depths, v_opacities2d)
    if uses_reference():
        return _pull_back(
            lambda *t: reference.project(t[:4], t[4:], (width, height), antialiased, orthographic=orthographic)[:4],
            (*world, *camera), grads,
        )  # fmt: skip
    return native.project_backward(
        world, camera, (width, height), antialiased, extents, grads, camera_grad, orthographic=orthographic
    )


def _bin(means2d, conics, opacities2d, depths, extents, width, height):
    screen = _contiguous(means2d, conics, opacities2d)
    backend = reference if uses_reference() else native
    return backend.bin(screen, depths.contiguous(), extents.contiguous(), (width, height))


def _raster(means2d, conics, opacities2d, features, background, tile_offsets, pair_gaussian, width, height, mask=None):
    backend = reference if uses_reference() else native
    screen, lists = _contiguous(means2d, conics, opacities2d), _contiguous(tile_offsets, pair_gaussian)
    features, background, mask = _contiguous(features, background, mask)
    return backend.raster(screen, features, background, lists, (width, height), mask=mask)


def _raster_backward(means2d, conics, opacities2d, features, background, tile_offsets, pair_gaussian, image, alpha,
                         v_image, v_alpha, mask=None):  # fmt: skip
    screen, lists = _contiguous(means2d, conics, opacities2d), _contiguous(tile_offsets, pair_gaussian)
    features, background, mask = _contiguous(features, background, mask)
    grads = _contiguous(v_image, v_alpha)
    if uses_reference():
        size = (image.shape[1], image.shape[0])
        return _pull_back(
            lambda *t: reference.raster(t[:3], t[3], t[4], lists, size, mask=mask),
            (*screen, features, background), grads,
        )  # fmt: skip
    return native.raster_backward(screen, features, background, lists, _contiguous(image, alpha), grads, mask=mask)


def _raster_probed(means2d, probe, conics, opacities2d, features, background, tile_offsets, pair_gaussian, width,
                   height, gradient_bound, mask=None):  # fmt: skip
    lists = (tile_offsets, pair_gaussian)
    return _raster(means2d, conics, opacities2d, features, background, *lists, width, height, mask)


def _raster_probed_backward(means2d, conics, opacities2d, features, background, tile_offsets, pair_gaussian, image,
                            alpha, v_image, v_alpha, gradient_bound, absolute, mask=None):  # fmt: skip
    screen, lists = _contiguous(means2d, conics, opacities2d), _contiguous(tile_offsets, pair_gaussian)
    drawn = _contiguous(features, background, image, alpha)
    grads, (mask,) = _contiguous(v_image, v_alpha), _contiguous(mask)
    if not uses_reference():
        return native_features.raster_probed_backward(screen, drawn, lists, grads, gradient_bound, absolute, mask)
    clipped = (reference.clip_pixels(grads[0], gradient_bound), grads[1])
    size = (image.shape[1], image.shape[0])
    pulled = _pull_back(
        lambda *t: reference.raster(t[:3], t[3], t[4], lists, size, mask=mask), (*screen, *drawn[:2]), clipped
    )
    if not absolute:
        return *pulled, torch.zeros_like(means2d)
    if mask is not None:
        clipped = (clipped[0] * mask[..., None], None if clipped[1] is None else clipped[1] * mask)
    return *pulled, reference.absolute_gradients(screen, drawn[0], drawn[1], lists, size, clipped)


def _raster_contributions(means2d, conics, opacities2d, tile_offsets, pair_gaussian, width, height, mask=None):
    screen, lists = _contiguous(means2d, conics, opacities2d), _contiguous(tile_offsets, pair_gaussian)
    backend, (mask,) = reference if uses_reference() else native_features, _contiguous(mask)
    return backend.raster_contributions(screen, lists, mask, (width, height))[:3]


def _raster_median(means2d, conics, opacities2d, tile_offsets, pair_gaussian, width, height, mask=None):
    screen, lists = _contiguous(means2d, conics, opacities2d), _contiguous(tile_offsets, pair_gaussian)
    backend, (mask,) = reference if uses_reference() else native_features, _contiguous(mask)
    return backend.raster_median(screen, lists, mask, (width, height))


def _spherical_harmonics(means, coefficients, camera_center, degree, extents):
    backend = reference if uses_reference() else native_features
    means, coefficients, camera_center, extents = _contiguous(means, coefficients, camera_center, extents)
    return backend.spherical_harmonics(means, coefficients, camera_center, degree, extents)


def _spherical_harmonics_backward(means, coefficients, camera_center, degree, extents, colors, v_colors, center_grad):
    inputs = _contiguous(means, coefficients, camera_center)
    extents, colors, v_colors = _contiguous(extents, colors, v_colors)
    if uses_reference():
        return _pull_back(
            lambda means, coefficients, center: (
                reference.spherical_harmonics(means, coefficients, center, degree, extents),
            ),
            inputs, (v_colors,),
        )  # fmt: skip
    return native_features.spherical_harmonics_backward((*inputs, degree, extents), colors, v_colors, center_grad)


def _project_splats(*inputs):
    stored, camera = _contiguous(*inputs[:5]), _contiguous(*inputs[5:7])
    width, height, degree, antialiased = inputs[7:]
    if uses_reference():
        if not all(bool(torch.isfinite(tensor).all()) for tensor in stored[:4]):
            raise UserError("some Gaussians have a NaN or infinite mean, quaternion, scale or opacity")
        return _fresh(reference.project_splats(stored, camera, (width, height), degree, antialiased))
    return native_splats.project_splats(stored, camera, (width, height), degree, antialiased)


def _project_splats_backward(*inputs):
    stored, camera, (width, height, degree, antialiased) = _contiguous(*inputs[:5]), inputs[5:7], inputs[7:11]
    extents, colors, *grads = _contiguous(*inputs[11:])
    if not uses_reference():
        view = ((width, height), degree, antialiased)
        return native_splats.project_splats_backward(stored, _contiguous(*camera), view, (extents, colors), grads)

    def drawn(*leaves):
        held = (*leaves, *stored[len(leaves) :])
        *screen, _, rgb = reference.project_splats(held, camera, (width, height), degree, antialiased)
        return *screen, rgb

    pulled = _pull_back(drawn, [tensor for tensor in stored if tensor is not None], grads)
    return pulled if stored[4] is not None else (*pulled, extents.new_empty((0,)))


def _take_rows(tensor, rows):
    return reference.take_rows(tensor, rows) if uses_reference() else native_splats.take_rows(tensor, rows)


def _adam_rows(param, grad, exp_avg, exp_avg_sq, rows, lr, beta1, beta2, eps, step, leading, leading_lr):
    backend, rates = reference if uses_reference() else native_splats, (lr, beta1, beta2, eps)
    backend.adam_rows_((param, grad, exp_avg, exp_avg_sq), rows, rates, step, (leading, leading_lr))


def _l1_ssim(image, target, with_gradient):
    image, target = _contiguous(image, target)
    if uses_reference():
        return *_fresh(reference.l1_ssim(image, target)), image.new_empty((0,))
    return native.l1_ssim(image, target, with_gradient)


def _l1_ssim_backward(image, target, ssim_gradient, v_l1, v_ssim):
    image, target = _contiguous(image, target)
    if uses_reference():
        return _pull_back(lambda x: reference.l1_ssim(x, target), (image,), (v_l1, v_ssim))[0]
    return native.l1_ssim_backward(image, target, ssim_gradient, v_l1.item(), v_ssim.item())


def _adam(param, grad, exp_avg, exp_avg_sq, lr, beta1, beta2, eps, step, visible):
    backend = reference if uses_reference() else native
    backend.adam_((param, grad.contiguous(), exp_avg, exp_avg_sq), (lr, beta1, beta2, eps), step, visible)


def _decode_anchors(positions, features, offsets, log_scales, visible, camera_center, weights):
    anchors, weights = _contiguous(positions, features, offsets, log_scales), _contiguous(*weights)
    visible, camera_center = _contiguous(visible, camera_center)
    if uses_reference():
        return _fresh(reference.decode_anchors(anchors, visible, camera_center, weights))
    _check_rows(visible, positions.shape[0])
    return native_anchors.decode_anchors(anchors, visible, camera_center, weights)


def _decode_anchors_backward(positions, features, offsets, log_scales, visible, camera_center, weights, grads):
    anchors, weights = _contiguous(positions, features, offsets, log_scales), _contiguous(*weights)
    visible, camera_center = _contiguous(visible, camera_center)
    grads = _contiguous(*grads)
    if uses_reference():
        return list(
            _pull_back(
                lambda *t: reference.decode_anchors(t[:4], visible, camera_center, t[4:]), (*anchors, *weights), grads
            )
        )
    return native_anchors.decode_anchors_backward(anchors, visible, camera_center, weights, grads)


def _check_rows(visible: Tensor, rows: int) -> None:
    if visible.numel() and (int(visible.min()) < 0 or int(visible.max()) >= rows):
        raise UserError(f"decode_anchors: visible names anchors outside 0 .. {rows - 1}")
    if rows >= MAX_ANCHORS:
        raise UserError(f"decode_anchors: {rows} anchors in one array; split them into arrays below {MAX_ANCHORS}")


def _momentum_consistency(student, teacher):
    student, teacher = _contiguous(*student), _contiguous(*teacher)
    backend = reference if uses_reference() else native_anchors
    return backend.momentum_consistency(student, teacher)


def _momentum_consistency_backward(student, teacher, v_loss):
    student, teacher = _contiguous(*student), _contiguous(*teacher)
    if uses_reference():
        return list(
            _pull_back(lambda *t: (reference.momentum_consistency(t[:4], t[4:]),), (*student, *teacher), (v_loss,))
        )
    return native_anchors.momentum_consistency_backward(student, teacher, v_loss.item())


def _contiguous(*tensors: Tensor | None) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _fresh(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.clone() for tensor in tensors)  # an op may not return its inputs


def _pull_back(
    function: Callable[..., Any], inputs: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Gradients of the inputs by autograd through a reference function; outputs without gradient are left out."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        pairs = [(out, grad) for out, grad in zip(function(*leaves), grads, strict=True) if grad is not None]
        found = torch.autograd.grad(
            [out for out, _ in pairs], leaves, [grad for _, grad in pairs], allow_unused=True, materialize_grads=True
        )
    return _fresh(found)


def register(library: torch.library.Library) -> None:
    """Register the CPU kernels for the schemas that ``library`` defines."""
    for name, kernel in (
        ("project", _project),
        ("project_backward", _project_backward),
        ("bin", _bin),
        ("raster", _raster),
        ("raster_backward", _raster_backward),
        ("l1_ssim", _l1_ssim),
        ("l1_ssim_backward", _l1_ssim_backward),
        ("adam_", _adam),
        ("decode_anchors", _decode_anchors),
        ("decode_anchors_backward", _decode_anchors_backward),
        ("momentum_consistency", _momentum_consistency),
        ("momentum_consistency_backward", _momentum_consistency_backward),
        ("project_orthographic", functools.partial(_project, orthographic=True)),
        ("project_orthographic_backward", functools.partial(_project_backward, orthographic=True)),
        ("raster_probed", _raster_probed),
        ("raster_probed_backward", _raster_probed_backward),
        ("raster_contributions", _raster_contributions),
        ("raster_median", _raster_median),
        ("spherical_harmonics", _spherical_harmonics),
        ("spherical_harmonics_backward", _spherical_harmonics_backward),
        ("project_splats", _project_splats),
        ("project_splats_backward", _project_splats_backward),
        ("take_rows", _take_rows),
        ("adam_rows_", _adam_rows),
    ):
        library.impl(name, kernel, "CPU")
