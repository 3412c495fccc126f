"""Gaussians and a camera to an image: project, bin, raster."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers import ops


@dataclass(frozen=True, eq=False)
class Rendering:
    """What `render` returns.

    image [H, W, D]; alpha [H, W] coverage in [0, 1]; depth [H, W] expected depth in metres, 0 where nothing was
    drawn, or None; means2d [N, 2] px (call ``retain_grad()`` before the backward pass to read screen gradients);
    extents [N, 2] half sizes in px, (0, 0) for Gaussians that were culled.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor | None
    means2d: Tensor
    extents: Tensor


def render(
    gaussians: Gaussians,
    camera: Camera,
    *,
    background: Tensor | None = None,
    with_depth: bool = False,
    antialiased: bool = False,
) -> Rendering:
    """Draw Gaussians with any number of feature channels D <= 512 (511 with depth) over a background [D], black if
    None.

    Differentiable in every tensor of the Gaussians and in the background; gradients of pose and intrinsics are
    available from `render_from`.
    """
    device = gaussians.means.device
    pose, intrinsics = camera.pose(device), camera.intrinsics(device)
    return render_from(
        gaussians, pose, intrinsics, (camera.width, camera.height),
        background=background, with_depth=with_depth, antialiased=antialiased,
    )  # fmt: skip


def render_from(
    gaussians: Gaussians,
    cam_from_world: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
    *,
    background: Tensor | None = None,
    with_depth: bool = False,
    antialiased: bool = False,
) -> Rendering:
    """`render` for a pose [4, 4], intrinsics [4] = (fx, fy, cx, cy), size (width, height); differentiable in both."""
    width, height = size
    means2d, conics, depths, opacities2d, extents = ops.project(
        gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, cam_from_world, intrinsics,
        width, height, antialiased,
    )  # fmt: skip
    lists = ops.bin(means2d.detach(), conics.detach(), opacities2d.detach(), depths.detach(), extents, width, height)
    features = gaussians.features
    if background is None:
        background = features.new_zeros(features.shape[1])
    if with_depth:
        features = torch.cat([features, depths[:, None]], dim=1)
        background = torch.cat([background, background.new_zeros(1)])
    image, alpha = ops.raster(means2d, conics, opacities2d, features, background, *lists, width, height)
    depth = None
    if with_depth:
        depth = image[..., -1] / alpha.clamp(min=1e-10)
        image = image[..., :-1]
    return Rendering(image, alpha, depth, means2d, extents)
