"""Rendered depth with colour from every camera: what surfaces are reconstructed from.

Depth of a pixel is by default the *median*: the depth of the Gaussian at which the transmittance falls to 1/2. The
mean over Gaussians lies between near and far things wherever a pixel shows both, and such points float in the air.
Gaussians fainter than ``min_opacity`` are left out: the haze that photometric training leaves before a surface would
otherwise use up half of the transmittance. Pixels whose coverage is below ``min_alpha`` have no depth.

Every view is drawn once: what does not fit into ``memory_bytes`` waits in a temporary file, and only what finds no room
there either is drawn again when it is asked for.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers.splat import DrawOptions, render
from scene_distill.representations.splats import Splats
from scene_distill.training.evaluation import BakeableScene, SplatScene, TrainedScene

DepthKind = Literal["median", "mean"]

Tell = Callable[[str, int, int], None]
"""(stage, done, total), for a progress bar; the total of a stage does not change."""

GaussiansFor = Callable[[Camera], Gaussians | Splats]
"""What a camera sees; everything in the frame in which the mesh is made."""


EMPTY_ALPHA = 0.02
"""Coverage below which a pixel is known to show nothing at all."""


@dataclass(frozen=True, eq=False)
class DepthView:
    """One view: depth_m [H, W] float32 along the optical axis, 0 where it is not known, infinite where the camera sees
    through everything; color [H, W, 3] float32 sRGB in [0, 1]."""

    camera: Camera
    depth_m: np.ndarray
    color: np.ndarray

    def points(self) -> np.ndarray:
        """World positions [H, W, 3] float64 of the pixels; those without a surface lie at the camera's centre."""
        camera = self.camera
        columns = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
        rows = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
        x, y = np.meshgrid(columns, rows)
        in_cam = np.stack([x, y, np.ones_like(x)], axis=-1) * self.surface_depth_m()[..., None].astype(np.float64)
        return in_cam @ camera.cam_from_world[:3, :3] + camera.center

    def surface_depth_m(self, most: float = math.inf) -> np.ndarray:
        """Depth [H, W] float32 of the pixels that show a surface no farther than ``most``, 0 elsewhere."""
        return np.where((self.depth_m <= most) & np.isfinite(self.depth_m), self.depth_m, np.float32(0.0))


class DepthViews(Protocol):
    """Views by index; may be walked through several times."""

    cameras: Sequence[Camera]

    def __getitem__(self, index: int) -> DepthView:
        """The view of ``cameras[index]``."""
        ...


@dataclass(frozen=True)
class DepthSettings:
    """kind of depth; scale: pixels drawn per pixel of the camera, per axis; min_opacity: Gaussians below it are not
    drawn; min_alpha: coverage below which a pixel has no depth; memory_bytes, disk_bytes: views kept in RAM and in a
    temporary file."""

    kind: DepthKind = "median"
    scale: float = 1.0
    min_opacity: float = 0.2
    min_alpha: float = 0.5
    memory_bytes: int = 400_000_000
    disk_bytes: int = 20_000_000_000


