"""What a person and other programs want of a trained object: a turntable, a splat or mesh file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scene_distill.export.formats import write_splats
from scene_distill.export.mesh_glb import write_mesh_glb
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.pictures import write_png
from scene_distill.methods.text_to_3d.backgrounds import plain
from scene_distill.methods.text_to_3d.generate import MadeObject
from scene_distill.methods.text_to_3d.representation import TrainedObject
from scene_distill.methods.text_to_3d.views import orbit_views
from scene_distill.representations.splats import Splats

STRIP_VIEWS, STRIP_PX = 8, 192
"""Pictures of a turntable strip, and their side."""

UP = (0.0, 0.0, 1.0)


def write_object(made: MadeObject, note: str = "") -> list[Path]:
    """Write turntable.png, and object.ply and .glb or, of a mesh, object.glb, into the object's folder; returns what
    was written. ``note`` goes into the files as their source."""
    folder, trained = made.folder, made.trained
    written = [folder / "turntable.png"]
    write_png(turntable_strip(trained), written[0])
    metadata = SplatMetadata(up=UP, source=note or made.prompt)
    geometry = trained.geometry()
    if isinstance(geometry, Splats):
        for extension in (".ply", ".glb"):
            written.append(folder / f"object{extension}")
            write_splats(geometry, written[-1], metadata)
    else:
        written.append(folder / "object.glb")
        write_mesh_glb(geometry, written[-1], metadata)
    return written


def turntable_strip(trained: TrainedObject, views: int = STRIP_VIEWS, size: int = STRIP_PX,
                    elevation: float = 15.0) -> Tensor:  # fmt: skip
    """Views from all sides, the front first, beside each other: [size, views size, 3]."""
    cameras = orbit_views(views, size, elevation).cameras
    return torch.cat(list(trained.render(cameras, plain()).image), dim=1)
