"""Stored splats in one pass, and chosen rows of parameters, against the oracle on every instruction set."""

from __future__ import annotations

import pytest
import torch
from kernel_scenes import random_scene, relative_error

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.renderers import native, ops, reference
from scene_distill.renderers.splat import DrawOptions, render, render_from
from scene_distill.renderers.stored_splats import activated, drawn_rows, take
from scene_distill.representations.splats import Splats, stored_tensors

ISAS = native.supported_isas()
SIZE = (61, 45)


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("SCENE_DISTILL_ISA", request.param)
    native.load.cache_clear()
    yield request.param
    native.load.cache_clear()


def stored_scene(count=203, bases=16, seed=3):
    """means, quats, log_scales, opacity_logits, sh and the camera, float64."""
    scene = random_scene(count, *SIZE, seed=seed)
    means, quats, scales, opacities, _, _, pose, intrinsics = scene.leaves
    generator = torch.Generator().manual_seed(seed)
    sh = 0.5 * torch.randn((count, bases, 3), generator=generator, dtype=torch.float64)
    logits = opacities.clamp(1e-4, 0.99).logit()
    return (means, quats, scales.log(), logits, sh), (pose, intrinsics)


def splats_of(stored) -> Splats:
    means, quats, log_scales, opacity_logits, sh = stored
    return Splats(means, log_scales, quats, opacity_logits, sh)


@pytest.mark.parametrize(
    ("bases", "degree", "antialiased"), [(16, 3, False), (16, 1, True), (4, 1, False), (1, 0, True)]
)
def test_one_pass_is_the_oracle_of_its_parts(isa, bases, degree, antialiased):
    stored, camera = stored_scene(bases=bases)
    single = [t.float().requires_grad_() for t in stored]
    double = [t.float().double().requires_grad_() for t in stored]
    found = ops.project_splats(tuple(single), *(t.float() for t in camera), SIZE, degree, antialiased)
    wanted = reference.project_splats(
        tuple(double), tuple(t.float().double() for t in camera), SIZE, degree, antialiased
    )
    assert 50 < int((found[4][:, 0] > 0).sum()) < len(found[4])  # some are culled, not all
    for a, b in zip(found, wanted, strict=True):
        assert relative_error(a.detach(), b.detach()) < 1e-5
    generator = torch.Generator().manual_seed(7)
    pulls = [torch.randn(t.shape, generator=generator) for t in found]
    kept = (0, 1, 2, 3, 5)
    got = torch.autograd.grad([found[k] for k in kept], single, [pulls[k] for k in kept])
    expected = torch.autograd.grad([wanted[k] for k in kept], double, [pulls[k].double() for k in kept])
    for a, b in zip(got, expected, strict=True):
        assert relative_error(a, b) < 1e-4
    assert not got[4][:, (degree + 1) ** 2 :].any()


def test_without_harmonics_there_are_no_colours(isa):
    stored, camera = stored_scene(40)
    leaves = [t.float().requires_grad_() for t in stored[:4]]
    found = ops.project_splats((*leaves, None), *(t.float() for t in camera), SIZE)
    assert found[5].shape == (0, 3)
    whole = ops.project_splats(tuple(t.float() for t in stored), *(t.float() for t in camera), SIZE)
    assert all(torch.equal(a, b) for a, b in zip(found[:5], whole[:5], strict=True))
    found[0].sum().backward()
    assert all(leaf.grad is not None for leaf in leaves[:3])


def test_the_picture_of_splats_is_that_of_their_gaussians(isa):
    stored, camera = stored_scene()
    pose, intrinsics = (t.float() for t in camera)
    pictures = []
    for way in ("stored", "activated", "with camera gradients", "orthographic", "orthographic, activated"):
        leaves = [t.float().requires_grad_() for t in stored]
        splats, options = splats_of(leaves), DrawOptions(orthographic=way.startswith("orthographic"))
        shown = activated(splats, pose) if way.endswith("activated") else splats
        seen_from = pose.clone().requires_grad_("camera" in way)
        image = render_from(shown, seen_from, intrinsics, SIZE, options=options).image
        image.square().sum().backward()
        pictures.append([image.detach(), *(leaf.grad for leaf in leaves)])
        assert "camera" not in way or seen_from.grad.abs().sum() > 0
    for first, second in ((0, 1), (0, 2), (3, 4)):
        for a, b in zip(pictures[first], pictures[second], strict=True):
            assert (a - b).norm() < 2e-3 * b.norm()  # a contribution at a cut may flip


def test_infinite_numbers_are_counted_and_saturated_logits_are_fine(isa):
    stored, camera = stored_scene(50)
    pose, intrinsics = (t.float() for t in camera)
    means, quats, log_scales, logits, sh = (t.float() for t in stored)
    logits[:2] = torch.tensor([torch.inf, -torch.inf])  # sigmoid: 1 and 0
    ops.project_splats((means, quats, log_scales, logits, sh), pose, intrinsics, SIZE)
    log_scales[4, 1], logits[9], quats[11, 2], means[12, 0] = 200.0, torch.nan, torch.inf, torch.nan
    log_scales[13, 0] = torch.nan
    with pytest.raises(UserError, match="5 of 50 Gaussians have a NaN or infinite"):
        ops.project_splats((means, quats, log_scales, logits, sh), pose, intrinsics, SIZE)


