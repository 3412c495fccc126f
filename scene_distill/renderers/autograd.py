"""Autograd formulas and fake kernels of the op set.

Each formula saves inputs and outputs by reference and calls the op's ``_backward`` op, so the backward pass is
dispatched by device like the forward pass. `project` and `raster` are separate nodes: ``means2d.retain_grad()`` shows
the screen gradients in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scene_distill.core.conventions import TILE
from scene_distill.core.stages import backward_begins

_OPS = torch.ops.scene_distill
SLOTS = 10
"""Gaussians per anchor of the decoder kernels."""


def _project_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[4])
    ctx.save_for_backward(*inputs[:6], output[4])
    ctx.view = inputs[6:]


def _project_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    *inputs, extents = ctx.saved_tensors
    if all(grad is None for grad in grads[:4]):
        return (None,) * 9
    camera_grad = ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
    found = _OPS.project_backward.default(*inputs, *ctx.view, extents, *grads[:4], camera_grad)
    return *found, None, None, None


def _project_orthographic_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    *inputs, extents = ctx.saved_tensors
    if all(grad is None for grad in grads[:4]):
        return (None,) * 9
    camera_grad = ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
    found = _OPS.project_orthographic_backward.default(*inputs, *ctx.view, extents, *grads[:4], camera_grad)
    return *found, None, None, None


def _raster_probed_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], *inputs[2:8], *output, inputs[11])
    ctx.gradient_bound = inputs[10]


def _raster_probed_backward(ctx: Any, v_image: Tensor | None, v_alpha: Tensor | None) -> tuple[Any, ...]:
    *saved, mask = ctx.saved_tensors
    if v_image is None and v_alpha is None:
        return (None,) * 12
    if v_image is None:
        v_image = torch.zeros_like(saved[7])
    absolute = ctx.needs_input_grad[1]
    *found, probe = _OPS.raster_probed_backward.default(*saved, v_image, v_alpha, ctx.gradient_bound, absolute, mask)
    return found[0], probe if absolute else None, *found[1:], None, None, None, None, None, None


def _harmonics_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3], inputs[4], output)
    ctx.degree = inputs[3]


def _harmonics_backward(ctx: Any, v_colors: Tensor) -> tuple[Any, ...]:
    means, coefficients, center, extents, colors = ctx.saved_tensors
    found = _OPS.spherical_harmonics_backward.default(
        means, coefficients, center, ctx.degree, extents, colors, v_colors, ctx.needs_input_grad[2]
    )
    return *found, None, None


def _splats_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[4])
    ctx.save_for_backward(*inputs[:7], output[4], output[5])
    ctx.view = inputs[7:]


def _splats_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    *inputs, extents, colors = ctx.saved_tensors
    v_colors = torch.zeros_like(colors) if grads[5] is None and inputs[4] is not None else grads[5]
    found = _OPS.project_splats_backward.default(*inputs, *ctx.view, extents, colors, *grads[:4], v_colors)
    return *found[:4], None if inputs[4] is None else found[4], *(None,) * 6


def _raster_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7], *output, inputs[9])


def _raster_backward(ctx: Any, v_image: Tensor | None, v_alpha: Tensor | None) -> tuple[Any, ...]:
    *saved, mask = ctx.saved_tensors
    if v_image is None and v_alpha is None:
        return (None,) * 10
    if v_image is None:
        v_image = torch.zeros_like(saved[7])
    found = _OPS.raster_backward.default(*saved, v_image, v_alpha, mask)
    return *found, None, None, None, None, None


def _l1_ssim_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(inputs[0], inputs[1], output[2])


def _l1_ssim_backward(ctx: Any, v_l1: Tensor | None, v_ssim: Tensor | None, _: Any) -> tuple[Any, ...]:
    backward_begins()
    saved = ctx.saved_tensors
    v_l1, v_ssim = (saved[0].new_zeros(()) if v is None else v for v in (v_l1, v_ssim))
    return _OPS.l1_ssim_backward.default(*saved, v_l1, v_ssim), None, None


def _decode_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], *inputs[6])


def _decode_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    found = _OPS.decode_anchors_backward.default(*saved[:6], list(saved[6:]), list(grads))
    return *found[:4], None, None, list(found[4:])


def _consistency_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[0], *inputs[1])


def _consistency_backward(ctx: Any, v_loss: Tensor) -> tuple[Any, ...]:
    backward_begins()
    saved = ctx.saved_tensors
    found = _OPS.momentum_consistency_backward.default(list(saved[:4]), list(saved[4:]), v_loss)
    return list(found[:4]), list(found[4:])


def _fake_project(means: Tensor, *_: Any) -> tuple[Tensor, ...]:
    count = means.shape[0]
    return tuple(means.new_empty(shape) for shape in ((count, 2), (count, 3), (count,), (count,), (count, 2)))


def _fake_project_backward(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in inputs[:6])


def _fake_bin(
    means2d: Tensor, conics: Tensor, opacities2d: Tensor, depths: Tensor, extents: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    tiles = -(-width // TILE) * -(-height // TILE)
    pairs = torch.library.get_ctx().new_dynamic_size()
    return means2d.new_empty((tiles + 1,), dtype=torch.int32), means2d.new_empty((pairs,), dtype=torch.int32)


def _fake_raster(*inputs: Any) -> tuple[Tensor, Tensor]:
    features, width, height = inputs[3], inputs[7], inputs[8]
    return features.new_empty((height, width, features.shape[1])), features.new_empty((height, width))


def _fake_raster_backward(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in inputs[:5])


def _fake_raster_probed(means2d: Tensor, probe: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _fake_raster(means2d, *rest)


def _fake_raster_probed_backward(*inputs: Any) -> tuple[Tensor, ...]:
    return (*_fake_raster_backward(*inputs), torch.empty_like(inputs[0]))


def _fake_contributions(*inputs: Any) -> tuple[Tensor, ...]:
    opacities2d = inputs[2]
    return (*(torch.empty_like(opacities2d) for _ in range(2)), torch.empty_like(opacities2d, dtype=torch.int32))


def _fake_median(*inputs: Any) -> Tensor:
    return inputs[0].new_empty((inputs[6], inputs[5]), dtype=torch.int32)


def _fake_harmonics(means: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(means)


def _fake_harmonics_backward(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in inputs[:3])


def _fake_splats(means: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *_fake_project(means), means.new_empty((0 if rest[3] is None else means.shape[0], 3))


def _fake_splats_backward(*inputs: Any) -> tuple[Tensor, ...]:
    return tuple(inputs[0].new_empty((0,)) if t is None else torch.empty_like(t) for t in inputs[:5])


def _fake_take_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.new_empty((rows.shape[0], *tensor.shape[1:]))


def _fake_l1_ssim(image: Tensor, target: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    gradient = torch.empty_like(image) if with_gradient else image.new_empty((0,))
    return image.new_empty(()), image.new_empty(()), gradient


def _fake_l1_ssim_backward(image: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(image)


def _fake_adam(*_: Any) -> None:
    return None


def _fake_decode(positions: Tensor, features: Tensor, offsets: Tensor, log_scales: Tensor, visible: Tensor,
                 *_: Any) -> tuple[Tensor, ...]:  # fmt: skip
    count = visible.shape[0] * SLOTS
    return tuple(positions.new_empty(shape) for shape in ((count, 3), (count, 3), (count, 4), (count,), (count, 3)))


def _fake_decode_backward(*inputs: Any) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (*inputs[:4], *inputs[6])]


def _fake_consistency(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    return student[0].new_empty(())


def _fake_consistency_backward(student: list[Tensor], teacher: list[Tensor], v_loss: Tensor) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (*student, *teacher)]


def register(library: torch.library.Library) -> None:
    """Register formulas and fake kernels for the schemas that ``library`` defines."""
    for name, fake in (
        ("project", _fake_project),
        ("project_backward", _fake_project_backward),
        ("bin", _fake_bin),
        ("raster", _fake_raster),
        ("raster_backward", _fake_raster_backward),
        ("l1_ssim", _fake_l1_ssim),
        ("l1_ssim_backward", _fake_l1_ssim_backward),
        ("adam_", _fake_adam),
        ("decode_anchors", _fake_decode),
        ("decode_anchors_backward", _fake_decode_backward),
        ("momentum_consistency", _fake_consistency),
        ("momentum_consistency_backward", _fake_consistency_backward),
        ("project_orthographic", _fake_project),
        ("project_orthographic_backward", _fake_project_backward),
        ("raster_probed", _fake_raster_probed),
        ("raster_probed_backward", _fake_raster_probed_backward),
        ("raster_contributions", _fake_contributions),
        ("raster_median", _fake_median),
        ("spherical_harmonics", _fake_harmonics),
        ("spherical_harmonics_backward", _fake_harmonics_backward),
        ("project_splats", _fake_splats),
        ("project_splats_backward", _fake_splats_backward),
        ("take_rows", _fake_take_rows),
        ("adam_rows_", _fake_adam),
    ):
        torch.library.register_fake(f"scene_distill::{name}", fake, lib=library)
    for name, context, backward in (
        ("project", _project_context, _project_backward),
        ("raster", _raster_context, _raster_backward),
        ("l1_ssim", _l1_ssim_context, _l1_ssim_backward),
        ("decode_anchors", _decode_context, _decode_backward),
        ("momentum_consistency", _consistency_context, _consistency_backward),
        ("project_orthographic", _project_context, _project_orthographic_backward),
        ("raster_probed", _raster_probed_context, _raster_probed_backward),
        ("spherical_harmonics", _harmonics_context, _harmonics_backward),
        ("project_splats", _splats_context, _splats_backward),
    ):
        torch.library.register_autograd(f"scene_distill::{name}", backward, setup_context=context, lib=library)
