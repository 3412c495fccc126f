"""Gaussians, or splats as they are stored, and a camera to an image: project, bin, raster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.gaussians import Gaussians
from scene_distill.core.stages import staged
from scene_distill.renderers import gsplat, ops
from scene_distill.renderers.stored_splats import activated, projected
from scene_distill.representations.splats import Splats


@dataclass(frozen=True, eq=False)
class Rendering:
    """What `render` returns.

    image [H, W, D]; alpha [H, W] coverage in [0, 1]; depth [H, W] expected depth in metres, 0 where nothing was
    drawn, or None; means2d [N, 2] px (call ``retain_grad()`` before the backward pass to read screen gradients);
    extents [N, 2] half sizes in px, (0, 0) for Gaussians that were culled. On request (`DrawOptions`): median_depth
    [H, W] metres, 0 where alpha < 1/2; probe [N, 2], whose ``grad`` holds after the backward pass the sum over pixels
    of |dL/d means2d| (AbsGS).
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor | None
    means2d: Tensor
    extents: Tensor
    median_depth: Tensor | None = None
    probe: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DrawOptions:
    """What is drawn beside the plain picture of a pinhole camera.

    orthographic: u = fx x + cx, v = fy y + cy, with the camera's fx, fy in px per metre. median_depth: depth of the
    Gaussian that takes the transmittance to 1/2 or below, differentiable in the depths of the Gaussians.
    absolute_gradients: a `Rendering.probe`. gradient_bound: the gradient of a pixel is scaled down until no channel of
    the image (or of the depth drawn with it) exceeds the bound (PGC, Dreamer XL section 6), before it reaches any
    Gaussian. mask [H, W] bool: pixels that are False show the background with alpha 0 and give no gradient to the
    Gaussians; tiles without any other pixel cost nothing.
    backend: "gsplat" draws tensors on a GPU with the gsplat that is installed (`renderers/gsplat.py`), "native" with
    our ops; None follows SCENE_DISTILL_BACKEND.
    """

    orthographic: bool = False
    median_depth: bool = False
    absolute_gradients: bool = False
    gradient_bound: float = math.inf
    mask: Tensor | None = None
    backend: str | None = None


PLAIN = DrawOptions()


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each Gaussian added to a picture: weight_sum and weight_max [N] of its blending weights, and pixels [N]
    int32, the number of pixels it is drawn in."""

    weight_sum: Tensor
    weight_max: Tensor
    pixels: Tensor


def render_all(gaussians: Gaussians | Splats, cameras: Sequence[Camera], *, background: Tensor | None = None,
               with_depth: bool = False, antialiased: bool = False,
               options: DrawOptions = PLAIN) -> list[Rendering]:  # fmt: skip
    """`render` of several cameras, which may differ in size: one after another, each on all threads."""
    return [
        render(
            gaussians, camera, background=background, with_depth=with_depth, antialiased=antialiased, options=options
        )
        for camera in cameras
    ]


def contributions(
    gaussians: Gaussians, camera: Camera, *, antialiased: bool = False, options: DrawOptions = PLAIN
) -> Contributions:
    """Blending weights and pixel counts of every Gaussian in one picture, under the options' mask and projection."""
    device, size = gaussians.means.device, (camera.width, camera.height)
    if gsplat.asked(options.backend):
        gsplat.refuse(device, {"the contributions of single Gaussians": True})
    with torch.no_grad():
        projected = ops.project(
            gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, camera.pose(device),
            camera.intrinsics(device), *size, antialiased, options.orthographic,
        )  # fmt: skip
        means2d, conics, depths, opacities2d, extents = projected
        lists = ops.bin(means2d, conics, opacities2d, depths, extents, *size)
        return Contributions(*ops.raster_contributions((means2d, conics, opacities2d), lists, size, options.mask))


def render(
    gaussians: Gaussians | Splats,
    camera: Camera,
    *,
    background: Tensor | None = None,
    with_depth: bool = False,
    antialiased: bool = False,
    options: DrawOptions = PLAIN,
) -> Rendering:
    """Draw Gaussians with any number of feature channels D <= 512 (511 with depth) over a background [D], black if
    None.

    `Splats` show their view-dependent colours; activations, projection and harmonics are then one kernel.
    Differentiable in every tensor of the Gaussians and in the background; gradients of pose and intrinsics are
    available from `render_from`.
    """
    device = gaussians.means.device
    pose, intrinsics = camera.pose(device), camera.intrinsics(device)
    return render_from(
        gaussians, pose, intrinsics, (camera.width, camera.height),
        background=background, with_depth=with_depth, antialiased=antialiased, options=options,
    )  # fmt: skip


