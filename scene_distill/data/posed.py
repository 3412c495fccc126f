"""What every reader hands to the loader: photos with a lens and a pose, not yet checked against their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scene_distill.data.lens import Lens

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) while something long runs."""


@dataclass(frozen=True, eq=False)
class PosedPhoto:
    """One photo a reader found.

    ``lens`` and ``cam_from_world`` [4, 4] are None when the reader could not make sense of them. ``shrink`` is how many
    times smaller than the lens the file is meant to be (``images_4`` holds photos at a quarter). ``seen`` [P_f] int64
    indexes the set's points; None when the format does not say what a photo sees.
    """

    name: str
    path: Path
    lens: Lens | None
    cam_from_world: np.ndarray | None
    seen: np.ndarray | None = None
    shrink: int = 1


@dataclass(frozen=True, eq=False)
class PosedSet:
    """Photos and points as a reader found them: points [P, 3] float64, colors [P, 3] uint8.

    ``test`` names the held-out photos when the format splits; ``without_pose`` photos that lie there and have no pose.
    """

    photos: list[PosedPhoto]
    points: np.ndarray
    colors: np.ndarray
    test: frozenset[str] | None = None
    metadata: dict[str, object] = field(default_factory=dict)
    without_pose: list[str] = field(default_factory=list)
