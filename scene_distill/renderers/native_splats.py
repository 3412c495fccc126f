"""Native kernels of stored splats: activations, projection and colours in one pass, and chosen rows of parameters.

One function per C function, as in `native`; tensors are float32 and on the CPU, contiguous but for the row stride of
what `take_rows` and `adam_rows_` work on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.renderers.native import LIMITS, _address, _view, load, not_finite

Stored = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""means, quats, log_scales, opacity_logits, sh."""


class _Splats(ctypes.Structure):
    """``sd_splats``."""

    _fields_ = [
        ("count", c_int64),
        ("bases", c_int32),
        ("degree", c_int32),
        *((name, c_void_p) for name in ("means", "quats", "log_scales", "opacity_logits", "sh")),
    ]


class _Screen(ctypes.Structure):
    """``sd_splat_screen``."""

    _fields_ = [(name, c_void_p) for name in ("means2d", "conics", "depths", "opacities2d", "extents", "colors")]


class _Gradient(ctypes.Structure):
    """``sd_splats_gradient``."""

    _fields_ = [(name, c_void_p) for name in ("means", "quats", "log_scales", "opacity_logits", "sh")]


class _Rows(ctypes.Structure):
    """``sd_rows``."""

    _fields_ = [("index", c_void_p), *((name, c_int64) for name in ("count", "total", "size", "stride"))]


def _splats(stored: Stored, degree: int) -> _Splats:
    bases = 0 if stored[4] is None else stored[4].shape[1]
    return _Splats(stored[0].shape[0], bases, degree, *(_address(tensor) for tensor in stored))


def project_splats(
    stored: Stored, camera: tuple[Tensor, Tensor], size: tuple[int, int], degree: int, antialiased: bool
) -> tuple[Tensor, ...]:
    """means2d, conics, depths, opacities2d, extents, colors ([0, 3] without sh); see `ops.project_splats`."""
    count, new = stored[0].shape[0], stored[0].new_empty
    colors = new((0 if stored[4] is None else count, 3))
    out = (new((count, 2)), new((count, 3)), new((count,)), new((count,)), new((count, 2)), colors)
    wrong = load().functions["sd_splats_forward"](
        byref(_splats(stored, degree)), byref(_view(camera, size, antialiased, False)), byref(LIMITS),
        byref(_Screen(*(tensor.data_ptr() for tensor in out))),
    )  # fmt: skip
    if wrong:
        raise not_finite(wrong, count)
    return out


def project_splats_backward(
    stored: Stored, camera: tuple[Tensor, Tensor], view: tuple[tuple[int, int], int, bool],
    drawn: tuple[Tensor, Tensor], grads: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of the stored tensors ([0] for sh without one); view = (size, degree, antialiased), drawn = (extents,
    colors) of the forward pass, ``grads`` those of means2d, conics, depths, opacities2d (None counts as zero) and
    colors."""
    size, degree, antialiased = view
    out = [stored[0].new_empty((0,)) if tensor is None else torch.empty_like(tensor) for tensor in stored]
    load().functions["sd_splats_backward"](
        byref(_splats(stored, degree)), byref(_view(camera, size, antialiased, False)), byref(LIMITS),
        byref(_Screen(None, None, None, None, *(tensor.data_ptr() for tensor in drawn))),
        byref(_Screen(*(_address(grad) for grad in grads[:4]), None, _address(grads[4]))),
        byref(_Gradient(*(tensor.data_ptr() for tensor in out))),
    )  # fmt: skip
    return tuple(out)


def _rows(tensor: Tensor, index: Tensor) -> _Rows:
    size = tensor[0].numel() if len(tensor) else 1
    return _Rows(index.data_ptr(), len(index), len(tensor), size, tensor.stride(0))


def _refuse(op: str, wrong: int, rows: int) -> None:
    if wrong:
        raise UserError(f"{op}: {wrong} of the row indices are not in 0 .. {rows - 1}")


def take_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """The rows ``index`` [V] int64 of a tensor whose rows are contiguous."""
    out = tensor.new_empty((len(index), *tensor.shape[1:]))
    wrong = load().functions["sd_take_rows"](tensor.data_ptr(), byref(_rows(tensor, index)), out.data_ptr())
    _refuse("take_rows", wrong, len(tensor))
    return out


def adam_rows_(
    state: tuple[Tensor, Tensor, Tensor, Tensor], index: Tensor, rates: tuple[float, float, float, float], step: int,
    leading: tuple[int, float],
) -> None:  # fmt: skip
    """One step in place on rows of (param, _, exp_avg, exp_avg_sq) with the gradient [V, ...] in second place; so many
    leading numbers of a row have a learning rate of their own."""
    param, grad, exp_avg, exp_avg_sq = state
    wrong = load().functions["sd_adam_rows"](
        param.data_ptr(), grad.data_ptr(), exp_avg.data_ptr(), exp_avg_sq.data_ptr(), byref(_rows(param, index)),
        grad.stride(0), *rates, step, *leading,
    )  # fmt: skip
    _refuse("adam_rows_", wrong, len(param))
