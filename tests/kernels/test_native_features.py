"""What is drawn beside the plain picture, against the oracle: harmonics, medians, contributions, probes, cameras."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_scenes import boundary_pixels, draw_native, random_scene, relative_error

from scene_distill.core import spherical_harmonics as harmonics
from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers import native, native_features, ops, reference
from scene_distill.renderers.splat import DrawOptions, contributions, render_all, render_from

ISAS = native.supported_isas()


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    monkeypatch.setenv("SCENE_DISTILL_ISA", request.param)
    native.load.cache_clear()
    yield request.param
    native.load.cache_clear()


def gaussians_of(leaves) -> Gaussians:
    return Gaussians(*leaves[:5])


def projected(scene):
    leaves = tuple(leaf.detach() for leaf in scene.single())
    means2d, conics, depths, opacities2d, extents = ops.project(*leaves[:4], *leaves[6:], *scene.size)
    lists = ops.bin(means2d, conics, opacities2d, depths, extents, *scene.size)
    return leaves, (means2d, conics, opacities2d), depths, lists


@pytest.mark.parametrize(("bases", "degree"), [(1, 0), (4, 1), (9, 2), (16, 3), (16, 1), (16, 0)])
def test_harmonics_agree_with_the_oracle(isa, bases, degree):
    generator = torch.Generator().manual_seed(bases + degree)
    means = torch.randn((37, 3), generator=generator, requires_grad=True)
    coefficients = (0.6 * torch.randn((37, bases, 3), generator=generator)).requires_grad_()
    center = torch.tensor([0.3, -2.0, 1.0], requires_grad=True)
    extents = (torch.rand((37, 1), generator=generator) > 0.3).float().expand(37, 2).contiguous()
    colors = ops.spherical_harmonics(means, coefficients, center, degree, extents)
    doubles = [t.detach().double().requires_grad_() for t in (means, coefficients, center)]
    expected = reference.spherical_harmonics(*doubles, degree, extents)
    assert (colors - expected).abs().max() < 1e-5
    assert bool((colors == 0).any())  # the clamp and the culled rows are in the test
    v = torch.randn((37, 3), generator=generator)
    found = torch.autograd.grad((colors * v).sum(), (means, coefficients, center))
    wanted = torch.autograd.grad((expected * v).sum(), doubles, materialize_grads=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= 1e-5 * max(float(b.norm()), 1e-3)


def test_harmonics_of_no_gaussians_and_of_a_wrong_degree():
    assert ops.spherical_harmonics(torch.zeros(0, 3), torch.zeros(0, 16, 3), torch.zeros(3)).shape == (0, 3)
    with pytest.raises(UserError, match="degree 3 of coefficients up to degree 1"):
        ops.spherical_harmonics(torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.zeros(3), 3)


def test_a_gaussian_at_the_camera_centre_has_finite_gradients(isa):
    means = torch.zeros((1, 3), requires_grad=True)
    coefficients = torch.ones((1, 16, 3), requires_grad=True)
    ops.spherical_harmonics(means, coefficients, torch.zeros(3)).sum().backward()
    assert bool(torch.isfinite(means.grad).all()) and bool(torch.isfinite(coefficients.grad).all())


def test_harmonics_are_those_of_the_core():
    generator = torch.Generator().manual_seed(3)
    means, coefficients = torch.randn((9, 3), generator=generator), torch.rand((9, 16, 3), generator=generator)
    colors = ops.spherical_harmonics(means, coefficients, torch.zeros(3))
    expected = harmonics.evaluate(coefficients, torch.nn.functional.normalize(means, dim=-1)).clamp(min=0)
    assert (colors - expected).abs().max() < 1e-5


@pytest.mark.parametrize("masked", [False, True])
def test_contributions_agree_with_the_oracle(isa, masked):
    scene = random_scene(250, 53, 39, seed=21)
    _, screen, _, lists = projected(scene)
    clear = ~boundary_pixels(scene.double(), scene.size, False, band=1e-5)
    mask = clear & (torch.arange(53)[None] < 30 if masked else torch.ones_like(clear))
    weight_sum, weight_max, pixels = ops.raster_contributions(screen, lists, scene.size, mask)
    double = tuple(t.double() for t in screen)
    expected = reference.raster_contributions(double, lists, mask, scene.size)
    assert relative_error(weight_sum, expected[0]) < 1e-5 and relative_error(weight_max, expected[1]) < 1e-5
    assert torch.equal(pixels, expected[2])


def test_contributions_add_up_to_the_coverage_of_the_picture(isa):
    scene = random_scene(250, 53, 39, seed=22)
    leaves, screen, _, lists = projected(scene)
    weight_sum, weight_max, pixels = ops.raster_contributions(screen, lists, scene.size)
    alpha = draw_native(leaves, scene.size)[1]
    assert weight_sum.sum().item() == pytest.approx(alpha.sum().item(), rel=1e-5)
    assert bool((weight_max <= native.LIMITS.alpha_max + 1e-6).all()) and int(pixels.max()) <= 53 * 39
    evaluated = native_features.raster_contributions(screen, lists, None, scene.size)[3]
    assert int(pixels.sum()) <= evaluated <= 256 * len(lists[1])


def test_median_depth_agrees_with_the_oracle_and_is_differentiable(isa):
    scene = random_scene(300, 53, 39, seed=23)
    leaves = scene.single()
    rendering = render_from(
        gaussians_of(leaves), leaves[6], leaves[7], scene.size, options=DrawOptions(median_depth=True)
    )
    _, screen, depths, lists = projected(scene)
    median = reference.raster_median(tuple(t.double() for t in screen), lists, None, scene.size).long()
    expected = torch.where(median >= 0, depths[median.clamp(min=0)], 0.0)
    assert 0.1 < (median >= 0).float().mean() < 1
    assert (rendering.median_depth != expected).float().mean() < 1e-3  # a weight sum at exactly one half may flip
    assert torch.equal(rendering.median_depth > 0, rendering.alpha >= 0.5)
    (gradient,) = torch.autograd.grad(rendering.median_depth.sum(), leaves[0])
    assert gradient[:, 2].sum().item() == pytest.approx(float((median >= 0).sum()), rel=0.05)


@pytest.mark.parametrize("channels", [3, 7, 14])
def test_probe_and_clipping_agree_with_the_oracle(isa, channels):
    scene = random_scene(150, 37, 35, channels=channels, seed=24)
    leaves, screen, _, lists = projected(scene)
    features, background = leaves[4], leaves[5]
    clear = ~boundary_pixels(scene.double(), scene.size, False, band=1e-5)
    generator = torch.Generator().manual_seed(5)
    v_image = torch.randn((35, 37, channels), generator=generator) * clear[..., None]
    v_alpha = torch.randn((35, 37), generator=generator) * clear
    bound = 0.8
    parts = [t.clone().requires_grad_() for t in (*screen, features, background)]
    probe = torch.zeros_like(screen[0], requires_grad=True)
    image, alpha = ops.raster_probed(tuple(parts[:3]), probe, parts[3], parts[4], lists, scene.size, bound)
    plain_image, _ = ops.raster(*screen, features, background, *lists, *scene.size)
    assert torch.equal(image, plain_image)
    found = torch.autograd.grad((image * v_image).sum() + (alpha * v_alpha).sum(), (*parts, probe))

    doubles = [t.detach().double().requires_grad_() for t in parts]
    image64, alpha64 = reference.raster(tuple(doubles[:3]), doubles[3], doubles[4], lists, scene.size)
    clipped = reference.clip_pixels(v_image.double(), bound)
    assert 0 < (clipped.abs() < v_image.double().abs()).any(-1).float().mean() < 1
    expected = torch.autograd.grad((image64 * clipped).sum() + (alpha64 * v_alpha).sum(), doubles)
    for a, b in zip(found[:5], expected, strict=True):
        assert relative_error(a, b) < 1e-4
    absolute = reference.absolute_gradients(
        tuple(t.detach() for t in doubles[:3]), doubles[3].detach(), doubles[4].detach(), lists, scene.size,
        (clipped, v_alpha.double()),
    )  # fmt: skip
    assert relative_error(found[5], absolute) < 1e-4
    assert bool((found[5] >= found[0].abs() - 1e-4).all())  # a sum of absolute values bounds the absolute sum


def test_an_unbounded_probe_changes_nothing(isa):
    scene = random_scene(400, 70, 50, seed=25)
    plain, probed = scene.single(), scene.single()
    image = draw_native(plain, scene.size)[0]
    rendering = render_from(
        gaussians_of(probed), probed[6], probed[7], scene.size, background=probed[5],
        options=DrawOptions(absolute_gradients=True),
    )  # fmt: skip
    assert torch.equal(image, rendering.image)
    for a, b in zip(
        torch.autograd.grad(image.square().sum(), plain),
        torch.autograd.grad(rendering.image.square().sum(), probed),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("antialiased", [False, True])
def test_orthographic_cameras_agree_with_the_oracle(isa, antialiased):
    scene = random_scene(150, 49, 37, seed=26)
    single, double = list(scene.single()), list(scene.double())
    for leaves in (single, double):  # px per metre
        leaves[7] = leaves[7].detach().new_tensor([9.0, 10.0, 25.0, 18.0]).requires_grad_()
    camera = tuple(single[6:])
    found = ops.project(*single[:4], *camera, *scene.size, antialiased, orthographic=True)
    expected = reference.project(tuple(double[:4]), tuple(double[6:]), scene.size, antialiased, orthographic=True)
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-5
    assert bool((found[2] == 0).any()) and bool((found[2] > 0).any())
    generator = torch.Generator().manual_seed(6)
    weights = [torch.randn(t.shape, generator=generator) for t in found[:4]]
    inputs = (0, 1, 2, 3, 6, 7)
    pulled = torch.autograd.grad(sum((t * w).sum() for t, w in zip(found[:4], weights, strict=True)),
                                 [single[i] for i in inputs])  # fmt: skip
    wanted = torch.autograd.grad(sum((t * w).sum() for t, w in zip(expected[:4], weights, strict=True)),
                                 [double[i] for i in inputs])  # fmt: skip
    for a, b in zip(pulled, wanted, strict=True):
        assert relative_error(a, b) < 1e-4


def test_an_orthographic_disc_keeps_its_size_at_any_depth():
    sizes = []
    for depth in (1.0, 20.0):
        world = (torch.tensor([[0.0, 0.0, depth]]), torch.eye(4)[:1], torch.full((1, 3), 0.2), torch.ones(1))
        camera = (torch.eye(4), torch.tensor([20.0, 20.0, 16.0, 16.0]))
        sizes.append(ops.project(*world, *camera, 32, 32, False, orthographic=True)[4])
    assert torch.allclose(*sizes)


def test_masked_pixels_show_the_background_and_give_no_gradient(isa):
    scene = random_scene(200, 40, 30, seed=27)
    leaves = scene.single()
    mask = torch.zeros((30, 40), dtype=torch.bool)
    mask[5:20, 8:33] = True
    options = DrawOptions(mask=mask, median_depth=True)
    rendering = render_from(
        gaussians_of(leaves), leaves[6], leaves[7], scene.size, background=leaves[5], with_depth=True, options=options
    )
    plain = draw_native(leaves, scene.size)[0]
    assert torch.equal(rendering.image[mask], plain[mask])
    assert torch.equal(rendering.image[~mask], leaves[5].expand_as(plain)[~mask])
    assert not rendering.alpha[~mask].any() and not rendering.median_depth[~mask].any()
    outside = torch.autograd.grad((rendering.image * ~mask[..., None]).sum(), leaves[:5], allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in outside)


@pytest.mark.parametrize("channels", [3, 6, 21])
def test_masked_gradients_agree_with_the_oracle(isa, channels):
    """Not a number in a masked pixel's gradient reaches the background alone, and no wrong number anything else."""
    scene = random_scene(150, 37, 35, channels=channels, seed=31)
    leaves, screen, _, lists = projected(scene)
    mask = ~boundary_pixels(scene.double(), scene.size, False, band=1e-5)
    mask[:, :20] = False
    generator = torch.Generator().manual_seed(5)
    v_image, v_alpha = torch.randn((35, 37, channels), generator=generator), torch.randn((35, 37), generator=generator)
    parts = [t.clone().requires_grad_() for t in (*screen, *leaves[4:6])]
    image, alpha = ops.raster(*parts, *lists, *scene.size, mask)
    doubles = [t.detach().double().requires_grad_() for t in parts]
    pictures = reference.raster(tuple(doubles[:3]), doubles[3], doubles[4], lists, scene.size, mask=mask)
    expected = torch.autograd.grad(pictures, doubles, (v_image.double(), v_alpha.double()))
    found = torch.autograd.grad((image, alpha), parts, (v_image, v_alpha), retain_graph=True)
    for a, b in zip((image, alpha, *found), (*pictures, *expected), strict=True):
        assert relative_error(a, b) < 1e-4
    v_image[3, 5], v_alpha[3, 5] = math.nan, math.nan
    spoilt = torch.autograd.grad((image, alpha), parts, (v_image, v_alpha))
    assert all(torch.equal(a, b) for a, b in zip(found[:4], spoilt[:4], strict=True)) and spoilt[4].isnan().all()


