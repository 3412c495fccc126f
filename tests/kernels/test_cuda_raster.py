"""Rasterizer kernels against the float64 oracle: forward, per-splat backward, any number of channels.

Pixels where a contribution lies within 1e-5 of a threshold take no part: a GPU's exponential may decide there otherwise
than the oracle's.
"""

import pytest
import torch
from cuda_emulator import NO_THRESHOLDS, SEEDS, kernels

from scene_distill.renderers import native, reference


def splats(count, size, channels, seed, sigma=(0.7, 6.0)):
    """Random splats with their depth-sorted tile lists, and a background."""
    g = torch.Generator().manual_seed(seed)
    means2d = torch.rand(count, 2, generator=g) * (torch.tensor(size) + 12.0) - 6.0
    low, high = sigma
    s = low + (high - low) * torch.rand(count, 2, generator=g)
    rho = torch.rand(count, generator=g) * 1.8 - 0.9
    a, c = s[:, 0] ** 2 + 0.3, s[:, 1] ** 2 + 0.3
    b = rho * s[:, 0] * s[:, 1]
    conics = torch.stack([c, -b, a], -1) / (a * c - b * b)[:, None]
    opacities = torch.rand(count, generator=g)
    opacities[::7] = 0.0
    opacities[::11] = 1.0
    features = torch.randn(count, channels, generator=g)
    depths = torch.rand(count, generator=g) + 1
    extents = torch.where(opacities[:, None] > 0, torch.ones(count, 2), torch.zeros(count, 2))
    exact = tuple(t.double() for t in (means2d, conics, opacities))
    offsets, pairs = reference.bin(exact, depths, extents, size, reference.Limits(alpha_min=1e-6))
    return means2d, conics, opacities, features, torch.rand(channels, generator=g), offsets, pairs


def exact_limits(limits):
    return reference.Limits(**{name: getattr(limits, name) for name, _ in native.Limits._fields_})


