"""Ops on stored splats that are composed of CUDA kernels, against the oracle."""

import pytest
import torch
from cuda_emulator import NO_THRESHOLDS, SEEDS, kernels

from scene_distill.core import conventions
from scene_distill.renderers import cuda_splats, reference

SIZE = (40, 30)
LIMITS = reference.Limits(alpha_min=1e-7, alpha_max=0.9999, transmittance_min=1e-12)


def stored(seed):
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(50, 3, generator=g) + torch.tensor([0.0, 0.0, 4.0])
    means[::7, 2] = -1.0
    logits, sh = torch.randn(50, generator=g), torch.randn(50, 16, 3, generator=g)
    return means, torch.randn(50, 4, generator=g), torch.randn(50, 3, generator=g) * 0.5 - 2, logits, sh


def camera():
    pose = torch.eye(4)
    pose[:3, :3] = torch.linalg.qr(torch.eye(3) + 0.1)[0]
    pose[:3, :3] *= torch.sign(torch.diagonal(pose[:3, :3]))
    pose[:3, 3] = torch.tensor([0.1, -0.2, 1.0])
    return pose, torch.tensor([35.0, 35.0, 20.0, 15.0])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("with_sh", [True, False])
def test_projection_and_colours(device, seed, with_sh):
    assert LIMITS.alpha_min < conventions.ALPHA_MIN
    own, ops = kernels(device, seed, NO_THRESHOLDS), stored(seed)
    given = ops if with_sh else (*ops[:4], None)
    exact = [None if t is None else t.double().requires_grad_() for t in given]
    pose, intrinsics = camera()
    world = (exact[0], exact[1], exact[2].exp(), exact[3].sigmoid())
    screen = reference.project(world, (pose.double(), intrinsics.double()), SIZE, False, LIMITS)
    center = -pose[:3, :3].T @ pose[:3, 3]
    expected = [*screen[:4]]
    if with_sh:
        expected.append(reference.spherical_harmonics(exact[0], exact[4], center.double(), 3, screen[4]))
    here = [None if t is None else t.to(device) for t in (*given, pose, intrinsics)]
    found = cuda_splats.project_splats(own, *here, *SIZE, 3, False)
    assert 10 < int((screen[4][:, 0] > 0).sum()) < 50
    outputs = [*found[:4], found[5]] if with_sh else list(found[:4])
    for a, b in zip(outputs, expected, strict=True):
        assert torch.allclose(a.cpu().double(), b.detach(), rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))
    g = torch.Generator().manual_seed(seed)
    pulls = [torch.randn(t.shape, generator=g) for t in expected]
    leaves = [t for t in exact if t is not None]
    wanted = torch.autograd.grad(expected, leaves, [p.double() for p in pulls])
    v = [p.to(device) for p in pulls] + ([] if with_sh else [None])
    back = cuda_splats.project_splats_backward(own, *here, *SIZE, 3, False, found[4], found[5], *v)
    for a, b in zip(back, wanted, strict=False):
        assert float((a.cpu().double() - b).norm()) < 1e-3 * float(b.norm())
    assert with_sh or back[4].numel() == 0


def test_rows(device):
    own, g = kernels(device, 1), torch.Generator().manual_seed(1)
    whole = [torch.rand(20, 4, 3, generator=g) for _ in range(3)]
    rows, grad = torch.tensor([3, 17, 4]), torch.randn(3, 4, 3, generator=g)
    expected = [t.double() for t in whole]
    state = (expected[0], grad.double(), expected[1], expected[2])
    reference.adam_rows_(state, rows, (0.1, 0.9, 0.99, 1e-15), 3, (3, 0.2))
    found = [t.to(device) for t in whole]
    at = rows.to(device)
    given = (found[0], grad.to(device), found[1], found[2], at)
    cuda_splats.adam_rows_(own, *given, 0.1, 0.9, 0.99, 1e-15, 3, 3, 0.2)
    for a, b in zip(found, expected, strict=True):
        assert (a.cpu() - b).abs().max() < 1e-5
    assert torch.equal(cuda_splats.take_rows(own, found[0], at).cpu(), found[0].cpu()[rows])
