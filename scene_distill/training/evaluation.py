"""Held-out evaluation: raw metrics first, colour-corrected beside them, the seams between blocks, and the initial
points as a floor."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.gaussians import Gaussians
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Frame, Scene
from scene_distill.renderers.splat import Rendering, render
from scene_distill.representations.splats import Splats
from scene_distill.training.metrics import measure, psnr, summarise
from scene_distill.training.seams import SeamMeter

if TYPE_CHECKING:
    from scene_distill.training.lpips import Lpips


class TrainedScene(Protocol):
    """A trained model that can be looked at and written down. Cameras and positions are in the world frame."""

    metadata: dict[str, Any]
    origin: np.ndarray

    def __len__(self) -> int:
        """Number of primitives (anchors, splats)."""
        ...

    def render(self, camera: Camera, *, with_depth: bool = False) -> Rendering:
        """The picture of a camera on black."""
        ...

    def save(self, path: Path) -> None:
        """Write everything to one .safetensors file."""
        ...


class BakeableScene(TrainedScene, Protocol):
    """A trained scene whose colours depend on the view through a network and can be baked to splats.

    Here everything is in the training frame, which is the world moved by ``-origin``.
    """

    @property
    def anchor_positions(self) -> Tensor:
        """Positions [A, 3] of the anchors."""
        ...

    def slots(self, camera_center: np.ndarray, rows: Tensor) -> Gaussians:
        """All slots of the anchors ``rows`` as seen from a position [3], anchor by anchor."""
        ...


@runtime_checkable
class SplatScene(Protocol):
    """A trained scene that already is splats: what it exports is what it renders, nothing is baked."""

    def splats(self) -> Splats:
        """Its splats in the training frame, which is the world moved by ``-origin``."""
        ...


@runtime_checkable
class BlockwiseScene(Protocol):
    """A trained scene that knows which block each of its primitives came from."""

    def render_tinted(self, camera: Camera) -> Rendering:
        """The picture of a world camera with the primitives of every block in a tint of their own."""
        ...


Save = Callable[[Frame, Rendering, Tensor], None]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_views` finds: results (means and deviations over views), per_view (figures by photo name), and the
    SHA-256 of the photos' names, sizes and pixels as they were compared."""

    results: dict[str, float]
    per_view: dict[str, dict[str, float]]
    photos_sha256: str


def evaluate(scene: TrainedScene, frames: Sequence[Frame], images: ImageCache,
             save: Save = lambda frame, rendering, photo: None) -> dict[str, float]:  # fmt: skip
    """The results of `evaluate_views`."""
    return evaluate_views(scene, frames, images, save).results


@torch.no_grad()
def evaluate_views(
    scene: TrainedScene, frames: Sequence[Frame], images: ImageCache,
    save: Save = lambda frame, rendering, photo: None, lpips: Lpips | None = None,
) -> Evaluation:  # fmt: skip
    """Means and deviations over frames of PSNR and SSIM, raw and colour-corrected, with frames and rays per second; for
    a scene cut into blocks also `seams.SeamMeter.result`; with ``lpips`` also LPIPS.

    ``save`` is called with every frame, its rendering (with depth) and its photo [H, W, 3] in [0, 1].
    """
    per_view: dict[str, dict[str, float]] = {}
    rays, seconds, digest = 0, 0.0, hashlib.sha256()
    seams = SeamMeter.of(scene.metadata)
    for frame in frames:
        pixels = images.get(frame)
        digest.update(f"{frame.name}\0{tuple(pixels.shape)}\0".encode() + pixels.cpu().numpy().tobytes())
        photo = pixels.to(torch.float32) / 255.0
        started = time.perf_counter()
        rendering = scene.render(images.camera(frame), with_depth=True)
        photo = photo.to(rendering.image.device)
        seconds += time.perf_counter() - started
        rays += photo.shape[0] * photo.shape[1]
        per_view[frame.name] = measure(rendering.image, photo, lpips)
        if seams is not None:
            seams.add(images.camera(frame), rendering, photo)
        save(frame, rendering, photo)
    figures = summarise(list(per_view.values())) | {"num_rays_per_sec": rays / seconds, "fps": len(frames) / seconds}
    figures |= {} if seams is None else seams.result()
    return Evaluation(figures, per_view, digest.hexdigest())


@torch.no_grad()
def initial_points_psnr(scene: Scene, frames: Sequence[Frame], images: ImageCache) -> float:
    """Mean PSNR of the scene's sparse points drawn as splats: what there is before any training."""
    origin = np.median(scene.points, axis=0)
    splats = Splats.from_points(scene.points - origin, scene.colors)
    values = []
    for frame in frames:
        camera = images.camera(frame).moved(origin)
        image = render(splats, camera).image.clamp(0, 1)
        values.append(psnr(image, images.get(frame).to(torch.float32) / 255.0))
    return float(np.mean(values))


def summary(report: dict[str, Any]) -> str:
    """The figures of a metrics.json in one line, raw first."""
    r = report["results"]
    kind = "held-out" if report["views_are_held_out"] else "training"
    return (
        f"{report['views']} {kind} views: PSNR {r['psnr']:.2f} dB raw ({r['psnr_corrected']:.2f} colour-corrected), "
        f"SSIM {r['ssim']:.3f} raw ({r['ssim_corrected']:.3f}); "
        + (f"LPIPS ({report['lpips']['network']}) {r['lpips']:.3f} raw, " if "lpips" in r else "")
        + (f"{r['lpips_corrected']:.3f} corrected; " if "lpips" in r else "")
        + f"initial points {report['initial_points_psnr']:.2f} dB"
        + (f"; seam ratio {r['seam_ratio']:.3f}" if "seam_ratio" in r else "")
    )
