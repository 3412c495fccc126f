"""Splats that a browser draws itself: packed once as .spz, which `export/web/splats.js` unpacks and draws (WebGL 2)."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

from scene_distill.core.errors import UserError
from scene_distill.export.html import SPZ_VERSION
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.spz import write_spz
from scene_distill.viewer.mesh_scene import ViewedMesh
from scene_distill.viewer.scenes import ViewedScene, ViewedSplats

MOST_SPLATS = 1_000_000
"""Splats that are given to a browser: 65 MB unpacked at degree 3, and about as much again on its graphics card."""


def drawn_by_browsers(scene: ViewedScene | ViewedMesh, version: int) -> dict[str, Any]:
    """What a browser needs to draw a scene itself, or under 'missing' why it cannot."""
    missing = ""
    if isinstance(scene, ViewedMesh):
        missing = "the server draws meshes"
    elif not isinstance(scene, ViewedSplats):
        missing = "a decoder makes these Gaussians anew for every view; the server draws them"
    elif len(scene) > MOST_SPLATS:
        missing = f"{len(scene):,} splats are too many for a browser; {MOST_SPLATS:,} are the limit"
    elif len(scene) == 0:
        missing = "there is nothing to draw"
    if missing:
        return {"missing": missing}
    assert isinstance(scene, ViewedSplats)
    return {
        "missing": "", "splats": len(scene), "address": f"/splats/{version}", "origin": scene.origin.tolist(),
        "antialiased": scene.antialiased,
    }  # fmt: skip


class PackedSplats:
    """The splats of a scene as the bytes of an .spz, packed when they are asked for first and kept for that version."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version, self._bytes = -1, b""

    def of(self, scene: ViewedScene | ViewedMesh, version: int) -> bytes:
        """The bytes; raises `UserError` where a browser cannot draw the scene, or it cannot be packed."""
        missing = drawn_by_browsers(scene, version)["missing"]
        if missing or not isinstance(scene, ViewedSplats):
            raise UserError(missing)
        with self._lock:
            if self._version != version:
                with tempfile.TemporaryDirectory(prefix="scene-distill-") as folder:
                    path = Path(folder) / "scene.spz"
                    metadata = SplatMetadata(unit="unknown", antialiased=scene.antialiased)
                    write_spz(scene.splats, path, metadata, SPZ_VERSION)
                    self._bytes = path.read_bytes()
                self._version = version
            return self._bytes
