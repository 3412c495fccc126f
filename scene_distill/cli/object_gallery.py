"""The last thing a run of text to 3D writes: gallery.html, a turntable of every object with what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from scene_distill.export.report_gallery import GalleryObject, write_gallery
from scene_distill.methods.text_to_3d.backgrounds import plain
from scene_distill.methods.text_to_3d.generate import MadeObject
from scene_distill.methods.text_to_3d.views import orbit_views
from scene_distill.representations.splats import Splats

if TYPE_CHECKING:
    from scene_distill.methods.text_to_3d.config import TextTo3DConfig
    from scene_distill.methods.text_to_3d.representation import TrainedObject

VIEWS, PX = 36, 160
"""Pictures of a turntable, and their side: about 100 kB an object."""

SETTINGS = ("prior", "iterations", "views", "image_size", "seed", "view_words")
"""Fields of the config that the page names."""


def write_run_gallery(made: Sequence[MadeObject], config: TextTo3DConfig, method: str, folder: Path) -> Path:
    """Write ``folder``/gallery.html; returns its path. An object that is not finite is named, not drawn."""
    settings = {"method": method} | {name.replace("_", " "): str(getattr(config, name)) for name in SETTINGS}
    path = folder / "gallery.html"
    title = made[0].prompt if len(made) == 1 else f"{len(made)} objects by {method}"
    write_gallery(path, title, [_shown(each) for each in made], settings)
    return path


def _shown(made: MadeObject) -> GalleryObject:
    if not made.finite:
        empty = plain().expand(1, PX, PX, 3)
        return GalleryObject(made.prompt, empty, {}, "diverged: some numbers are not finite")
    geometry = made.trained.geometry()
    size = {"Gaussians": len(geometry)} if isinstance(geometry, Splats) else {"triangles": len(geometry.faces)}
    figures = {name: f"{count:,}" for name, count in {**size, "evaluations": made.evaluations}.items()}
    return GalleryObject(made.prompt, turn_of(made.trained), figures)


def turn_of(trained: TrainedObject, views: int = VIEWS, size: int = PX) -> Tensor:
    """Pictures of an object from all sides, the front first: [V, H, W, 3]."""
    return trained.render(orbit_views(views, size).cameras, plain()).image.cpu()
