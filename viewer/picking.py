"""What is behind a pixel: the Gaussians that made it, or the face of a mesh, and the point in the world."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from scene_distill.core.cameras import Camera
from scene_distill.renderers.splat import DrawOptions, contributions, render
from scene_distill.viewer.mesh_scene import ViewedMesh
from scene_distill.viewer.scenes import Selection, ViewedScene

MOST = 12
"""Gaussians that are listed, largest share first."""


@dataclass(frozen=True)
class Share:
    """A Gaussian's part in a pixel: blending weight (the weights of all and the rest of the light sum to 1), row of its
    primitive and slot in it, block (None where unknown), opacity, colour in [0, 1], depth, largest standard deviation
    and position (world), lengths in the scene's unit. ``born``: the step of its block after which it was made (0: with
    the first points), ``age``: the block's steps since; ``kind``: name of its class; None where these are not known."""

    weight: float
    row: int
    slot: int
    block: int | None
    opacity: float
    color: tuple[float, ...]
    depth: float
    size: float
    position: tuple[float, ...]
    born: int | None = None
    age: int | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Picked:
    """A pixel (column x, row y): its coverage, depth along the view axis and world point (None where nothing is), the
    number of Gaussians drawn in it, and the strongest; of a mesh the face and its normal (world) instead."""

    x: int
    y: int
    alpha: float
    depth: float | None
    point: tuple[float, ...] | None
    count: int
    shares: tuple[Share, ...]
    face: int | None = None
    normal: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def pick(
    scene: ViewedScene | ViewedMesh, camera: Camera, selection: Selection, x: int, y: int,
    steps: Mapping[int, int] | None = None,
) -> Picked:  # fmt: skip
    """What made the pixel in column ``x`` and row ``y`` of a world camera's picture; ``steps``: how many each block
    has made, for ages.

    The depth is that of the Gaussian which takes the transmittance to one half, as surfaces in front should count;
    where coverage stays below that, the expected depth.
    """
    if isinstance(scene, ViewedMesh):
        return _picked_face(scene, camera, selection, x, y)
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
        row, block = int(drawn.rows[index]), None if drawn.blocks is None else int(drawn.blocks[index])
        shares.append(Share(
            float(weights[index]), row, index % max(slots, 1), block, float(gaussians.opacities[index]),
            tuple(gaussians.features[index, :3].clamp(0, 1).tolist()), float((pose[:3, :3] @ mean + pose[:3, 3])[2]),
            float(gaussians.scales[index].max()), tuple((mean.double().cpu().numpy() + scene.origin).tolist()),
            *_birth(scene, row, block, steps or {}), _kind(scene, row),
        ))  # fmt: skip
    return Picked(x, y, alpha, depth, point, int((weights > 0).sum()), tuple(shares))


def _birth(scene: ViewedScene, row: int, block: int | None, steps: Mapping[int, int]) -> tuple[int | None, int | None]:
    if scene.born is None or int(scene.born[row]) < 0:
        return None, None
    born, made = int(scene.born[row]), steps.get(0 if block is None else block)
    return born, None if made is None else max(made - born, 0)


def _kind(scene: ViewedScene, row: int) -> str | None:
    semantics = scene.semantics
    if semantics is None or semantics.labels is None:
        return None
    label = int(semantics.labels[row])
    return semantics.names[label] if label >= 0 else "no class"


def _picked_face(mesh: ViewedMesh, camera: Camera, selection: Selection, x: int, y: int) -> Picked:
    hits = mesh.hits(camera, selection, np.array([[x + 0.5, y + 0.5]], np.float32))
    if not len(hits.rows):
        return Picked(x, y, 0.0, None, None, 0, ())
    depth, face = float(hits.depth[0]), int(hits.face[0])
    normal = tuple(mesh.mesh.select_faces(hits.face).face_normals()[0].tolist())
    return Picked(x, y, 1.0, depth, _world_point(camera, x, y, depth), 1, (), face, normal)


def _world_point(camera: Camera, x: int, y: int, depth: float) -> tuple[float, ...]:
    ray = [(x + 0.5 - camera.cx) / camera.fx * depth, (y + 0.5 - camera.cy) / camera.fy * depth, depth, 1.0]
    return tuple((camera.world_from_cam @ ray)[:3].tolist())
