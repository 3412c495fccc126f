"""Opening a finished run for eval, render, export and compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scene_distill.data.images import ImageCache
from scene_distill.methods import find_method
from scene_distill.training.loop import load_for, use_native_threads
from scene_distill.training.report import Measured
from scene_distill.training.run_folder import RunFolder

OpenRun = Measured
"""A run folder with its method's name, config, merged scene, and the data it was trained on."""


def open_run(path: Path, data: Path | None = None) -> OpenRun:
    """Load a run; ``data`` replaces the recorded data folder when it has moved."""
    folder = RunFolder(path)
    entry = find_method(folder.method())
    config = folder.saved_config(entry.config, entry.name)
    trained = entry.load(folder.model)
    config = replace(config, data=data or config.data)
    use_native_threads(config.threads)
    scene, width = load_for(config)
    return OpenRun(entry.name, config, folder, trained, scene, ImageCache(scene.frames, width, 64_000_000))
