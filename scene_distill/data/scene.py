"""A scene as training sees it: posed frames, a sparse point cloud, and the frame they live in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scene_distill.core.cameras import Camera


@dataclass(frozen=True, eq=False)
class Frame:
    """One photograph: where its file is and the camera that took it (at the file's own resolution, undistorted).

    ``seen`` holds indices into the scene's points: the structure-from-motion points this photograph observes, [P_f]
    int64.
    """

    name: str
    path: Path
    camera: Camera
    seen: np.ndarray


@dataclass(frozen=True, eq=False)
class Scene:
    """Frames sorted by name and the sparse points they see.

    points [P, 3] float64 world; colors [P, 3] uint8. ``test`` names the held-out frames (never trained on).
    ``up`` is the world's up axis [3]; ``metadata`` carries what exporters write down: unit ("metre" or "unknown"),
    origin (lat, lon, alt) where known, source. ``skipped`` maps the names of frames that were left out to the reason.
    """

    root: Path
    frames: tuple[Frame, ...]
    points: np.ndarray
    colors: np.ndarray
    test: frozenset[str]
    up: np.ndarray
    metadata: dict[str, object] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def train_frames(self) -> tuple[Frame, ...]:
        """Frames to train on, in name order."""
        return tuple(frame for frame in self.frames if frame.name not in self.test)

    @property
    def test_frames(self) -> tuple[Frame, ...]:
        """Held-out frames, in name order."""
        return tuple(frame for frame in self.frames if frame.name in self.test)
