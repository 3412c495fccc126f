"""Opening a finished run for eval, render and export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scene_distill.core.configs import RunConfig
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Scene
from scene_distill.methods import find_method
from scene_distill.training.evaluation import TrainedScene
from scene_distill.training.loop import load_for, use_native_threads
from scene_distill.training.run_folder import RunFolder


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run folder with its method's name, config, merged scene, and the data it was trained on."""

    folder: RunFolder
    method: str
    config: RunConfig
    trained: TrainedScene
    scene: Scene
    images: ImageCache


def open_run(path: Path, data: Path | None = None) -> OpenRun:
    """Load a run; ``data`` replaces the recorded data folder when it has moved."""
    from dataclasses import replace

    folder = RunFolder(path)
    entry = find_method(folder.method())
    config = folder.saved_config(entry.config, entry.name)
    trained = entry.load(folder.model)
    config = replace(config, data=data or config.data)
    use_native_threads(config.threads)
    scene, width = load_for(config)
    return OpenRun(folder, entry.name, config, trained, scene, ImageCache(scene.frames, width, 64_000_000))
