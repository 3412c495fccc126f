"""What is behind a pixel: the Gaussians that made it, and the point in the world."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from scene_distill.core.cameras import Camera
from scene_distill.renderers.splat import DrawOptions, contributions, render
from scene_distill.viewer.scenes import Selection, ViewedScene

MOST = 12
"""Gaussians that are listed, largest share first."""


@dataclass(frozen=True)
class Share:
    """A Gaussian's part in a pixel: blending weight (the weights of all and the rest of the light sum to 1), row of its
    primitive and slot in it, block (None where unknown), opacity, colour in [0, 1], depth, largest standard deviation
    and position (world), lengths in the scene's unit."""

    weight: float
    row: int
    slot: int
    block: int | None
    opacity: float
    color: tuple[float, ...]
    depth: float
    size: float
    position: tuple[float, ...]


@dataclass(frozen=True)
class Picked:
    """A pixel (column x, row y): its coverage, depth along the view axis and world point (None where nothing is), the
    number of Gaussians drawn in it, and the strongest."""

    x: int
    y: int
    alpha: float
    depth: float | None
    point: tuple[float, ...] | None
    count: int
    shares: tuple[Share, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def pick(scene: ViewedScene, camera: Camera, selection: Selection, x: int, y: int) -> Picked:
    """What made the pixel in column ``x`` and row ``y`` of a world camera's picture.

    The depth is that of the Gaussian which takes the transmittance to one half, as surfaces in front should count;
    where coverage stays below that, the expected depth.
    """
    drawn = scene.drawn(camera, selection)
    gaussians, local = drawn.gaussians, drawn.camera
    mask = torch.zeros(camera.height, camera.width, dtype=torch.bool, device=gaussians.means.device)
    mask[y, x] = True
    compensated = drawn.antialiased
    weights = contributions(gaussians, local, antialiased=compensated, options=DrawOptions(mask=mask)).weight_sum
    options = DrawOptions(mask=mask, median_depth=True)
    rendering = render(gaussians, local, with_depth=True, antialiased=compensated, options=options)
    assert rendering.depth is not None and rendering.median_depth is not None
    alpha, median = float(rendering.alpha[y, x]), float(rendering.median_depth[y, x])
    depth = median if median > 0 else float(rendering.depth[y, x]) if alpha > 0.02 else None
    point = None if depth is None else _world_point(camera, x, y, depth)
    slots = len(drawn.rows) and int((drawn.rows == drawn.rows[0]).sum())
    pose = local.pose(gaussians.means.device)
    shares = []
    for index in torch.topk(weights, min(MOST, len(weights))).indices.tolist():
        if weights[index] <= 0:
            break
        mean = gaussians.means[index]
        shares.append(Share(
            float(weights[index]), int(drawn.rows[index]), index % max(slots, 1),
            None if drawn.blocks is None else int(drawn.blocks[index]), float(gaussians.opacities[index]),
            tuple(gaussians.features[index, :3].clamp(0, 1).tolist()), float((pose[:3, :3] @ mean + pose[:3, 3])[2]),
            float(gaussians.scales[index].max()), tuple((mean.double().cpu().numpy() + scene.origin).tolist()),
        ))  # fmt: skip
    return Picked(x, y, alpha, depth, point, int((weights > 0).sum()), tuple(shares))


def _world_point(camera: Camera, x: int, y: int, depth: float) -> tuple[float, ...]:
    ray = [(x + 0.5 - camera.cx) / camera.fx * depth, (y + 0.5 - camera.cy) / camera.fy * depth, depth, 1.0]
    return tuple((camera.world_from_cam @ ray)[:3].tolist())
