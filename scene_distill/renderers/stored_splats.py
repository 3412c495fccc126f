"""From splats as they are stored to what a camera draws: which of them, and their activated values."""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers import ops
from scene_distill.representations.splats import Splats


@torch.no_grad()
def drawn_rows(means: Tensor, quats: Tensor, log_scales: Tensor, opacity_logits: Tensor, camera: Camera) -> Tensor:
    """Indices [V] int64, ascending, of the Gaussians that `ops.project` does not cull for a camera.

    means [N, 3], quats [N, 4], log_scales [N, 3], opacity_logits [N], as `Splats` stores them.
    """
    extents = ops.project(
        means, quats, log_scales.exp(), opacity_logits.sigmoid(), camera.pose(means.device),
        camera.intrinsics(means.device), camera.width, camera.height,
    )[4]  # fmt: skip
    return (extents[:, 0] > 0).nonzero().squeeze(1)


def gaussians_for(splats: Splats, camera: Camera) -> Gaussians:
    """`Splats.gaussians` by the native kernel: the same values, differentiable, in a fraction of the time."""
    center = torch.as_tensor(camera.center, dtype=splats.means.dtype, device=splats.means.device)
    return Gaussians(
        means=splats.means,
        quats=splats.quats,
        scales=splats.log_scales.exp(),
        opacities=splats.opacity_logits.sigmoid(),
        features=ops.spherical_harmonics(splats.means, splats.sh, center),
    )
