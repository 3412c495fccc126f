"""The report of a run, which is its metrics.json: nerfstudio's keys, every view's figures, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scene_distill.core.configs import RunConfig
from scene_distill.core.files import write_json
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Scene
from scene_distill.training.evaluation import Save, TrainedScene, evaluate_views, initial_points_psnr
from scene_distill.training.provenance import provenance
from scene_distill.training.run_folder import RunFolder

if TYPE_CHECKING:
    from scene_distill.training.lpips import Lpips


@dataclass(frozen=True, eq=False)
class Measured:
    """A run that is measured: its method's name, settings and folder, its merged scene, and the data."""

    method: str
    config: RunConfig
    folder: RunFolder
    trained: TrainedScene
    scene: Scene
    images: ImageCache


def report_run(run: Measured, save: Save, extra: dict[str, Any], lpips: Lpips | None = None) -> dict[str, Any]:
    """Metrics of a run on the held-out views (on all views when none are held out), written to metrics.json.

    Beside nerfstudio's keys: ``per_view`` (figures by photo name), ``held_out`` (how many views, and the SHA-256 of the
    photos' names and pixels as they were measured), ``provenance`` (of these figures), and ``extra``, in which a
    training puts ``trained`` (its code, machine and time). ``results`` has lpips only where ``lpips`` is given, with
    the network named in ``lpips``.
    """
    scene, images = run.scene, run.images
    frames = scene.test_frames or scene.frames
    found = evaluate_views(run.trained, frames, images, save, lpips)
    report = {
        "experiment_name": run.folder.path.name,
        "method_name": run.method,
        "checkpoint": str(run.folder.model.name),
        "results": found.results,
        "views": len(frames),
        "views_are_held_out": bool(scene.test_frames),
        "image_width": images.camera(frames[0]).width,
        "initial_points_psnr": initial_points_psnr(scene, frames, images),
        "primitives": len(run.trained),
    } | extra
    report["per_view"] = found.per_view
    report["held_out"] = {"views": len(frames), "photos_sha256": found.photos_sha256}
    if lpips is not None:
        report["lpips"] = lpips.provenance()
    report["provenance"] = provenance(run.method, run.config, scene)
    write_json(run.folder.metrics, report)
    return report