@staged("render")
def render_from(
    gaussians: Gaussians | Splats,
    cam_from_world: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    *,
    background: Tensor | None = None,
    with_depth: bool = False,
    antialiased: bool = False,
    options: DrawOptions = PLAIN,
) -> Rendering:
    """`render` for a pose [4, 4], intrinsics [4] = (fx, fy, cx, cy), size (width, height); differentiable in both."""
    if gsplat.asked(options.backend):
        camera = (cam_from_world, intrinsics)
        if isinstance(gaussians, Splats):
            gaussians = activated(gaussians, cam_from_world)
        return _render_with_gsplat(gaussians, camera, size, background, with_depth, antialiased, options)
    width, height = size
    (means2d, conics, depths, opacities2d, extents), features = _project(
        gaussians, (cam_from_world, intrinsics), size, antialiased, options.orthographic
    )
    lists = ops.bin(means2d.detach(), conics.detach(), opacities2d.detach(), depths.detach(), extents, width, height)
    features, background = _channels(features, background, depths if with_depth else None)
    screen = (means2d, conics, opacities2d)
    image, alpha, probe = _raster(screen, features, background, lists, size, options)
    image, depth = _split_depth(image, alpha) if with_depth else (image, None)
    median_depth = _median_depth(screen, depths, lists, size, options.mask) if options.median_depth else None
    return Rendering(image, alpha, depth, means2d, extents, median_depth, probe)


def _render_with_gsplat(gaussians: Gaussians, camera: tuple[Tensor, Tensor], size: tuple[int, int],
                        background: Tensor | None, with_depth: bool, antialiased: bool,
                        options: DrawOptions) -> Rendering:  # fmt: skip
    wanted = gsplat.wanted(options.mask, options.gradient_bound, options.median_depth, camera[1])
    gsplat.refuse(gaussians.means.device, wanted)
    adapter = gsplat.load()
    world = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    screen = adapter.project(world, camera, size, antialiased, options.orthographic)
    features, background = _channels(gaussians.features, background, screen.depths if with_depth else None)
    image, alpha, probe = gsplat.draw(screen, features, background, size, options.absolute_gradients, adapter)
    image, depth = _split_depth(image, alpha) if with_depth else (image, None)
    return Rendering(image, alpha, depth, screen.means2d, screen.extents, None, probe)


def _channels(features: Tensor, background: Tensor | None, depths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features [N, D] over a background [D], black if None, with depth as one more channel over 0 if given."""
    if background is None:
        background = features.new_zeros(features.shape[1])
    if depths is None:
        return features, background
    return torch.cat([features, depths[:, None]], dim=1), torch.cat([background, background.new_zeros(1)])


def _split_depth(image: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The image without its last channel, and that channel as expected depth."""
    return image[..., :-1], image[..., -1] / alpha.clamp(min=1e-10)


_Screen = tuple[Tensor, Tensor, Tensor]
_Projected = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _project(gaussians: Gaussians | Splats, camera: tuple[Tensor, Tensor], size: tuple[int, int], antialiased: bool,
             orthographic: bool) -> tuple[_Projected, Tensor]:  # fmt: skip
    """What `ops.project` returns, and the features; one kernel for stored splats where it has all that is asked for."""
    if isinstance(gaussians, Splats):
        if not orthographic and not any(part.requires_grad for part in camera):
            return projected(gaussians, *camera, size, antialiased)
        gaussians = activated(gaussians, camera[0])
    world = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    return ops.project(*world, *camera, *size, antialiased, orthographic), gaussians.features


def _raster(screen: _Screen, features: Tensor, background: Tensor, lists: tuple[Tensor, Tensor], size: tuple[int, int],
            options: DrawOptions) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """image, alpha and the probe; the plain op where nothing was asked for."""
    if not options.absolute_gradients and math.isinf(options.gradient_bound):
        return *ops.raster(*screen, features, background, *lists, *size, options.mask), None
    probe = torch.zeros_like(screen[0], requires_grad=options.absolute_gradients)
    bound, mask = options.gradient_bound, options.mask
    image, alpha = ops.raster_probed(screen, probe, features, background, lists, size, bound, mask)
    return image, alpha, probe if options.absolute_gradients else None


def _median_depth(screen: _Screen, depths: Tensor, lists: tuple[Tensor, Tensor], size: tuple[int, int],
                  mask: Tensor | None) -> Tensor:  # fmt: skip
    median = ops.raster_median((screen[0].detach(), screen[1].detach(), screen[2].detach()), lists, size, mask).long()
    if len(depths) == 0:
        return depths.new_zeros((size[1], size[0]))
    return torch.where(median >= 0, depths[median.clamp(min=0)], torch.zeros_like(depths[:1]))
