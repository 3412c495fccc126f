"""From splats as they are stored to what a camera draws: which of them, their projection, their activated values."""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.gaussians import Gaussians
from scene_distill.core.stages import staged
from scene_distill.renderers import ops
from scene_distill.representations.splats import Splats


@staged("cull")
@torch.no_grad()
def drawn_rows(splats: Splats, camera: Camera) -> Tensor:
    """Indices [V] int64, ascending, of the splats that `ops.project` does not cull for a camera."""
    device, size = splats.means.device, (camera.width, camera.height)
    shape = (splats.means, splats.quats, splats.log_scales, splats.opacity_logits, None)
    extents = ops.project_splats(shape, camera.pose(device), camera.intrinsics(device), size)[4]
    return (extents[:, 0] > 0).nonzero().squeeze(1)


@staged("cull")
def take(splats: Splats, rows: Tensor, bases: int | None = None) -> Splats:
    """Copies of the splats at ``rows`` [V] int64, with the first ``bases`` harmonics (all when None)."""
    return Splats(
        means=ops.take_rows(splats.means, rows),
        log_scales=ops.take_rows(splats.log_scales, rows),
        quats=ops.take_rows(splats.quats, rows),
        opacity_logits=ops.take_rows(splats.opacity_logits, rows),
        sh=ops.take_rows(splats.sh[:, :bases], rows),
    )


def activated(splats: Splats, cam_from_world: Tensor) -> Gaussians:
    """The Gaussians, with the colours that they show to a camera; differentiable, in the pose [4, 4] too."""
    center = -cam_from_world[:3, :3].T @ cam_from_world[:3, 3]
    return Gaussians(
        means=splats.means,
        quats=splats.quats,
        scales=splats.log_scales.exp(),
        opacities=splats.opacity_logits.sigmoid(),
        features=ops.spherical_harmonics(splats.means, splats.sh, center),
    )


def projected(
    splats: Splats, cam_from_world: Tensor, intrinsics: Tensor, size: tuple[int, int], antialiased: bool
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What `ops.project` returns, and colours [N, 3], in one pass; the camera gets no gradient."""
    stored = (splats.means, splats.quats, splats.log_scales, splats.opacity_logits, splats.sh)
    *screen, colors = ops.project_splats(stored, cam_from_world, intrinsics, size, antialiased=antialiased)
    return (screen[0], screen[1], screen[2], screen[3], screen[4]), colors
