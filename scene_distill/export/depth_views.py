"""Rendered depth with colour from every camera: what surfaces are reconstructed from.

Depth of a pixel is by default the *median*: the depth of the Gaussian at which the transmittance falls to 1/2. The
mean over Gaussians lies between near and far things wherever a pixel shows both, and such points float in the air.
Gaussians fainter than ``min_opacity`` are left out: the haze that photometric training leaves before a surface would
otherwise use up half of the transmittance. Pixels whose coverage is below ``min_alpha`` have no depth.

Large scenes: what fits into ``memory_bytes`` is drawn once and kept, the rest is drawn again when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.renderers.splat import DrawOptions, render
from scene_distill.representations.splats import Splats
from scene_distill.training.evaluation import BakeableScene, SplatScene, TrainedScene

DepthKind = Literal["median", "mean"]

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
    drawn; min_alpha: coverage below which a pixel has no depth; memory_bytes: views kept instead of being drawn
    again."""

    kind: DepthKind = "median"
    scale: float = 1.0
    min_opacity: float = 0.2
    min_alpha: float = 0.5
    memory_bytes: int = 400_000_000


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

    def __len__(self) -> int:
        return len(self.cameras)

    def __iter__(self) -> Iterator[DepthView]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> DepthView:
        """The view of ``cameras[index]``."""
        camera = self.cameras[index]
        if index not in self._kept:
            view = self._draw(camera)
            size = view.depth_m.nbytes + view.color.nbytes // 4
            if size > self._room:
                return view
            self._room -= size
            self._kept[index] = view.depth_m, np.rint(view.color * 255).astype(np.uint8)
        depth, color = self._kept[index]
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
