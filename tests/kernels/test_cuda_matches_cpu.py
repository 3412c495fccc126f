"""The CUDA kernels against the native CPU kernels, from Gaussians to gradients, on scenes that hypothesis makes up."""

import torch
from cuda_emulator import NO_THRESHOLDS, kernels
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.renderers import native


@st.composite
def scenes(draw):
    """World Gaussians, a camera, colours and a size: any count, behind the camera, flat, transparent, one pixel."""
    count = draw(st.integers(0, 24))
    size = (draw(st.integers(1, 40)), draw(st.integers(1, 24)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    depth, flatness = draw(st.floats(-0.5, 4.0)), draw(st.floats(0.0, 6.0))
    means = torch.randn(count, 3, generator=g) + torch.tensor([0.0, 0.0, depth])
    scales = torch.exp(torch.randn(count, 3, generator=g) - torch.tensor([1.0, 1.0, 1.0 + flatness]))
    opacities = torch.rand(count, generator=g) - draw(st.sampled_from([0.0, 0.5, 1.0]))
    world = (means, torch.randn(count, 4, generator=g), scales, opacities)
    focal = draw(st.floats(5.0, 80.0))
    camera = (torch.eye(4), torch.tensor([focal, focal * 1.1, size[0] / 2, size[1] / 2]))
    return world, camera, size, torch.randn(count, draw(st.sampled_from([1, 3, 5])), generator=g), draw(st.booleans())


def close(a, b, tolerance):
    scale = max(float(b.abs().max()) if b.numel() else 0.0, 1.0)
    return a.shape == b.shape and (a.numel() == 0 or float((a - b).abs().max()) <= tolerance * scale)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(scene=scenes())
def test_same_pictures_and_gradients(device, scene):
    world, camera, size, features, antialiased = scene
    ops = kernels(device, 1, NO_THRESHOLDS)

    def here(*tensors):
        return [t.to(device) for t in tensors]

    screen = native.project(world, camera, size, antialiased, NO_THRESHOLDS)
    found = ops.project(*here(*world, *camera), *size, antialiased)
    seen = (screen[4][:, 0] > 0) & (found[4][:, 0].cpu() > 0)  # at a cull the last bit may decide
    for got, want in zip(found, screen, strict=True):
        assert close(got.cpu()[seen], want[seen], 1e-4)

    means2d, conics, depths, opacities, extents = screen
    drawn, background = (means2d, conics, opacities), torch.rand(features.shape[1])
    lists = native.bin(drawn, depths, extents, size, NO_THRESHOLDS)
    inputs = here(*drawn, features, background, *lists)
    pictures = native.raster(drawn, features, background, lists, size, NO_THRESHOLDS)
    own_lists = ops.bin(*here(*drawn, depths, extents), *size)
    own = ops.raster(*inputs[:5], *own_lists, *size)
    assert all(close(got.cpu(), want, 1e-4) for got, want in zip(own, pictures, strict=True))

    v_image, v_alpha = torch.ones_like(pictures[0]), pictures[1]
    expected = native.raster_backward(drawn, features, background, lists, pictures, (v_image, v_alpha), NO_THRESHOLDS)
    back = ops.raster_backward(*inputs, *here(*pictures, v_image, v_alpha))
    assert all(close(got.cpu(), want, 1e-3) for got, want in zip(back, expected, strict=True))