def decided(tensors, size, limits=native.LIMITS, band=1e-5):
    """[H, W]: pixels where no alpha is within ``band`` (relative) of a threshold, and no transmittance within 100 of
    it: float32 and the oracle take the same decisions."""
    exact, (offsets, pairs) = tuple(t.double() for t in tensors[:3]), tensors[5:]
    clear, centres = torch.ones(size[::-1], dtype=torch.bool), reference.pixel_centres(size, exact[0])
    centres, columns = centres.reshape(size[1], size[0], 2), -(-size[0] // 16)
    for tile in range(len(offsets) - 1):
        y, x = tile // columns * 16, tile % columns * 16
        pixels, ids = centres[y : y + 16, x : x + 16], pairs[offsets[tile] : offsets[tile + 1]].long()
        free = reference.alphas_at(pixels.reshape(-1, 2), tuple(t[ids] for t in exact), reference.Limits(alpha_max=2.0))
        near = ((free / limits.alpha_min - 1).abs() < band) | ((free / limits.alpha_max - 1).abs() < band)
        kept = torch.where(free >= limits.alpha_min, free.clamp(max=limits.alpha_max), 0.0)
        ends = (torch.cumprod(1 - kept, 1) / limits.transmittance_min - 1).abs() < 100 * band
        clear[y : y + 16, x : x + 16] = ~(near | ends).any(1).reshape(pixels.shape[:2])
    assert clear.float().mean() > 0.8
    return clear


def check(device, seed, size, tensors, limits=native.LIMITS, tolerance=2e-5, mask=None):
    exact = [t.double().requires_grad_(True) for t in tensors[:5]]
    drawn = (tuple(exact[:3]), exact[3], exact[4], tensors[5:])
    image, alpha = reference.raster(*drawn, size, exact_limits(limits), mask=mask)
    here, ops = [t.to(device) for t in tensors], kernels(device, seed, limits)
    shown = None if mask is None else mask.to(device)
    found = ops.raster(*here, *size, shown)
    clear = decided(tensors, size, limits)
    for got, want in zip(found, (image, alpha), strict=True):
        assert torch.allclose(got.cpu().double()[clear], want.detach()[clear], atol=tolerance)

    g = torch.Generator().manual_seed(seed)
    grads = [torch.randn(t.shape, generator=g) for t in found]
    grads = [grads[0] * clear[..., None], grads[1] * clear]
    torch.autograd.backward([image, alpha], [grad.double() for grad in grads])
    back = ops.raster_backward(*here, *found, *(grad.to(device) for grad in grads), shown)
    for got, want in zip(back, exact, strict=True):
        scale = max(float(want.grad.abs().max()), 1e-3)
        assert torch.allclose(got.cpu().double(), want.grad, rtol=1e-3, atol=4e-5 * scale)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("limits", [native.LIMITS, NO_THRESHOLDS], ids=["thresholds", "none"])
def test_rgb(device, seed, limits):
    size = (41, 35)
    check(device, seed, size, splats(100, size, 3, seed), limits)


@pytest.mark.parametrize("channels", [1, 4, 7, 16, 33])
def test_any_number_of_channels(device, channels):
    size = (20, 18)
    check(device, 1, size, splats(45, size, channels, channels))


@pytest.mark.parametrize("seed", SEEDS)
def test_masked_pixels_show_the_background_and_pull_at_nothing_else(device, seed):
    size = (41, 35)
    mask = torch.rand(35, 41, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[:16, 16:32] = False  # a whole tile
    tensors = splats(100, size, 5, seed)
    check(device, seed, size, tensors, mask=mask)
    here, ops, shown = [t.to(device) for t in tensors], kernels(device, seed), mask.to(device)
    image, alpha = ops.raster(*here, *size, shown)
    assert torch.equal(image[~shown], here[4].expand(int((~mask).sum()), 5)) and not alpha[~shown].any()
    v_image = torch.where(shown[..., None], torch.ones_like(image), torch.nan)
    back = ops.raster_backward(*here, image, alpha, v_image, None, shown)
    assert all(torch.isfinite(t).all() for t in back[:4]) and torch.isnan(back[4]).all()


def test_long_lists_saturate(device):
    """One tile, 200 wide splats: several batches, seven buckets, pixels that finish early, clamped contributions."""
    size = (16, 16)
    means2d, conics, opacities, *rest = splats(200, size, 3, 5, sigma=(2.0, 9.0))
    opacities = opacities.clamp(min=0.3)
    opacities[::13] = 1.0
    check(device, 2, size, (means2d, conics, opacities, *rest))


def test_tiny_splats_reach_only_their_rows(device):
    size = (33, 17)
    check(device, 1, size, splats(80, size, 3, 6, sigma=(0.05, 0.4)))


@pytest.mark.parametrize("sigma", [0.2, 0.9])
def test_a_lonely_splat_reaches_its_last_row(device, sigma):
    """Nothing else in the bucket hides a row, a column or a warp that is cut off too early."""
    size = (18, 18)
    for y in (0.1, 3.6, 8.0, 12.4, 15.9):
        means2d, conics, opacities, features, background, *_ = splats(1, size, 3, 3, sigma=(sigma, sigma))
        means2d[0], opacities[0] = torch.tensor([17.0 - y, y]), 0.9
        exact = (means2d.double(), conics.double(), opacities.double())
        lists = reference.bin(exact, torch.ones(1), torch.ones(1, 2), size)
        check(device, 1, size, (means2d, conics, opacities, features, background, *lists))


def test_needles_are_not_culled(device):
    """Conics whose determinant has few correct digits in float32 fall back to the whole tile."""
    size = (32, 32)
    tensors = list(splats(12, size, 3, 7))
    angle = torch.linspace(0, 3, 12)
    long, thin = 400.0, 0.31
    cos, sin = angle.cos(), angle.sin()
    a, b, c = cos**2 / long + sin**2 / thin, cos * sin * (1 / long - 1 / thin), sin**2 / long + cos**2 / thin
    tensors[1] = torch.stack([a, b, c], -1)
    exact = tuple(t.double() for t in tensors[:3])
    tensors[5:] = reference.bin(exact, torch.arange(12.0), torch.ones(12, 2), size)
    check(device, 1, size, tuple(tensors), tolerance=1e-4)


def probed(device, seed, tensors, size, bound, mask=None):
    """What the oracle and the kernels give for one random gradient of the picture, a pixel of it a thousandfold."""
    g = torch.Generator().manual_seed(seed)
    v_image, v_alpha = (
        torch.randn(size[1], size[0], tensors[3].shape[1], generator=g),
        torch.rand(*size[::-1], generator=g),
    )
    v_image[3, 5] *= 1000.0
    v_image[4, 6] = 0.0
    clear = decided(tensors, size)
    v_image, v_alpha = v_image * clear[..., None], v_alpha * clear
    screen = tuple(t.double() for t in tensors[:3])
    grads = (reference.clip_pixels(v_image.double(), bound), v_alpha.double())
    exact = [t.double().requires_grad_(True) for t in tensors[:5]]
    pictures = reference.raster(tuple(exact[:3]), exact[3], exact[4], tensors[5:], size, mask=mask)
    torch.autograd.backward(list(pictures), list(grads))
    if mask is not None:
        grads = (grads[0] * mask[..., None], grads[1] * mask)
    absolute = reference.absolute_gradients(screen, tensors[3].double(), tensors[4].double(), tensors[5:], size, grads)
    here, ops = [t.to(device) for t in tensors], kernels(device, seed)
    shown = None if mask is None else mask.to(device)
    drawn = ops.raster_probed(here[0], torch.zeros_like(here[0]), *here[1:], *size, bound, shown)
    gradients = (v_image.to(device), v_alpha.to(device))
    found = ops.raster_probed_backward(*here, *drawn, *gradients, bound, True, shown)
    assert not ops.raster_probed_backward(*here, *drawn, *gradients, bound, False, shown)[5].any()
    return found, [*(t.grad for t in exact), absolute]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bound", [0.05, float("inf")])
@pytest.mark.parametrize("channels", [3, 32, 37])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_clipped_pixels_and_absolute_gradients(device, seed, bound, channels, masked):
    size = (20, 18)
    mask = torch.rand(18, 20, generator=torch.Generator().manual_seed(seed)) > 0.3 if masked else None
    found, expected = probed(device, seed, splats(40, size, channels, seed), size, bound, mask)
    for got, want in zip(found, expected, strict=True):
        assert torch.allclose(got.cpu().double(), want, rtol=1e-3, atol=4e-5 * float(want.abs().max()))
    signed, absolute = expected[0].abs(), expected[5]
    assert (absolute >= signed - 1e-12).all() and absolute.sum() > 1.05 * signed.sum()


def test_clipping_keeps_directions_and_bounds_every_channel(device):
    v_image = torch.randn(9, 7, 5, generator=torch.Generator().manual_seed(2))
    v_image[0, 0], v_image[0, 1, 2] = 0.0, -1e30
    clipped = kernels(device, 1)._clipped(v_image.to(device), 0.1).cpu()
    assert torch.isfinite(clipped).all() and float(clipped.abs().max()) <= 0.1 * (1 + 1e-6)
    assert torch.allclose(clipped, reference.clip_pixels(v_image, 0.1), rtol=1e-6, atol=1e-8)
    assert torch.equal(kernels(device, 1)._clipped(v_image.to(device), 1e31).cpu(), v_image)


def test_nothing_to_draw(device):
    size = (17, 5)
    means2d, conics, opacities, features, background, *_ = (t.to(device) for t in splats(5, size, 3, 1))
    empty = [torch.zeros(3, dtype=torch.int32, device=device), torch.zeros(0, dtype=torch.int32, device=device)]
    ops = kernels(device, 1)
    image, alpha = ops.raster(means2d, conics, opacities, features, background, *empty, *size)
    assert torch.equal(image, background.expand(5, 17, 3)) and not alpha.any()
    ones = torch.ones_like(image)
    back = ops.raster_backward(means2d, conics, opacities, features, background, *empty, image, alpha, ones, None)
    assert not any(t.any() for t in back[:4]) and torch.allclose(back[4], torch.full_like(back[4], 85.0))


def test_thread_order_changes_no_pixel(device):
    size = (30, 20)
    tensors = [t.to(device) for t in splats(60, size, 3, 9)]
    images = [kernels(device, seed).raster(*tensors, *size)[0] for seed in (-1, 1, 2, 3)]
    assert all(torch.equal(image, images[0]) for image in images)
