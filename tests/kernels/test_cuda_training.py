"""Kernels around the rasterizer against float64: losses, Adam, the anchor decoder, the teacher's consistency."""

import pytest
import torch
from cuda_emulator import SEEDS, kernels

from scene_distill.renderers import reference


def close(got, want, tolerance=1e-5):
    want = want.detach()
    scale = max(float(want.abs().max()), 1e-12)
    return float((got.detach().cpu().double() - want).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [(40, 37), (5, 3), (1, 1)])
def test_l1_ssim(device, seed, size):
    g = torch.Generator().manual_seed(seed)
    image, target = (torch.rand(size[1], size[0], 3, generator=g) for _ in range(2))
    target = 0.6 * image + 0.4 * target
    exact = image.double().requires_grad_(True)
    l1, ssim = reference.l1_ssim(exact, target.double())
    (0.3 * l1 - 0.7 * ssim).backward()
    ops, x, y = kernels(device, seed), image.to(device), target.to(device)
    found = ops.l1_ssim(x, y, True)
    assert close(found[0], l1) and close(found[1], ssim)
    v_l1, v_ssim = (torch.tensor(v, device=device) for v in (0.3, -0.7))
    assert close(ops.l1_ssim_backward(x, y, found[2], v_l1, v_ssim), exact.grad)
    assert ops.l1_ssim(x, y, False)[2].numel() == 0


@pytest.mark.parametrize("some_rows", [False, True])
def test_adam_matches_torch_and_leaves_unseen_rows(device, some_rows):
    g = torch.Generator().manual_seed(3)
    start = torch.randn(70, 11, generator=g)
    visible = torch.rand(70, generator=g) > 0.4 if some_rows else torch.ones(70, dtype=torch.bool)
    param, first, second = start.clone().to(device), *(torch.zeros(70, 11, device=device) for _ in range(2))
    oracle = start[visible].double().requires_grad_(True)
    optimizer = torch.optim.Adam([oracle], lr=0.01, eps=1e-15)
    for step in range(1, 4):
        grad = torch.randn(70, 11, generator=g)
        oracle.grad = grad[visible].double()
        optimizer.step()
        mask = visible.to(torch.uint8).to(device) if some_rows else None
        kernels(device, 1).adam_(param, grad.to(device), first, second, 0.01, 0.9, 0.999, 1e-15, step, mask)
    assert close(param[visible.to(device)], oracle.detach(), 1e-6)
    assert torch.equal(param[~visible.to(device)].cpu(), start[~visible])
    assert not first[~visible.to(device)].any()


def anchors(count, visible, seed):
    g = torch.Generator().manual_seed(seed)

    def new(*shape, scale=1.0):
        return torch.randn(shape, generator=g) * scale

    fields = [new(count, 3), new(count, 32), new(count, 10, 3), new(count, 6, scale=0.5)]
    weights = [new(*s, scale=0.4) for out in (10, 70, 30) for s in ((32, 35), (32,), (out, 32), (out,))]
    return fields, torch.randperm(count, generator=g)[:visible], new(3), weights


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("visible", [21, 0, 16])
def test_anchor_decoder(device, seed, visible):
    fields, ids, center, weights = anchors(30, visible, seed)
    exact = [t.double().requires_grad_(True) for t in (*fields, *weights)]
    expected = reference.decode_anchors(tuple(exact[:4]), ids, center.double(), exact[4:])
    given = (*(t.to(device) for t in (*fields, ids, center)), [w.to(device) for w in weights])
    ops = kernels(device, seed)
    for got, want in zip(ops.decode_anchors(*given), expected, strict=True):
        assert got.shape == want.shape and (visible == 0 or close(got, want, 5e-6))

    g = torch.Generator().manual_seed(seed)
    grads = [torch.randn(t.shape, generator=g) for t in expected]
    torch.autograd.backward(list(expected), [grad.double() for grad in grads])
    back = ops.decode_anchors_backward(*given, [grad.to(device) for grad in grads])
    for got, leaf in zip(back, exact, strict=True):
        assert got.shape == leaf.shape
        assert close(got, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, 2e-5)


def test_decoder_takes_missing_gradients_as_zero(device):
    fields, ids, center, weights = anchors(12, 9, 4)
    given = (*(t.to(device) for t in (*fields, ids, center)), [w.to(device) for w in weights])
    alphas = torch.randn(90, generator=torch.Generator().manual_seed(1)).to(device)
    zeros = [torch.zeros(90, k, device=device) for k in (3, 3, 4, 3)]
    some = kernels(device, 1).decode_anchors_backward(*given, [None, None, None, alphas, None])
    every = kernels(device, 1).decode_anchors_backward(*given, [*zeros[:3], alphas, zeros[3]])
    assert all(torch.equal(a, b) for a, b in zip(some, every, strict=True))


def decoding(count, seed, none_kept):
    g = torch.Generator().manual_seed(seed)
    alphas = torch.rand(count, generator=g) * 2 - 1
    if none_kept:
        alphas = -alphas.abs() - 0.01
    return [
        torch.rand(count, 3, generator=g),
        torch.randn(count, 4, generator=g),
        alphas,
        torch.rand(count, 3, generator=g),
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("none_kept", [False, True])
def test_momentum_consistency(device, seed, none_kept):
    student, teacher = decoding(700, seed, none_kept), decoding(700, seed + 20, False)
    teacher[1][:300] = -student[1][:300] + 0.01 * teacher[1][:300]  # the same rotations with the other sign
    exact = [t.double().requires_grad_(True) for t in (*student, *teacher)]
    loss = reference.momentum_consistency(tuple(exact[:4]), tuple(exact[4:]))
    (3.0 * loss).backward()
    ops, mine, others = kernels(device, seed), [t.to(device) for t in student], [t.to(device) for t in teacher]
    assert close(ops.momentum_consistency(mine, others), loss)
    back = ops.momentum_consistency_backward(mine, others, torch.tensor(3.0, device=device))
    for got, leaf in zip(back, exact, strict=True):
        assert close(got, leaf.grad)
