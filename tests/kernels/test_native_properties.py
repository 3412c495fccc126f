"""What must hold for any input of the CPU kernels: degenerate splats, extreme cameras, odd image sizes, a million
Gaussians. Values are compared with the oracle in test_native_raster.py."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_scenes import random_scene

from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers import native
from scene_distill.renderers.splat import Rendering, render_from
from scene_distill.representations.splats import Splats

ISAS = native.supported_isas()
FIELDS = ("means", "quats", "scales", "opacities", "features")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("SCENE_DISTILL_ISA", request.param)
    native.load.cache_clear()
    yield request.param
    native.load.cache_clear()


def world(count=150, size=(61, 45), seed=5) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """The fields of some Gaussians, pose and intrinsics, float32."""
    scene = random_scene(count, *size, seed=seed)
    leaves = [leaf.float() for leaf in scene.leaves]
    return dict(zip(FIELDS, leaves[:5], strict=True)), leaves[6], leaves[7]


def pulled(fields, pose, intrinsics, size) -> tuple[Rendering, dict[str, torch.Tensor]]:
    """The rendering and the gradients of all fields for a loss that weighs every pixel; all of it finite."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in fields.items()}
    out = render_from(Gaussians(**leaves), pose, intrinsics, size)
    assert out.image.shape == (size[1], size[0], 3)
    weights = torch.linspace(-1, 1, out.image.numel()).reshape(out.image.shape)
    gradients = torch.autograd.grad((out.image * weights).sum() + out.alpha.sum(), list(leaves.values()))
    for tensor in (out.image, out.alpha, out.means2d, out.extents, *gradients):
        assert torch.isfinite(tensor).all()
    assert out.alpha.min() >= 0 and out.alpha.max() <= 1
    return out, dict(zip(leaves, gradients, strict=True))


DEGENERATE = {
    "points": {"scales": lambda t: t * 0},
    "discs": {"scales": lambda t: t * torch.tensor([1.0, 1.0, 0.0])},
    "needles of 1e4 : 1": {"scales": lambda t: t * torch.tensor([1e-4, 1.0, 1e-4])},
    "long needles": {"scales": lambda t: t * torch.tensor([1e-4, 1e4, 1.0])},
    "larger than the world": {"scales": lambda t: t * 1e6},
    "quaternions of zero": {"quats": lambda t: t * 0},
    "tiny and huge quaternions": {"quats": lambda t: t * torch.logspace(-18, 18, len(t))[:, None]},
    "opaque": {"opacities": torch.ones_like},
    "all in one place": {"means": lambda t: t * 0 + torch.tensor([0.0, 0.0, 2.0])},
    "far away": {"means": lambda t: t * 1e8},
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_gaussians_give_finite_pictures_and_gradients(isa, kind):
    fields, pose, intrinsics = world()
    for name, change in DEGENERATE[kind].items():
        fields[name] = change(fields[name])
    out, gradients = pulled(fields, pose, intrinsics, (61, 45))
    hidden = out.extents[:, 0] == 0
    assert all(not gradient[hidden].any() for gradient in gradients.values())
    if kind not in ("far away",):
        assert out.alpha.max() > 0.05  # something was drawn


@pytest.mark.parametrize("kind", ["transparent", "behind the camera", "beside the picture", "none"])
def test_what_is_not_seen_leaves_the_background_and_gets_no_gradient(isa, kind):
    fields, pose, intrinsics = world(0 if kind == "none" else 150)
    if kind == "transparent":
        fields["opacities"] = fields["opacities"] * 0
    elif kind != "none":
        fields["means"][:, 2 if kind == "behind the camera" else 0] = -50.0
    out, gradients = pulled(fields, pose, intrinsics, (61, 45))
    assert not out.image.any() and not out.alpha.any() and not out.extents.any()
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (15, 17), (16, 16), (17, 33), (160, 3)])
def test_any_image_size_is_a_part_of_a_larger_picture(isa, size):
    """Pixels do not depend on where the picture ends, but for Gaussians that the smaller frustum clamps or culls."""
    fields, pose, intrinsics = world(size=(61, 45))
    fields["scales"] = fields["scales"].clamp(max=0.05)
    small, _ = pulled(fields, pose, intrinsics, size)
    large = render_from(Gaussians(**fields), pose, intrinsics, (176, 48)).image[: size[1], : size[0]]
    assert (small.image - large).abs().mean() < 1e-3