@pytest.mark.parametrize("bound", [0.8, math.inf])
def test_the_probe_sees_no_masked_pixel(isa, bound):
    scene = random_scene(150, 37, 35, seed=32)
    leaves, screen, _, lists = projected(scene)
    mask = ~boundary_pixels(scene.double(), scene.size, False, band=1e-5)
    mask[10:, :20] = False
    v_image = torch.randn((35, 37, 3), generator=torch.Generator().manual_seed(5))
    probe = torch.zeros_like(screen[0], requires_grad=True)
    image, _ = ops.raster_probed(screen, probe, *leaves[4:6], lists, scene.size, bound, mask)
    (found,) = torch.autograd.grad(image, (probe,), v_image)
    shown = reference.clip_pixels(v_image.double(), bound) * mask[..., None]
    doubles = [t.double() for t in (*screen, *leaves[4:6])]
    expected = reference.absolute_gradients(tuple(doubles[:3]), *doubles[3:], lists, scene.size, (shown, None))
    assert relative_error(found, expected) < 1e-4


def test_masked_tiles_do_no_work(isa):
    scene = random_scene(250, 64, 32, seed=33)
    leaves, screen, _, lists = projected(scene)
    mask = torch.zeros((32, 64), dtype=torch.bool)
    assert native_features.raster_contributions(screen, lists, mask, scene.size)[3] == 0
    brightest = int(draw_native(leaves, scene.size)[1][16:32, 32:48].argmax())
    mask[16 + brightest // 16, 32 + brightest % 16] = True
    *found, evaluated = native_features.raster_contributions(screen, lists, mask, scene.size)
    pairs = int(lists[0][7] - lists[0][6])  # of the one tile that shows something
    assert 0 < evaluated <= 256 * pairs and int(found[2].max()) == 1
    assert (ops.raster_median(screen, lists, scene.size, mask) >= 0).sum() <= 1


def test_a_mask_of_another_size_or_type_is_refused():
    lists = (torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
    drawn = (torch.zeros(1, 2), torch.ones(1, 3), torch.ones(1), torch.ones(1, 3), torch.zeros(3), *lists)
    for mask in (torch.ones(8, 9, dtype=torch.bool), torch.ones(9, 8)):
        with pytest.raises(UserError, match=r"raster: the mask must be bool \[9, 8\]"):
            ops.raster(*drawn, 8, 9, mask)


def test_a_batch_of_cameras_is_one_picture_each():
    scene = random_scene(200, 40, 30, seed=28)
    leaves = tuple(leaf.detach() for leaf in scene.single())
    cameras = [Camera(40, 30, 36.0, 38.0, 20.0, 15.0, np.eye(4)), Camera(31, 17, 30.0, 30.0, 15.0, 8.0, np.eye(4))]
    shifted = cameras[1].moved(np.array([0.1, 0.0, 0.0]))
    drawn = render_all(gaussians_of(leaves), [*cameras, shifted])
    assert [tuple(rendering.image.shape) for rendering in drawn] == [(30, 40, 3), (17, 31, 3), (17, 31, 3)]
    assert not torch.equal(drawn[1].image, drawn[2].image)
    shares = contributions(gaussians_of(leaves), cameras[0])
    assert shares.weight_sum.sum().item() == pytest.approx(drawn[0].alpha.sum().item(), rel=1e-5)


def test_the_same_bytes_on_any_number_of_threads(isa):
    scene = random_scene(3000, 150, 90, seed=29)
    coefficients = torch.randn((3000, 16, 3), generator=torch.Generator().manual_seed(1)).requires_grad_()
    results = []
    try:
        for threads in (1, 2, 3):
            native.set_threads(threads)
            leaves, screen, _, lists = projected(scene)
            center = torch.zeros(3, requires_grad=True)
            colors = ops.spherical_harmonics(leaves[0], coefficients, center)
            probe = torch.zeros_like(screen[0], requires_grad=True)
            image, _ = ops.raster_probed(screen, probe, colors, leaves[5], lists, scene.size, 0.01)
            gradients = torch.autograd.grad(image.square().sum(), (coefficients, center, probe))
            found = ops.raster_contributions(screen, lists, scene.size)
            results.append([image, colors, *gradients, *found, ops.raster_median(screen, lists, scene.size)])
    finally:
        native.set_threads(native.available_cores())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_reference_backend_knows_the_features_too(monkeypatch):
    scene = random_scene(60, 33, 20, seed=30)
    pictures = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("SCENE_DISTILL_BACKEND", backend)
        leaves = scene.single()
        options = DrawOptions(median_depth=True, absolute_gradients=True, gradient_bound=0.5)
        rendering = render_from(gaussians_of(leaves), leaves[6], leaves[7], scene.size, options=options)
        rendering.image.square().sum().backward()
        coefficients = torch.full((60, 4, 3), 0.3, requires_grad=True)
        colors = ops.spherical_harmonics(leaves[0], coefficients, torch.zeros(3))
        colors.square().sum().backward()
        _, screen, _, lists = projected(scene)
        shares = ops.raster_contributions(screen, lists, scene.size)
        orthographic = ops.project(
            *[leaf.detach() for leaf in leaves[:4]], leaves[6], leaves[7], *scene.size, orthographic=True
        )
        orthographic[0].sum().backward()
        pictures.append([rendering.image.detach(), rendering.median_depth.detach(), rendering.probe.grad,
                         coefficients.grad, shares[0], leaves[6].grad])  # fmt: skip
    for a, b in zip(*pictures, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("name", ["raster_probed", "spherical_harmonics", "project_orthographic"])
def test_torch_accepts_the_registration(name):
    scene = random_scene(40, 33, 20)
    leaves, screen, _, lists = projected(scene)
    drawn = (screen[0].requires_grad_(), torch.zeros_like(screen[0], requires_grad=True), *screen[1:])
    inputs = {
        "raster_probed": (*drawn, leaves[4].requires_grad_(), leaves[5], *lists, *scene.size, 0.1),
        "spherical_harmonics": (leaves[0], torch.rand(40, 9, 3, requires_grad=True), torch.zeros(3), 1, None),
        "project_orthographic": (
            *(leaf.clone().requires_grad_() for leaf in leaves[:4]),
            *leaves[6:],
            *scene.size,
            False,
        ),
    }[name]
    op = getattr(torch.ops.scene_distill, name).default
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(op, inputs, test_utils=tests)


def test_the_vector_rate_is_that_of_a_processor():
    assert 1e8 < native_features.vector_rate(2) < 1e12 and native_features.lanes() in (8, 16)
    assert math.isfinite(native_features.vector_rate(1))
