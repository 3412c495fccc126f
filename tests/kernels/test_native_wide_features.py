"""Pictures of 17 channels and more, on every instruction set and matrix path, against the float64 oracle."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
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
from scene_distill.renderers import feature_benchmark, native, ops, reference
from scene_distill.renderers.splat import DrawOptions, render_from

PATHS = [
    (isa, matrix)
    for isa in native.supported_isas()
    for matrix in (native.supported_matrix_paths() if isa == "avx512" else ("vector",))
]
NAMES = ("means", "quats", "scales", "opacities", "features", "background", "pose", "intrinsics")


@pytest.fixture(params=PATHS, ids="-".join)
def path(request, monkeypatch):
    monkeypatch.setenv("SCENE_DISTILL_ISA", request.param[0])
    native.load.cache_clear()
    native.set_matrix(request.param[1])
    assert native.load().isa == request.param[0] and native.get_matrix() == request.param[1]
    yield request.param
    native.set_matrix()
    native.load.cache_clear()


def projected(scene):
    leaves = tuple(leaf.detach() for leaf in scene.single())
    means2d, conics, depths, opacities2d, extents = ops.project(*leaves[:4], *leaves[6:], *scene.size)
    lists = ops.bin(means2d, conics, opacities2d, depths, extents, *scene.size)
    return leaves, (means2d, conics, opacities2d), lists


@pytest.mark.parametrize("channels", [17, 32, 33, 64, 128, 512])
def test_image_and_gradients_agree_with_the_oracle(path, channels):
    scene = random_scene(150, 49, 37, channels=channels, seed=channels)
    single, double = scene.single(), scene.double()
    image, alpha = draw_native(single, scene.size)
    image64, alpha64 = draw_dense(double, scene.size)
    clear = ~boundary_pixels(double, scene.size, False)
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


@pytest.mark.parametrize("channels", [33, 64])
def test_gradients_without_thresholds_agree_everywhere(path, channels):
    # without early stop; alpha stays below 0.999 so that 1 / (1 - alpha) is a float32 number worth comparing
    off = NO_THRESHOLDS | {"alpha_max": 0.999}
    scene = random_scene(80, 45, 38, channels=channels, seed=11)
    double = scene.double()
    limits, dense_limits = native_limits(**off), reference.Limits(**off)
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


def test_long_lists_are_drawn_in_batches(path):
    scene = random_scene(1500, 16, 16, channels=20, seed=3)  # one tile
    leaves = list(scene.leaves)
    leaves[3] = leaves[3] * 0.05  # so transparent that nothing stops early
    single = tuple(leaf.float().requires_grad_() for leaf in leaves)
    double = tuple(leaf.float().double().requires_grad_() for leaf in leaves)
    assert len(projected_lists(single, scene.size)[1]) > 600  # three batches
    image, _ = draw_native(single, scene.size)
    image64, _ = draw_dense(double, scene.size)
    clear = ~boundary_pixels(double, scene.size, False, band=1e-5)
    assert (image - image64).abs()[clear].max() < 1e-5
    v_image = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)) * clear[..., None]
    found = torch.autograd.grad((image * v_image).sum(), single)
    expected = torch.autograd.grad((image64 * v_image).sum(), double)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert relative_error(a, b) < 1e-4, name


def projected_lists(leaves, size):
    with torch.no_grad():
        means2d, conics, depths, opacities2d, extents = ops.project(*leaves[:4], *leaves[6:], *size)
        return ops.bin(means2d, conics, opacities2d, depths, extents, *size)


def test_probe_clipping_and_mask_agree_with_the_oracle(path):
    scene = random_scene(150, 37, 35, channels=35, seed=24)
    leaves, screen, lists = projected(scene)
    features, background = leaves[4], leaves[5]
    clear = ~boundary_pixels(scene.double(), scene.size, False, band=1e-5)
    mask = torch.rand((35, 37), generator=torch.Generator().manual_seed(4)) > 0.3
    mask[:16, 16:32] = False  # a whole tile
    generator = torch.Generator().manual_seed(5)
    v_image = torch.randn((35, 37, 35), generator=generator) * clear[..., None]
    v_alpha = torch.randn((35, 37), generator=generator) * clear
    bound = 1.9
    parts = [t.clone().requires_grad_() for t in (*screen, features, background)]
    probe = torch.zeros_like(screen[0], requires_grad=True)
    image, alpha = ops.raster_probed(tuple(parts[:3]), probe, *parts[3:], lists, scene.size, bound, mask)
    assert torch.equal(image[~mask], background.expand_as(image)[~mask]) and not alpha[~mask].any()
    found = torch.autograd.grad((image * v_image).sum() + (alpha * v_alpha).sum(), (*parts, probe))

    doubles = [t.detach().double().requires_grad_() for t in parts]
    image64, alpha64 = reference.raster(tuple(doubles[:3]), *doubles[3:], lists, scene.size)
    image64, alpha64 = torch.where(mask[..., None], image64, doubles[4]), alpha64 * mask
    assert (image - image64).abs()[clear].max() < 1e-5
    clipped = reference.clip_pixels(v_image.double(), bound)
    assert 0 < (clipped.abs() < v_image.double().abs()).any(-1).float().mean() < 1
    expected = torch.autograd.grad((image64 * clipped).sum() + (alpha64 * v_alpha).sum(), doubles)
    for a, b in zip(found[:5], expected, strict=True):
        assert relative_error(a, b) < 1e-4
    absolute = reference.absolute_gradients(
        tuple(t.detach() for t in doubles[:3]), doubles[3].detach(), doubles[4].detach(), lists, scene.size,
        (clipped * mask[..., None], v_alpha.double() * mask),
    )  # fmt: skip
    assert relative_error(found[5], absolute) < 1e-4


def test_the_depth_is_one_channel_more(path):
    scene = random_scene(200, 40, 30, channels=32, seed=28)
    leaves = scene.single()
    gaussians = Gaussians(*leaves[:5])
    rendering = render_from(gaussians, leaves[6], leaves[7], scene.size, background=leaves[5], with_depth=True)
    plain = render_from(gaussians, leaves[6], leaves[7], scene.size, background=leaves[5])
    narrow = render_from(
        Gaussians(*leaves[:4], leaves[4][:, :3]), leaves[6], leaves[7], scene.size, with_depth=True
    )  # the kernels of few channels
    assert torch.equal(rendering.image, plain.image)
    assert (rendering.depth - narrow.depth).abs().max() < 1e-4 * narrow.depth.max()
    a = torch.autograd.grad(rendering.depth.sum(), leaves[0])[0]
    b = torch.autograd.grad(narrow.depth.sum(), leaves[0])[0]
    assert relative_error(a, b.double()) < 1e-3


@pytest.mark.parametrize(("count", "width", "height"), [(0, 20, 18), (40, 1, 1), (1, 17, 16)])
def test_small_pictures(path, count, width, height):
    scene = random_scene(count, width, height, channels=48, seed=7)
    single, double = scene.single(), scene.double()
    image, alpha = draw_native(single, scene.size)
    image64, alpha64 = draw_dense(double, scene.size)
    assert (image - image64).abs().max() < 1e-5 and (alpha - alpha64).abs().max() < 1e-5
    found = torch.autograd.grad(image.square().sum() + alpha.sum(), single)
    expected = torch.autograd.grad(image64.square().sum() + alpha64.sum(), double, materialize_grads=True)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * max(float(b.norm()), 1e-6)


def test_the_same_bytes_on_any_number_of_threads(path):
    scene = random_scene(1500, 150, 90, channels=70, seed=6)
    results = []
    try:
        for threads in (1, 2, 3):
            native.set_threads(threads)
            leaves = scene.single()
            options = DrawOptions(absolute_gradients=True, gradient_bound=0.7)
            rendering = render_from(
                Gaussians(*leaves[:5]), leaves[6], leaves[7], scene.size, background=leaves[5], options=options
            )
            gradients = torch.autograd.grad(
                (rendering.image**2).sum() + rendering.alpha.sum(), (*leaves, rendering.probe)
            )
            results.append([rendering.image, rendering.alpha, *gradients])
    finally:
        native.set_threads(native.available_cores())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_gradients_of_the_features_that_nobody_sees_are_zero(path):
    scene = random_scene(300, 40, 30, channels=40, seed=9)
    leaves, screen, lists = projected(scene)
    features = leaves[4].clone().requires_grad_()
    image, _ = ops.raster(*screen, features, leaves[5], *lists, *scene.size)
    native.raster_backward(  # leave something else in the scratch memory
        screen, leaves[4], leaves[5], lists, (image.detach(), torch.zeros(30, 40)), (torch.full_like(image, 7.0), None)
    )
    (gradient,) = torch.autograd.grad(image.sum(), features)
    weight_sum = ops.raster_contributions(screen, lists, scene.size)[0]
    assert bool((weight_sum == 0).any()) and not gradient[weight_sum == 0].any()
    assert relative_error(gradient, weight_sum.double()[:, None].expand_as(gradient)) < 1e-4


@pytest.mark.skipif("amx" not in native.supported_matrix_paths(), reason="this machine has no AMX")
def test_plain_bfloat16_products_are_close_and_only_when_asked_for():
    scene = random_scene(150, 49, 37, channels=64, seed=64)
    pictures, gradients = {}, {}
    try:
        for name in ("vector", "amx", "amx_bfloat16"):
            native.set_matrix(name)
            leaves = scene.single()
            pictures[name] = draw_native(leaves, scene.size)[0]
            gradients[name] = torch.autograd.grad(pictures[name].square().sum(), leaves)
    finally:
        native.set_matrix()
    assert native.get_matrix() == "amx"
    assert relative_error(pictures["amx"].detach(), pictures["vector"].double()) < 1e-5
    error = relative_error(pictures["amx_bfloat16"].detach(), pictures["vector"].double())
    assert 1e-4 < error < 4e-3
    for a, b in zip(gradients["amx_bfloat16"], gradients["vector"], strict=True):
        assert relative_error(a, b.double()) < 2e-2


def test_a_matrix_path_that_is_not_there_is_refused():
    code = "from scene_distill.renderers import native; native.load()"
    environment = os.environ | {"SCENE_DISTILL_MATRIX": "abacus"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode and "SCENE_DISTILL_MATRIX=abacus cannot run here" in found.stderr
    with pytest.raises(UserError, match="abacus"):
        native.set_matrix("abacus")


def test_nan_features_stay_nan(path):
    scene = random_scene(50, 16, 16, channels=17, seed=2)
    leaves, screen, lists = projected(scene)
    features = leaves[4].clone()
    features[:, 5] = math.nan
    image, alpha = ops.raster(*screen, features, leaves[5], *lists, *scene.size)
    assert image[..., 5][alpha > 0].isnan().all() and not image[..., :5].isnan().any()


def test_the_benchmark_measures_every_path():
    report = feature_benchmark.bench_features(repetitions=1, channels=(17,))
    assert set(report["channels_17"]) >= {"passes_of_16", *native.supported_matrix_paths()}
    for path in native.supported_matrix_paths():
        figures = report["channels_17"][path]
        assert all(value > 0 for value in figures.values())
    assert native.get_matrix() == native.supported_matrix_paths()[0]
