"""Native L1 + SSIM, Adam, anchor decoder and momentum consistency against the float64 oracle, on every ISA."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_scenes import relative_error

from scene_distill.core.errors import UserError
from scene_distill.renderers import native, native_anchors, ops, reference


@pytest.fixture(params=native.supported_isas())
def isa(request, monkeypatch):
    monkeypatch.setenv("SCENE_DISTILL_ISA", request.param)
    native.load.cache_clear()
    yield request.param
    native.load.cache_clear()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (67, 43), (40, 90)])
def test_l1_and_ssim_agree_with_the_oracle(isa, height, width):
    generator = torch.Generator().manual_seed(height)
    image = torch.rand((height, width, 3), generator=generator, requires_grad=True)
    target = (image.detach() + 0.1 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    image64 = image.detach().double().requires_grad_()
    l1, ssim = ops.l1_ssim(image, target)
    l1_64, ssim_64 = reference.l1_ssim(image64, target.double())
    assert l1.item() == pytest.approx(l1_64.item(), abs=1e-6)
    assert ssim.item() == pytest.approx(ssim_64.item(), abs=1e-6)
    (found,) = torch.autograd.grad(0.8 * l1 - 0.2 * ssim, image)
    (expected,) = torch.autograd.grad(0.8 * l1_64 - 0.2 * ssim_64, image64)
    assert relative_error(found, expected) < 1e-5


def test_ssim_of_flat_images_is_the_closed_form():
    image, target = torch.full((64, 64, 3), 0.2), torch.full((64, 64, 3), 0.6)
    ssim = native.l1_ssim(image, target, False)[1]
    # inside, means are 0.2 and 0.6 and variances vanish; at the border the zero padding changes both
    inner = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    expected = reference.l1_ssim(image.double(), target.double())[1].item()
    # variances are differences of float32 squares, against C2 = 9e-4
    assert ssim.item() == pytest.approx(expected, abs=3e-5)
    assert abs(expected - inner) < 0.2


@pytest.mark.parametrize("shape", [(1000, 7), (50, 3, 5), (5,), (0, 3)])
@pytest.mark.parametrize("partial", [False, True])
def test_adam_agrees_with_torch(isa, shape, partial):
    generator = torch.Generator().manual_seed(3)
    param = torch.randn(shape, generator=generator)
    theirs = param.double().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=1e-2, eps=1e-15)
    exp_avg, exp_avg_sq = torch.zeros(shape), torch.zeros(shape)
    visible = (torch.rand(shape[0], generator=generator) < 0.5).to(torch.uint8) if partial else None
    start = param.clone()
    for step in range(1, 4):
        grad = torch.randn(shape, generator=generator)
        ops.adam_(param, grad, exp_avg, exp_avg_sq, 1e-2, 0.9, 0.999, 1e-15, step, visible)
        theirs.grad = grad.double()
        optimizer.step()
    rows = slice(None) if visible is None else visible.bool()
    assert torch.allclose(param[rows].double(), theirs.detach()[rows], atol=1e-6)
    if visible is not None:
        assert torch.equal(param[~visible.bool()], start[~visible.bool()])
        assert (exp_avg[~visible.bool()] == 0).all()


def test_adam_refuses_a_view_that_is_not_contiguous():
    tensor = torch.zeros(4, 6)
    with pytest.raises(UserError, match="contiguous"):
        ops.adam_(tensor[:, ::2], torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 3), 0.1, 0.9, 0.99, 1e-8, 1)


def make_anchors(count: int, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    anchors = [5 * normal(count, 3), normal(count, 32), normal(count, 10, 3), 0.3 * normal(count, 6)]
    weights = [0.3 * normal(*s) for out in (10, 70, 30) for s in ((32, 35), (32,), (out, 32), (out,))]
    return anchors, weights, normal(3)


def leaves(tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("shown", [0, 1, 77, 300])
def test_decoded_anchors_and_gradients_agree_with_the_oracle(isa, shown):
    anchors, weights, center = make_anchors(300)
    visible = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:shown]
    single, double = leaves(anchors + weights, torch.float32), leaves(anchors + weights, torch.float64)
    found = ops.decode_anchors(*single[:4], visible, center, single[4:])
    expected = reference.decode_anchors(double[:4], visible, center.double(), double[4:])
    generator = torch.Generator().manual_seed(2)
    loss, loss64 = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and (a.numel() == 0 or (a - b).abs().max() < 1e-5)
        v = torch.randn(a.shape, generator=generator)
        loss, loss64 = loss + (a * v).sum(), loss64 + (b * v).sum()
    if shown == 0:
        return
    gradients, gradients64 = torch.autograd.grad(loss, single), torch.autograd.grad(loss64, double)
    for i, (a, b) in enumerate(zip(gradients, gradients64, strict=True)):
        assert relative_error(a, b) < 1e-5, i


def test_consistency_and_gradients_agree_with_the_oracle(isa):
    generator = torch.Generator().manual_seed(4)
    shapes = ((777, 3), (777, 4), (777,), (777, 3))
    slots = [torch.randn(shape, generator=generator) for shape in shapes * 2]
    single, double = leaves(slots, torch.float32), leaves(slots, torch.float64)
    loss = ops.momentum_consistency(single[:4], single[4:])
    loss64 = reference.momentum_consistency(double[:4], double[4:])
    assert loss.item() == pytest.approx(loss64.item(), rel=1e-6)
    gradients, gradients64 = torch.autograd.grad(loss, single), torch.autograd.grad(loss64, double)
    for a, b in zip(gradients, gradients64, strict=True):
        assert relative_error(a, b) < 1e-5


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 50))
def test_consistency_does_not_see_the_sign_of_a_quaternion(seed, count):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((count, 3), (count, 4), (count,), (count, 3))
    student = [torch.rand(shape, generator=generator) for shape in shapes]
    flipped = [student[0], -student[1], student[2], student[3]]
    assert native_anchors.momentum_consistency(student, flipped).item() < 1e-12


def test_nothing_drawn_leaves_only_the_alpha_term():
    student = [torch.ones(4, 3), torch.ones(4, 4), torch.full((4,), -0.5), torch.ones(4, 3)]
    teacher = [torch.zeros(4, 3), torch.ones(4, 4), torch.full((4,), 0.5), torch.zeros(4, 3)]
    assert ops.momentum_consistency(student, teacher).item() == pytest.approx(1.0)


def test_decoder_and_losses_give_the_same_bytes_on_any_number_of_threads(isa):
    anchors, weights, center = make_anchors(5000)
    visible = torch.arange(0, 5000, 2)
    image, target = torch.rand(130, 170, 3), torch.rand(130, 170, 3)
    results = []
    try:
        for threads in (1, 2, 3):
            native.set_threads(threads)
            single = leaves(anchors + weights, torch.float32)
            out = ops.decode_anchors(*single[:4], visible, center, single[4:])
            teacher = [torch.roll(tensor.detach(), 1, 0) for tensor in out[1:]]
            loss = ops.momentum_consistency(out[1:], teacher)
            results.append([loss, *native.l1_ssim(image, target, True), *torch.autograd.grad(loss, single[1:])])
    finally:
        native.set_threads(native.available_cores())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_visible_ids_outside_the_anchors_are_refused():
    anchors, weights, center = make_anchors(5)
    with pytest.raises(UserError, match="outside 0"):
        ops.decode_anchors(*anchors, torch.tensor([5]), center, weights)