def test_wrong_requests_are_refused():
    stored, camera = stored_scene(9, bases=4)
    single, (pose, intrinsics) = tuple(t.float() for t in stored), (t.float() for t in camera)
    with pytest.raises(UserError, match="degree 2 of coefficients up to degree 1"):
        ops.project_splats(single, pose, intrinsics, SIZE, 2)
    with pytest.raises(UserError, match="the camera gets no gradient"):
        ops.project_splats(single, pose.requires_grad_(), intrinsics, SIZE)
    with pytest.raises(UserError, match=r"2 of the row indices are not in 0 \.\. 8"):
        ops.take_rows(single[0], torch.tensor([0, 9, -1]))
    with pytest.raises(UserError, match="int64"):
        ops.take_rows(single[0], torch.tensor([0, 1], dtype=torch.int32))
    with pytest.raises(UserError, match="side by side"):
        ops.take_rows(single[4][:, :, :2], torch.tensor([0]))


def test_the_same_bytes_on_any_number_of_threads(isa):
    stored, camera = stored_scene(5000)
    pose, intrinsics = (t.float() for t in camera)
    results = []
    try:
        for threads in (1, 2, 3):
            native.set_threads(threads)
            leaves = [t.float().requires_grad_() for t in stored]
            image = render_from(splats_of(leaves), pose, intrinsics, SIZE).image
            image.square().sum().backward()
            rows = torch.arange(0, 5000, 3)
            moments = [torch.rand(5000, 16, 3, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
            state = (stored[4].float().clone(), leaves[4].grad[rows], *moments)
            ops.adam_rows_(state, rows, (1e-2, 0.9, 0.99, 1e-15), 3, (3, 1e-3))
            results.append([image.detach(), *(leaf.grad for leaf in leaves), *state])
    finally:
        native.set_threads(native.available_cores())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(), (3,), (4,), (5,), (16, 3), (40,)])
@pytest.mark.parametrize("chosen", ["all", "some", "shuffled", "none"])
def test_adam_on_rows_is_adam_on_their_copies(isa, shape, chosen):
    generator = torch.Generator().manual_seed(1)
    whole = [torch.rand((700, *shape), generator=generator) for _ in range(3)]
    rows = {"all": torch.arange(700), "some": torch.arange(1, 700, 3), "none": torch.arange(0),
            "shuffled": torch.randperm(700, generator=generator)[:300]}[chosen]  # fmt: skip
    grad = torch.randn((len(rows), *shape), generator=generator)
    expected = [t.double() for t in whole]
    copies = [t[rows] for t in expected]
    reference.adam_((copies[0], grad.double(), copies[1], copies[2]), (1e-2, 0.9, 0.99, 1e-15), 5, None)
    for tensor, part in zip(expected, copies, strict=True):
        tensor[rows] = part
    ops.adam_rows_((whole[0], grad, whole[1], whole[2]), rows, (1e-2, 0.9, 0.99, 1e-15), 5)
    for a, b in zip(whole, expected, strict=True):
        assert (a - b).abs().max() < 1e-6


def test_leading_numbers_and_slices_have_their_own_rate(isa):
    generator = torch.Generator().manual_seed(2)
    whole = [torch.rand((90, 16, 3), generator=generator) for _ in range(3)]
    before, rows = [t.clone() for t in whole], torch.arange(0, 90, 2)
    grad = torch.randn((45, 9, 3), generator=generator)
    used = [t[:, :9] for t in whole]
    ops.adam_rows_((used[0], grad, used[1], used[2]), rows, (1e-2, 0.9, 0.99, 1e-15), 5, (3, 2e-2))
    assert all(torch.equal(t[:, 9:], b[:, 9:]) and torch.equal(t[1::2], b[1::2])
               for t, b in zip(whole, before, strict=True))  # fmt: skip
    for part, rate in ((slice(0, 1), 2e-2), (slice(1, 9), 1e-2)):
        copies = [t[rows][:, part].double() for t in before]
        reference.adam_((copies[0], grad[:, part].double(), copies[1], copies[2]), (rate, 0.9, 0.99, 1e-15), 5, None)
        assert all((t[rows][:, part] - c).abs().max() < 1e-6 for t, c in zip(whole, copies, strict=True))


def test_rows_are_taken_and_those_drawn_are_found(isa):
    stored, camera = stored_scene(300)
    splats = splats_of([t.float() for t in stored])
    fx, fy, cx, cy = camera[1].tolist()
    view = Camera(*SIZE, fx, fy, cx, cy, camera[0].numpy())
    rows = drawn_rows(splats, view)
    extents = ops.project_splats(tuple(t.float() for t in stored), view.pose(), view.intrinsics(), SIZE)[4]
    assert rows.tolist() == [i for i in range(300) if extents[i, 0] > 0] and 0 < len(rows) < 300
    few = take(splats, rows, 4)
    for name, tensor in stored_tensors(few).items():
        whole = getattr(splats, name)[rows]
        assert torch.equal(tensor, whole[:, :4] if name == "sh" else whole)
    assert torch.equal(render(take(splats, rows), view).image, render(splats, view).image)


def test_the_reference_backend_knows_stored_splats(monkeypatch):
    stored, camera = stored_scene(60)
    pose, intrinsics = (t.float() for t in camera)
    pictures = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("SCENE_DISTILL_BACKEND", backend)
        leaves = [t.float().requires_grad_() for t in stored]
        image = render_from(splats_of(leaves), pose, intrinsics, SIZE).image
        image.square().sum().backward()
        rows = torch.tensor([5, 2])
        state = [leaves[0].detach().clone(), leaves[0].grad[rows], torch.ones(60, 3), torch.ones(60, 3)]
        ops.adam_rows_((state[0], state[1], state[2], state[3]), rows, (0.1, 0.9, 0.99, 1e-15), 2, (1, 0.2))
        with pytest.raises(UserError, match="1 of the row indices"):
            ops.take_rows(leaves[0].detach(), torch.tensor([60]))
        pictures.append([image.detach(), *(leaf.grad for leaf in leaves), state[0]])
    for a, b in zip(*pictures, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()