@pytest.mark.parametrize("focal", [1e-4, 1e-2, 1.0, 1e4, 1e7])
@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_extreme_intrinsics_stay_finite(isa, focal, shift):
    fields, pose, _ = world()
    fields["means"][0] = torch.tensor([0.0, 0.0, 2.0])
    intrinsics = torch.tensor([focal, 2 * focal, 30.0 + shift, 22.0])
    out, _ = pulled(fields, pose, intrinsics, (61, 45))
    if shift and focal <= 1.0:
        assert not out.alpha.any()  # the picture looks past everything


def test_the_order_of_the_gaussians_does_not_matter(isa):
    fields, pose, intrinsics = world(400)
    shuffle = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    first, gradients = pulled(fields, pose, intrinsics, (61, 45))
    second, moved = pulled({name: t[shuffle] for name, t in fields.items()}, pose, intrinsics, (61, 45))
    assert torch.equal(first.image, second.image) and torch.equal(first.alpha, second.alpha)
    for name, gradient in gradients.items():
        assert (gradient[shuffle] - moved[name]).abs().max() <= 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("field", ["means", "quats", "scales", "opacities"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_counted(isa, field, value):
    fields, pose, intrinsics = world(70)
    fields[field].view(70, -1)[[3, 40, 69], 0] = value
    with pytest.raises(UserError, match="3 of 70 Gaussians have a NaN or infinite"):
        render_from(Gaussians(**fields), pose, intrinsics, (61, 45))


def test_degenerate_stored_splats_give_finite_gradients(isa):
    fields, pose, intrinsics = world()
    log_scales = fields["scales"].log()
    log_scales[:20] = -torch.inf  # points
    log_scales[20:40] += torch.tensor([-9.2, 0.0, -9.2])  # needles of 1e4 : 1
    quats, logits = fields["quats"].clone(), fields["opacities"].clamp(1e-3, 0.99).logit()
    quats[40:60] = 0.0
    logits[60:80] = torch.tensor([-torch.inf, torch.inf]).repeat(10)
    leaves = [t.requires_grad_() for t in (fields["means"], log_scales, quats, logits, torch.ones(150, 16, 3))]
    image = render_from(Splats(*leaves), pose, intrinsics, (61, 45)).image
    gradients = torch.autograd.grad(image.square().sum(), leaves)
    assert image.max() > 0 and all(torch.isfinite(gradient).all() for gradient in (image, *gradients))


def test_a_million_gaussians_are_finite_and_the_same_on_one_and_two_threads():
    count, size = 1_000_000, (320, 200)
    generator = torch.Generator().manual_seed(9)
    uniform = torch.rand((count, 8), generator=generator)
    depth = 1.0 + 9.0 * uniform[:, 2]
    means = torch.stack([(uniform[:, 0] - 0.5) * depth, (uniform[:, 1] - 0.5) * 0.7 * depth, depth], dim=1)
    fields = {
        "means": means, "quats": torch.eye(4)[:1].repeat(count, 1), "scales": 0.004 * depth[:, None].repeat(1, 3),
        "opacities": 0.3 * uniform[:, 3], "features": uniform[:, 4:7].contiguous(),
    }  # fmt: skip
    results = []
    try:
        for threads in (1, 2):
            native.set_threads(threads)
            out, gradients = pulled(fields, torch.eye(4), torch.tensor([320.0, 320.0, 160.0, 100.0]), size)
            results.append([out.image.detach(), out.alpha.detach(), *gradients.values()])
    finally:
        native.set_threads(native.available_cores())
    assert results[0][1].mean() > 0.9
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
