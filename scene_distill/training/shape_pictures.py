"""Pictures of objects of the small world: Gaussians from four sides."""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.data.shape_world import view_camera
from scene_distill.renderers.splat import render
from scene_distill.representations.splats import Splats

AZIMUTHS, ELEVATION = (30.0, 120.0, 210.0, 300.0), 20.0
GREY = (0.93, 0.93, 0.93)


@torch.no_grad()
def splat_views(splats: Splats, size: int, azimuths: tuple[float, ...] = AZIMUTHS) -> Tensor:
    """[V, 3, size, size] in [0, 1] of Gaussians in the cube's frame, over a light grey."""
    views = []
    for azimuth in azimuths:
        camera = view_camera(size, azimuth, ELEVATION)
        drawn = render(splats.gaussians(camera), camera, background=torch.tensor(GREY))
        views.append(drawn.image.clamp(0, 1).permute(2, 0, 1))
    return torch.stack(views)
