"""What a page is told of a scene: its bounds, layers, blocks and photos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from scene_distill.data.scene import Frame
from scene_distill.viewer.browser_splats import drawn_by_browsers
from scene_distill.viewer.colormaps import block_colors
from scene_distill.viewer.layers import layers_of
from scene_distill.viewer.mesh_scene import ViewedMesh
from scene_distill.viewer.scenes import ViewedScene

BOX_PERCENT = (1.0, 99.0)
"""Percentiles of the positions that a block's box and the scene's bounds hold: floaters far away do not count."""

UNCERTAIN_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class Looking:
    """One state of the scene: what is drawn, and the same with the teacher's decoders where there is a teacher; its up
    axis and unit; the steps that each block has made (empty where nothing trained); why the scene does not say what its
    primitives are, where it could have (``unsaid``)."""

    scene: ViewedScene | ViewedMesh
    teacher: ViewedScene | None
    up: np.ndarray
    unit: str
    steps: Mapping[int, int] = field(default_factory=dict)
    unsaid: str = ""


class Described(Protocol):
    """What is needed of a session to describe it."""

    title: str
    version: int
    frames: tuple[Frame, ...]

    @property
    def looking(self) -> Looking:
        """What is drawn now."""
        ...


def described(session: Described, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The 'hello' message of a session; ``facts`` are shown as they are."""
    looking = session.looking
    scene = looking.scene
    positions = scene.positions.detach().float().cpu()
    low, high = _box(positions, scene.origin)
    return {
        "title": session.title, "kind": kind, "version": session.version, "facts": facts, "unit": looking.unit,
        "up": looking.up.tolist(), "bounds": [low, high], "primitive": scene.primitive, "primitives": len(scene),
        "layers": layers_of(scene, looking.teacher, bool(session.frames), looking.unsaid),
        "blocks": _blocks(scene, positions), "browser": drawn_by_browsers(scene, session.version),
        "frames": [_frame(frame, session) for frame in session.frames], "tunables": {},
    }  # fmt: skip


def _box(positions: torch.Tensor, origin: np.ndarray) -> tuple[list[float], list[float]]:
    if len(positions) == 0:
        return [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]
    sample = positions[:: -(-len(positions) // 200_000)].double().numpy()
    low, high = np.percentile(sample, BOX_PERCENT, axis=0) + origin
    return np.round(low, 4).tolist(), np.round(high, 4).tolist()


def _blocks(scene: ViewedScene | ViewedMesh, positions: torch.Tensor) -> list[dict[str, Any]]:
    if isinstance(scene, ViewedMesh) or scene.blocks is None or len(scene) == 0:
        return []
    owners = scene.blocks.cpu()
    colors = (block_colors(int(owners.max()) + 1) * 255).round().int().tolist()
    found = []
    for block, count in zip(*(part.tolist() for part in torch.unique(owners, return_counts=True)), strict=True):
        low, high = _box(positions[owners == block], scene.origin)
        found.append({"id": block, "count": count, "color": colors[block], "low": low, "high": high})
    return found


def _frame(frame: Frame, session: Described) -> dict[str, Any]:
    camera = frame.camera
    return {
        "name": frame.name, "width": camera.width, "height": camera.height, "fx": camera.fx, "fy": camera.fy,
        "cx": camera.cx, "cy": camera.cy, "pose": np.round(camera.cam_from_world, 6).ravel().tolist(),
        "test": frame.name in getattr(getattr(session, "_scene", None), "test", ()),
    }  # fmt: skip
