"""Native anchor decoder and momentum consistency: the second half of cuda/bindings.h (see `native` for the first)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int64, c_void_p

import torch
from torch import Tensor

from scene_distill.renderers import native

SLOTS = 10
"""Gaussians per anchor that the kernels are compiled for."""


class Decoder(ctypes.Structure):
    """``sd_decoder`` and ``sd_decoder_gradient``: three heads (opacity, covariance, colour)."""

    _fields_ = [(name, c_void_p * 3) for name in ("w1", "b1", "w2", "b2")]


class Anchors(ctypes.Structure):
    """``sd_anchors``: the visible rows of the anchor arrays and the camera centre."""

    _fields_ = [
        ("rows", c_int64),
        ("count", c_int64),
        *((name, c_void_p) for name in ("visible", "positions", "features", "offsets", "log_scales", "camera_center")),
    ]


class Slots(ctypes.Structure):
    """``sd_slots``: decoded Gaussians, or their gradients (null: zero)."""

    _fields_ = [(name, c_void_p) for name in ("means", "scales", "quats", "alphas", "colors")]


def _decoder(weights: Sequence[Tensor]) -> Decoder:
    addresses = [weight.data_ptr() for weight in weights]
    return Decoder(*((c_void_p * 3)(*addresses[part::4]) for part in range(4)))


def _anchors(fields: Sequence[Tensor], visible: Tensor, camera_center: Tensor) -> Anchors:
    return Anchors(
        fields[0].shape[0],
        visible.shape[0],
        visible.data_ptr(),
        *(field.data_ptr() for field in fields),
        camera_center.data_ptr(),
    )


def _slots(tensors: Sequence[Tensor | None]) -> Slots:
    return Slots(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


def decode_anchors(
    anchors: Sequence[Tensor], visible: Tensor, camera_center: Tensor, weights: Sequence[Tensor], isa: str | None = None
) -> tuple[Tensor, ...]:
    """means, scales, quats, alphas, colors of anchors = (positions, features, offsets, log_scales).

    See `ops.decode_anchors` for shapes.
    """
    count = visible.shape[0] * SLOTS
    new = anchors[0].new_empty
    out = (new((count, 3)), new((count, 3)), new((count, 4)), new((count,)), new((count, 3)))
    native.load(isa).functions["sd_decode_forward"](
        byref(_anchors(anchors, visible, camera_center)), byref(_decoder(weights)), byref(_slots(out))
    )
    return out


def decode_anchors_backward(
    anchors: Sequence[Tensor],
    visible: Tensor,
    camera_center: Tensor,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    isa: str | None = None,
) -> list[Tensor]:
    """Gradients of the four anchor tensors (zero where not visible) and of the twelve weights."""
    fields = [torch.empty_like(field) for field in anchors]
    heads = [torch.empty_like(weight) for weight in weights]
    native.load(isa).functions["sd_decode_backward"](
        byref(_anchors(anchors, visible, camera_center)), byref(_decoder(weights)), byref(_slots(grads)),
        *(field.data_ptr() for field in fields), byref(_decoder(heads)),
    )  # fmt: skip
    return [*fields, *heads]


def momentum_consistency(student: Sequence[Tensor], teacher: Sequence[Tensor], isa: str | None = None) -> Tensor:
    """The scalar of `ops.momentum_consistency` for (scales, quats, alphas, colors) of student and teacher."""
    value = native.load(isa).functions["sd_consistency_forward"](
        student[2].shape[0], byref(_slots((None, *student))), byref(_slots((None, *teacher)))
    )
    return torch.tensor(value, dtype=torch.float32)


def momentum_consistency_backward(
    student: Sequence[Tensor], teacher: Sequence[Tensor], v_loss: float, isa: str | None = None
) -> list[Tensor]:
    """Gradients of the student's four tensors, then of the teacher's."""
    out = [torch.empty_like(tensor) for tensor in (*student, *teacher)]
    native.load(isa).functions["sd_consistency_backward"](
        student[2].shape[0], byref(_slots((None, *student))), byref(_slots((None, *teacher))), v_loss,
        byref(_slots((None, *out[:4]))), byref(_slots((None, *out[4:]))),
    )  # fmt: skip
    return out
