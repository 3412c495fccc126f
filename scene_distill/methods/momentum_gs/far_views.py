"""Photographs as seen from farther away, for the anchors that stand in for others at a distance.

Photos of a survey are all taken from about the same height, so coarse anchors would never be drawn in training. Every
`EVERY`-th step takes its photo at 1/2, 1/4, ... of its size instead, the mean over pixels: what a camera 2, 4, ...
times as far away sees of the same ground. There the finer levels have faded.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.representations.levels import LevelOfDetail
from scene_distill.training.scene_blocks import View

EVERY = 4
"""One step in so many is from afar."""

LEAST_SIDE = 16
"""Pixels that the smaller side of a picture keeps at least."""


def detail_of(config: MomentumGSConfig, spacing: float) -> LevelOfDetail | None:
    """The levels that a run trains, ``spacing`` the distance of neighbouring points; None for a run without."""
    if config.level_of_detail == 0:
        return None
    if config.level_of_detail < 0:
        raise UserError(f"--level-of-detail is {config.level_of_detail:g}; give a number of pixels, or 0 for none")
    return LevelOfDetail(config.level_of_detail, spacing * config.points_per_voxel)


def octaves_of_step(step: int, camera: Camera) -> int:
    """How many times the picture of a step is halved: 0, and every fourth step 1, 2, ... in turn."""
    most = 0
    while min(camera.width, camera.height) >> (most + 1) >= LEAST_SIDE:
        most += 1
    return 0 if (step + 1) % EVERY or most == 0 else 1 + (step // EVERY) % most


def seen_from_afar(view: View, octaves: int) -> View:
    """The view halved ``octaves`` times; rows and columns that do not fill a pixel are cut off at the far edges."""
    if octaves == 0:
        return view
    times, camera = 2**octaves, view.camera
    width, height = camera.width // times, camera.height // times

    def photo() -> Tensor:
        kept = view.photo()[: height * times, : width * times]
        return torch.nn.functional.avg_pool2d(kept.permute(2, 0, 1), times).permute(1, 2, 0).contiguous()

    small = replace(
        camera, width=width, height=height,
        fx=camera.fx / times, fy=camera.fy / times, cx=camera.cx / times, cy=camera.cy / times,
    )  # fmt: skip
    return replace(view, camera=small, photo=photo)