class Shelf:
    """Pairs of arrays in a temporary file without a name, which is gone with the process, whatever happens.

    What exceeds ``most_bytes``, or half of the free space, is not taken.
    """

    def __init__(self, most_bytes: int) -> None:
        self._room = most_bytes
        self._file: BinaryIO | None = None
        self._places: dict[int, tuple[int, tuple[int, int]]] = {}

    def put(self, index: int, depth: np.ndarray, color: np.ndarray) -> None:
        """Keep depth [H, W] float32 and color [H, W, 3] uint8 if there is room."""
        size = depth.nbytes + color.nbytes
        if size > min(self._room, shutil.disk_usage(tempfile.gettempdir()).free // 2):
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the views are
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(depth.tobytes() + color.tobytes())
            self._file.flush()
        except OSError:
            self._room = 0  # a full or read-only disk: what is not here is drawn again
            return
        self._room -= size
        self._places[index] = start, (depth.shape[0], depth.shape[1])

    def taken(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """What was put there, if it was."""
        if index not in self._places or self._file is None:
            return None
        start, (height, width) = self._places[index]
        self._file.seek(start)
        data = self._file.read(7 * height * width)
        depth = np.frombuffer(data, np.float32, height * width).reshape(height, width)
        return depth, np.frombuffer(data, np.uint8, offset=4 * height * width).reshape(height, width, 3)


class RenderedViews:
    """Views of Gaussians, drawn when they are asked for. Raises `UserError` without cameras."""

    def __init__(
        self, gaussians: GaussiansFor, cameras: Sequence[Camera], settings: DepthSettings = DepthSettings()
    ) -> None:
        if not cameras:
            raise UserError("there are no cameras to draw depth from; give a scene with posed photos")
        self.cameras: Sequence[Camera] = [
            camera.resized(max(1, round(camera.width * settings.scale))) for camera in cameras
        ]
        self._gaussians, self._settings = gaussians, settings
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = settings.memory_bytes
        self._shelf = Shelf(settings.disk_bytes)

    def __len__(self) -> int:
        return len(self.cameras)

    def __iter__(self) -> Iterator[DepthView]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> DepthView:
        """The view of ``cameras[index]``."""
        camera = self.cameras[index]
        kept = self._kept.get(index) or self._shelf.taken(index)
        if kept is None:
            view = self._draw(camera)
            kept = view.depth_m, np.rint(view.color * 255).astype(np.uint8)
            size = kept[0].nbytes + kept[1].nbytes
            if size <= self._room:
                self._room -= size
                self._kept[index] = kept
            else:
                self._shelf.put(index, *kept)
        depth, color = kept
        return DepthView(camera, depth, color.astype(np.float32) / 255)

    @torch.no_grad()
    def _draw(self, camera: Camera) -> DepthView:
        median = self._settings.kind == "median"
        solid = without_haze(self._gaussians(camera), self._settings.min_opacity)
        drawn = render(solid, camera, with_depth=not median, options=DrawOptions(median_depth=median))
        depth = drawn.median_depth if median else drawn.depth
        assert depth is not None
        depth = torch.where((drawn.alpha >= self._settings.min_alpha) & torch.isfinite(depth), depth, 0.0)
        depth = torch.where(drawn.alpha < EMPTY_ALPHA, torch.inf, depth)
        # Coverage below one lets the black background through; the surface itself has the colour without it.
        color = (drawn.image / drawn.alpha.clamp_min(1e-3)[..., None]).clamp(0.0, 1.0)
        return DepthView(camera, depth.cpu().float().numpy(), color.cpu().float().numpy())


def without_haze(gaussians: Gaussians | Splats, min_opacity: float) -> Gaussians | Splats:
    """The Gaussians whose opacity is at least ``min_opacity``."""
    if isinstance(gaussians, Splats):
        return gaussians.select(gaussians.opacity_logits.sigmoid() >= min_opacity)
    keep = gaussians.opacities >= min_opacity
    parts = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.features)
    return Gaussians(*(part[keep] for part in parts))


@runtime_checkable
class _SeesOnly(Protocol):
    """A trained scene that decodes only what a world camera sees, in the training frame."""

    def gaussians(self, camera: Camera) -> Gaussians:
        """The Gaussians that a world camera sees."""
        ...


def gaussians_of(trained: TrainedScene | BakeableScene) -> GaussiansFor:
    """What a camera *of the training frame* sees of a trained scene: its splats, or the Gaussians it decodes."""
    if isinstance(trained, SplatScene):
        splats = trained.splats()
        return lambda camera: splats
    if isinstance(trained, _SeesOnly):
        seen = trained
        return lambda camera: seen.gaussians(camera.moved(-trained.origin))
    raise UserError(f"a {type(trained).__name__} has no Gaussians to draw depth of; export it as splats first")
