"""A trained object as a scene that other programs open: a transforms.json of views around it, their pictures, points.

Nerfstudio's viewer, `ns-render` and `ns-export` want a scene of photographs; a made object has none, so its own renders
stand in.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scene_distill.core.conventions import SH_C0
from scene_distill.data.scene import Frame, Scene
from scene_distill.data.transforms import write_transforms
from scene_distill.export.pictures import write_png
from scene_distill.methods.text_to_3d.backgrounds import plain
from scene_distill.methods.text_to_3d.representation import TrainedObject
from scene_distill.methods.text_to_3d.views import orbit_views
from scene_distill.representations.splats import Splats

VIEWS, SIZE_PX, ELEVATION_DEG = 16, 256, 15.0
MOST_POINTS = 10_000


def write_orbit(trained: TrainedObject, folder: Path) -> Path:
    """Write pictures, points and transforms.json of an object into ``folder``; the path of the latter.

    Every fourth picture is a held-out one.
    """
    cameras = orbit_views(VIEWS, SIZE_PX, ELEVATION_DEG).cameras
    frames = []
    for number, camera in enumerate(cameras):
        path = folder / "images" / f"{number:03d}.png"
        write_png(trained.render([camera], plain()).image[0], path)
        frames.append(Frame(path.name, path, camera, np.zeros(0, np.int64)))
    points, colors = _points(trained)
    test = frozenset(frame.name for frame in frames[::4])
    scene = Scene(folder, tuple(frames), points, colors, test, np.array([0.0, 0.0, 1.0]))
    path = folder / "transforms.json"
    write_transforms(scene, path)
    return path


def _points(trained: TrainedObject) -> tuple[np.ndarray, np.ndarray]:
    """Up to `MOST_POINTS` positions [P, 3] and colours [P, 3] uint8 of Gaussians or of a mesh's vertices."""
    geometry = trained.geometry()
    if isinstance(geometry, Splats):
        points = geometry.means.detach().cpu().double().numpy()
        rgb = (0.5 + SH_C0 * geometry.sh[:, 0].detach().cpu()).clamp(0, 1)
        colors = (255 * rgb).round().to(torch.uint8).numpy()
    else:
        points = geometry.vertices
        shades = np.full((len(points), 3), 0.5) if geometry.colors is None else geometry.colors
        colors = np.rint(255 * shades).astype(np.uint8)
    step = max(-(-len(points) // MOST_POINTS), 1)
    return points[::step], colors[::step]
