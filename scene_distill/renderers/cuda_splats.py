"""Ops on stored splats for CUDA tensors, composed of kernels that exist: activations by torch, then `CudaKernels`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from scene_distill.renderers.cuda import CudaKernels


def _activated(inputs: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
    """The world tensors of `project`, and the camera's centre."""
    means, quats, log_scales, opacity_logits, _, pose = inputs[:6]
    return (means, quats, log_scales.exp(), opacity_logits.sigmoid()), -pose[:3, :3].T @ pose[:3, 3]


def project_splats(kernels: CudaKernels, *inputs: Any) -> tuple[Tensor, ...]:
    """See `ops.project_splats`."""
    world, center = _activated(inputs)
    (means, *_, sh, pose, intrinsics), (width, height, degree, antialiased) = inputs[:7], inputs[7:]
    screen = kernels.project(*world, pose, intrinsics, width, height, antialiased)
    if sh is None:
        return *screen, means.new_empty((0, 3))
    return *screen, kernels.spherical_harmonics(means, sh, center, degree, screen[4])


def project_splats_backward(kernels: CudaKernels, *inputs: Any) -> tuple[Tensor, ...]:
    """Gradients of the stored tensors ([0] for sh without one)."""
    world, center = _activated(inputs)
    (means, *_, sh, pose, intrinsics), (width, height, degree, antialiased) = inputs[:7], inputs[7:11]
    extents, colors, *grads, v_colors = inputs[11:]
    view = (pose, intrinsics, width, height, antialiased)
    v_means, v_quats, v_scales, v_opacities, *_ = kernels.project_backward(*world, *view, extents, *grads, False)
    v_sh = means.new_empty((0,))
    if sh is not None:
        seen = (means, sh, center, degree, extents)
        by_color, v_sh, _ = kernels.spherical_harmonics_backward(*seen, colors, v_colors, False)
        v_means = v_means + by_color
    return v_means, v_quats, v_scales * world[2], v_opacities * world[3] * (1 - world[3]), v_sh


def take_rows(kernels: CudaKernels, tensor: Tensor, rows: Tensor) -> Tensor:
    """See `ops.take_rows`; torch checks the indices on the device."""
    return tensor.index_select(0, rows)


def adam_rows_(kernels: CudaKernels, *inputs: Any) -> None:
    """See `ops.adam_rows_`: the rows are gathered, stepped and put back."""
    param, grad, exp_avg, exp_avg_sq, rows, lr, *rates, step, leading, leading_lr = inputs
    chosen = [tensor.index_select(0, rows).view(len(rows), -1) for tensor in (param, exp_avg, exp_avg_sq)]
    grads = grad.reshape(len(rows), -1)
    for part, rate in ((slice(0, leading), leading_lr), (slice(leading, grads.shape[1]), lr)):
        own = [tensor[:, part].contiguous() for tensor in chosen]
        kernels.adam_(own[0], grads[:, part].contiguous(), own[1], own[2], rate, *rates, step, None)
        for tensor, stepped in zip(chosen, own, strict=True):
            tensor[:, part] = stepped
    for tensor, part in zip((param, exp_avg, exp_avg_sq), chosen, strict=True):
        tensor.index_copy_(0, rows, part.view(len(rows), *tensor.shape[1:]))


COMPOSED: dict[str, Callable[..., Any]] = {
    "project_splats": project_splats,
    "project_splats_backward": project_splats_backward,
    "take_rows": take_rows,
    "adam_rows_": adam_rows_,
}
"""Ops by their schema's name; each takes the kernels first."""
