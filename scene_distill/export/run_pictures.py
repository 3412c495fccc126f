"""The pictures that train, eval and render leave in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scene_distill.training.evaluation import Save

SHEET_ROWS = 6
"""Views on the side-by-side sheet."""


def picture_writer(folder: Path) -> Save:
    """A function that writes NAME.png for every view and keeps side_by_side.png (the first views) up to date."""
    from torch import Tensor

    from scene_distill.data.scene import Frame
    from scene_distill.export.pictures import Panel, comparison, write_png, write_sheet
    from scene_distill.renderers.splat import Rendering

    folder.mkdir(parents=True, exist_ok=True)
    rows: list[list[Panel]] = []

    def save(frame: Frame, rendering: Rendering, photo: Tensor) -> None:
        write_png(rendering.image, folder / f"{Path(frame.name).stem}.png")
        if len(rows) < SHEET_ROWS:
            rows.append(comparison(photo, rendering.image, rendering.depth, name=Path(frame.name).stem))
            write_sheet(rows, folder / "side_by_side.png")

    return save
