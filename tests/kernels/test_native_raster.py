"""Native projection, binning and rasterization against the dense float64 oracle, on every ISA this machine runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_scenes import (
    NO_THRESHOLDS,
    boundary_pixels,
    draw_dense,
    draw_native,
    native_limits,
    random_scene,
    relative_error,
)

from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers import native, ops, reference
from scene_distill.renderers.splat import render_from

ISAS = native.supported_isas()
NAMES = ("means", "quats", "scales", "opacities", "features", "background", "pose", "intrinsics")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("SCENE_DISTILL_ISA", request.param)
    native.load.cache_clear()
    yield request.param
    native.load.cache_clear()


@pytest.mark.parametrize(
    ("channels", "antialiased"), [(1, False), (3, False), (3, True), (4, False), (7, True), (37, False)]
)
def test_image_and_gradients_agree_with_the_oracle(isa, channels, antialiased):
    scene = random_scene(150, 49, 37, channels=channels, seed=channels)
    single, double = scene.single(), scene.double()
    image, alpha = draw_native(single, scene.size, antialiased)
    image64, alpha64 = draw_dense(double, scene.size, antialiased)
    clear = ~boundary_pixels(double, scene.size, antialiased)
    assert clear.float().mean() > 0.9
    assert (image - image64).abs()[clear].max() < 1e-5
    assert (alpha - alpha64).abs()[clear].max() < 1e-5

    generator = torch.Generator().manual_seed(1)
    v_image = torch.randn(image.shape, generator=generator) * clear[..., None]
    v_alpha = torch.randn(alpha.shape, generator=generator) * clear
    found = torch.autograd.grad((image * v_image).sum() + (alpha * v_alpha).sum(), single)
    expected = torch.autograd.grad((image64 * v_image).sum() + (alpha64 * v_alpha).sum(), double)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert relative_error(a, b) < 1e-4, name


def test_gradients_without_thresholds_agree_everywhere(isa):
    scene = random_scene(80, 45, 38, channels=3, seed=11)
    double = scene.double()
    limits, dense_limits = native_limits(**NO_THRESHOLDS), reference.Limits(**NO_THRESHOLDS)
    world = tuple(leaf.detach().float() for leaf in double[:4])
    camera = tuple(leaf.detach().float() for leaf in double[6:])
    features, background = double[4].detach().float(), double[5].detach().float()
    means2d, conics, depths, opacities2d, extents = native.project(world, camera, scene.size, False, limits)
    screen = (means2d, conics, opacities2d)
    lists = native.bin(screen, depths, extents, scene.size, limits)
    image, alpha = native.raster(screen, features, background, lists, scene.size, limits)
    image64, alpha64 = draw_dense(double, scene.size, False, dense_limits)
    assert (image - image64).abs().max() < 1e-5 and (alpha - alpha64).abs().max() < 1e-5

    v_image = torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    pulled = native.raster_backward(screen, features, background, lists, (image, alpha), (v_image, None), limits)
    found = native.project_backward(
        world, camera, scene.size, False, extents, (pulled[0], pulled[1], None, pulled[2]), True, limits
    )
    found = (*found[:4], pulled[3], pulled[4], *found[4:])
    expected = torch.autograd.grad((image64 * v_image).sum(), double)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert relative_error(a, b) < 1e-4, name


def test_every_contribution_is_in_a_list_in_depth_order(isa):
    scene = random_scene(300, 75, 53, seed=4)
    world, camera = tuple(t.detach() for t in scene.single()[:4]), tuple(t.detach() for t in scene.single()[6:])
    means2d, conics, depths, opacities2d, extents = native.project(world, camera, scene.size, False)
    screen = (means2d, conics, opacities2d)
    offsets, pairs = native.bin(screen, depths, extents, scene.size)
    exact_offsets, exact_pairs = reference.bin(screen, depths, extents, scene.size)
    for tile in range(len(offsets) - 1):
        ids = pairs[offsets[tile] : offsets[tile + 1]].tolist()
        needed = exact_pairs[exact_offsets[tile] : exact_offsets[tile + 1]].tolist()
        assert set(needed) <= set(ids)
        keys = [(depths[i].item(), i) for i in ids]
        assert keys == sorted(keys)
    assert len(pairs) <= 1.1 * len(exact_pairs) + 10  # the test is exact but for pixels between centres


def test_order_of_equal_depths_is_that_of_the_indices(isa):
    count = 500
    means = torch.tensor([[0.0, 0.0, 3.0]]).repeat(count, 1)
    quats, scales = torch.eye(4)[:1].repeat(count, 1), torch.full((count, 3), 0.1)
    world = (means, quats, scales, torch.full((count,), 0.5))
    camera = (torch.eye(4), torch.tensor([50.0, 50.0, 20.0, 20.0]))
    means2d, conics, depths, opacities2d, extents = native.project(world, camera, (40, 40), False)
    offsets, pairs = native.bin((means2d, conics, opacities2d), depths, extents, (40, 40))
    assert pairs[offsets[4] : offsets[5]].tolist() == list(range(count))  # the middle one of 3 x 3 tiles


def test_the_same_bytes_on_any_number_of_threads(isa):
    scene = random_scene(3000, 150, 90, channels=5, seed=6)
    results = []
    try:
        for threads in (1, 2, 3):
            native.set_threads(threads)
            leaves = scene.single()
            image, alpha = draw_native(leaves, scene.size, True)
            gradients = torch.autograd.grad((image**2).sum() + alpha.sum(), leaves)
            results.append([image, alpha, *gradients])
    finally:
        native.set_threads(native.available_cores())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 40),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    spread=st.sampled_from([1e-6, 1e-2, 1.0, 1e3]),
    needle=st.booleans(),
)
def test_any_scene_stays_finite_and_agrees_with_the_oracle(seed, count, width, height, spread, needle):
    scene = random_scene(count, width, height, seed=seed)
    leaves = list(scene.leaves)
    leaves[2] = leaves[2] * spread
    if needle:
        leaves[2] = leaves[2] * torch.tensor([1e-6, 1.0, 50.0])
    single = tuple(leaf.float().requires_grad_() for leaf in leaves)
    image, alpha = draw_native(single, scene.size)
    assert torch.isfinite(image).all() and alpha.min() >= 0 and alpha.max() <= 1
    gradients = torch.autograd.grad(image.sum() + alpha.sum(), single)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    if spread <= 1.0 and not needle:
        double = tuple(leaf.double() for leaf in single)
        image64, _ = draw_dense(double, scene.size)
        clear = ~boundary_pixels(double, scene.size, False)
        if clear.any():
            assert (image - image64).abs()[clear].max() < 3e-5


def test_zero_opacity_and_behind_the_camera_get_no_gradient():
    means = torch.tensor([[0.0, 0, 2], [0, 0, -2], [0, 0, 2], [0, 0, 2]], requires_grad=True)
    opacities = torch.tensor([0.5, 0.5, 0.0, -0.4], requires_grad=True)
    gaussians = Gaussians(means, torch.eye(4)[:1].repeat(4, 1), torch.full((4, 3), 0.2), opacities, torch.ones(4, 3))
    out = render_from(gaussians, torch.eye(4), torch.tensor([20.0, 20, 8, 8]), (16, 16))
    assert (out.extents[1:] == 0).all() and (out.extents[0] > 0).all()
    out.image.sum().backward()
    assert (opacities.grad[1:] == 0).all() and opacities.grad[0] > 0
    assert (means.grad[1:] == 0).all()


def test_no_gaussians_draw_the_background():
    empty = Gaussians(torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 3))
    background = torch.tensor([0.1, 0.2, 0.3])
    out = render_from(empty, torch.eye(4), torch.tensor([5.0, 5, 2, 2]), (5, 4), background=background, with_depth=True)
    assert torch.equal(out.image, background.expand(4, 5, 3))
    assert out.alpha.abs().max() == 0 and out.depth is not None and out.depth.abs().max() == 0


def test_depth_of_an_opaque_wall_is_its_distance():
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 21), torch.linspace(-1, 1, 21), indexing="ij"), -1)
    means = torch.cat([grid.reshape(-1, 2), torch.full((441, 1), 3.0)], dim=1)
    gaussians = Gaussians(
        means, torch.eye(4)[:1].repeat(441, 1), torch.full((441, 3), 0.1), torch.full((441,), 0.9), torch.ones(441, 3)
    )
    out = render_from(gaussians, torch.eye(4), torch.tensor([40.0, 40, 10, 10]), (20, 20), with_depth=True)
    assert out.depth is not None and (out.depth - 3.0).abs().max() < 1e-4


def test_screen_gradients_are_readable():
    scene = random_scene(50, 32, 32)
    means, quats, scales, opacities, features, background, pose, intrinsics = scene.single()
    out = render_from(
        Gaussians(means, quats, scales, opacities, features), pose, intrinsics, scene.size, background=background
    )
    out.means2d.retain_grad()
    out.image.square().sum().backward()
    assert out.means2d.grad is not None and out.means2d.grad.abs().sum() > 0
    assert (out.means2d.grad[out.extents[:, 0] == 0] == 0).all()


def test_what_is_not_a_number_is_refused():
    means = torch.tensor([[0.0, 0.0, 2.0], [float("nan"), 0.0, 2.0]])
    world = (means, torch.eye(4)[:2], torch.full((2, 3), 0.1), torch.full((2,), 0.5))
    camera = (torch.eye(4), torch.tensor([20.0, 20.0, 8.0, 8.0]))
    with pytest.raises(UserError, match="1 of 2 Gaussians have a NaN or infinite"):
        ops.project(*world, *camera, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quats": torch.zeros(3, 3)}, r"quats has shape \(3, 3\), expected \(3, 4\)"),
        ({"scales": torch.zeros(3, 3, dtype=torch.float64)}, "scales is torch.float64"),
        ({"width": 0}, "0 x 8 pixels"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    inputs = {
        "means": torch.zeros(3, 3), "quats": torch.zeros(3, 4), "scales": torch.ones(3, 3), "opacities": torch.ones(3),
        "cam_from_world": torch.eye(4), "intrinsics": torch.ones(4), "width": 8, "height": 8,
    }  # fmt: skip
    with pytest.raises(UserError, match=message):
        ops.project(**(inputs | change))
