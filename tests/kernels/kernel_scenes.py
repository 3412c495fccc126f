"""Random scenes and the dense float64 pipeline that the native kernels are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers import native, reference
from scene_distill.renderers.splat import render_from

NO_THRESHOLDS = {"alpha_min": 1e-30, "transmittance_min": 0.0, "alpha_max": 1.0 - 1e-6}


@dataclass(frozen=True)
class KernelScene:
    """Float64 inputs of one rendering; ``leaves`` in the order of every gradient list."""

    width: int
    height: int
    leaves: tuple[Tensor, ...]  # means, quats, scales, opacities, features, background, pose, intrinsics

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def single(self) -> tuple[Tensor, ...]:
        return tuple(leaf.float().requires_grad_() for leaf in self.leaves)

    def double(self) -> tuple[Tensor, ...]:
        # the same float32 numbers, so that only the arithmetic differs
        return tuple(leaf.float().double().requires_grad_() for leaf in self.leaves)


def random_scene(count: int = 200, width: int = 61, height: int = 45, channels: int = 3, seed: int = 0) -> KernelScene:
    """A cloud around the axis of a camera, some of it behind it, transparent, off screen or large."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    means = torch.stack([(uniform(count) - 0.5) * 6, (uniform(count) - 0.5) * 4, uniform(count) * 6 - 0.7], dim=-1)
    quats = torch.randn((count, 4), generator=generator, dtype=torch.float64)
    scales = torch.exp(uniform(count, 3) * 3 - 4.5)
    opacities = (uniform(count) * 1.2 - 0.1).clamp(max=1.0)
    pose = torch.eye(4, dtype=torch.float64)
    turn = torch.linalg.qr(torch.eye(3, dtype=torch.float64) + 0.1 * (uniform(3, 3) - 0.5))[0]
    pose[:3, :3] = turn * torch.sign(torch.diagonal(turn))
    pose[:3, 3] = torch.tensor([0.1, -0.2, 1.0])
    intrinsics = torch.tensor([0.9 * width, 0.95 * width, width / 2 + 1, height / 2 - 2], dtype=torch.float64)
    leaves = (means, quats, scales, opacities, uniform(count, channels), uniform(channels), pose, intrinsics)
    return KernelScene(width, height, leaves)


def draw_native(leaves: tuple[Tensor, ...], size: tuple[int, int], antialiased: bool = False) -> tuple[Tensor, Tensor]:
    """image and alpha through the ops."""
    means, quats, scales, opacities, features, background, pose, intrinsics = leaves
    gaussians = Gaussians(means, quats, scales, opacities, features)
    rendering = render_from(gaussians, pose, intrinsics, size, background=background, antialiased=antialiased)
    return rendering.image, rendering.alpha


def draw_dense(
    leaves: tuple[Tensor, ...],
    size: tuple[int, int],
    antialiased: bool = False,
    limits: reference.Limits = reference.LIMITS,
) -> tuple[Tensor, Tensor]:
    """image and alpha of all pixels x all Gaussians: no tiles, no lists."""
    means, quats, scales, opacities, features, background, pose, intrinsics = leaves
    world, camera = (means, quats, scales, opacities), (pose, intrinsics)
    means2d, conics, depths, opacities2d, extents = reference.project(world, camera, size, antialiased, limits)
    order = torch.argsort(depths, stable=True)
    order = order[extents[order, 0] > 0]
    screen = (means2d[order], conics[order], opacities2d[order])
    pixels = reference.pixel_centres(size, means)
    image, alpha = reference.blend(pixels, screen, features[order], background, limits)
    return image.reshape(size[1], size[0], -1), alpha.reshape(size[1], size[0])


def native_limits(**changed: float) -> native.Limits:
    values = {name: getattr(native.LIMITS, name) for name, _ in native.Limits._fields_} | changed
    return native.Limits(**values)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def boundary_pixels(leaves: tuple[Tensor, ...], size: tuple[int, int], antialiased: bool, band: float = 1e-4) -> Tensor:
    """[H, W] pixels where an alpha or a transmittance is within ``band`` (relative) of a cut: float32 may differ."""
    with torch.no_grad():
        means, quats, scales, opacities, _, _, pose, intrinsics = leaves
        means2d, conics, depths, opacities2d, extents = reference.project(
            (means, quats, scales, opacities), (pose, intrinsics), size, antialiased
        )
        order = torch.argsort(depths, stable=True)
        order = order[extents[order, 0] > 0]
        pixels = reference.pixel_centres(size, means)
        alphas = reference.alphas_at(pixels, (means2d[order], conics[order], opacities2d[order]))
        limits = reference.LIMITS
        near_alpha = ((alphas / limits.alpha_min - 1).abs() < band) | ((alphas / limits.alpha_max - 1).abs() < band)
        kept = torch.where(alphas >= limits.alpha_min, alphas, torch.zeros_like(alphas))
        after = torch.cumprod(1 - kept, 1)
        near_end = (after / limits.transmittance_min - 1).abs() < 100 * band
        return (near_alpha | near_end).any(1).reshape(size[1], size[0])
