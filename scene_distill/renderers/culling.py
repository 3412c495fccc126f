"""Which Gaussians a camera draws, before anything is computed for them that needs gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.renderers import ops


@torch.no_grad()
def drawn_rows(means: Tensor, quats: Tensor, log_scales: Tensor, opacity_logits: Tensor, camera: Camera) -> Tensor:
    """Indices [V] int64, ascending, of the Gaussians that `ops.project` does not cull for a camera.

    means [N, 3], quats [N, 4], log_scales [N, 3], opacity_logits [N], as `representations.splats` stores them.
    """
    extents = ops.project(
        means, quats, log_scales.exp(), opacity_logits.sigmoid(), camera.pose(means.device),
        camera.intrinsics(means.device), camera.width, camera.height,
    )[4]  # fmt: skip
    return (extents[:, 0] > 0).nonzero().squeeze(1)
