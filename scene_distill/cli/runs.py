"""Opening a finished run for eval, render, export and compare."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scene_distill.core.configs import RunConfig, with_absolute_paths
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.methods import find_method
from scene_distill.training.loop import load_for, use_native_threads
from scene_distill.training.report import Measured
from scene_distill.training.run_folder import RunFolder

OpenRun = Measured
"""A run folder with its method's name, config, merged scene, and the data it was trained on."""


def open_run(path: Path, data: Path | None = None, others: Sequence[OpenRun] = ()) -> OpenRun:
    """Load a run; ``data`` replaces the recorded data folder when it has moved. What it sees is taken from one of
    ``others`` that sees the same. Raises `UserError` when ``path`` is no finished run or its data is not found."""
    folder = RunFolder(path)
    entry = find_method(folder.method())
    config = folder.saved_config(entry.config, entry.name)
    if data is None and config.data is not None and not config.data.exists():
        raise UserError(
            f"{config.data}, which {folder.config} names as the run's data, does not exist here; "
            "say with --data where it is"
        )
    trained = entry.load(folder.model)
    config = with_absolute_paths(replace(config, data=data or config.data))
    use_native_threads(config.threads)
    for other in others:
        if _sees(other.config) == _sees(config):
            return OpenRun(entry.name, config, folder, trained, other.scene, other.images)
    scene, width = load_for(config)
    return OpenRun(entry.name, config, folder, trained, scene, ImageCache(scene.frames, width, 64_000_000))


def data_flag(data: Path | None) -> str:
    """What a command that is proposed next must repeat of ``--data``, with a space before it."""
    return "" if data is None else f" --data {shlex.quote(str(data))}"


def _sees(config: RunConfig) -> tuple[object, ...]:
    """The settings that decide which photos a run sees, and how."""
    return config.data, config.test_every, config.test_list, config.image_width
