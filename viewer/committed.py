"""A run's committed checkpoint, read and never written: the merged scene of a run in training, and its teacher.

Training commits whole rounds (`blocks.checkpoint`); the files of the last two commits are on disk at any moment, so a
reader that finds a file gone reads the newer manifest and tries again. Nothing here takes a lock or removes a file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scene_distill.blocks.checkpoint import MANIFEST, Checkpoint
from scene_distill.blocks.schedule import Round
from scene_distill.blocks.store import Entry, State, UnitStore, unpack
from scene_distill.core.configs import RunConfig
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Scene
from scene_distill.methods import MethodEntry
from scene_distill.nets.gaussian_decoder import GaussianDecoder, decoder_from_state
from scene_distill.training.evaluation import TrainedScene
from scene_distill.training.run_folder import RunFolder

TRIES = 3
"""Reads of a checkpoint that changes meanwhile."""


def store_of(folder: RunFolder) -> UnitStore:
    """The store whose files the manifest names."""
    return UnitStore(folder.checkpoint / "units")


def manifest_time(folder: RunFolder) -> int:
    """When the last commit was made, in nanoseconds; 0 when there is none."""
    try:
        return (folder.checkpoint / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0


@dataclass(frozen=True, eq=False)
class SavedUnit:
    """A unit's committed state on disk, or its first one (`blocks.runtime.SavedState`)."""

    store: UnitStore
    entry: Entry | None
    method: Any
    unit: int
    whole: bool

    def __call__(self) -> State:
        """All of it."""
        if self.entry is None:
            return self.method.first_state(self.unit)
        state = unpack(self.store.read_bytes(self.entry))
        return self.method.part(self.unit, state) if self.whole else state

    def some(self, *names: str) -> State:
        """Some of its tensors."""
        if self.entry is not None and not self.whole:
            return tensors_of(self.store.folder / self.entry.file, names)
        state = self()
        return {name: state[name] for name in names}


def tensors_of(path: Path, names: tuple[str, ...] | None = None, prefix: str = "") -> State:
    """Tensors of a state's file: those named, or those whose name starts with ``prefix``; `UserError` when it cannot be
    read."""
    try:
        with safe_open(path, framework="pt") as file:
            chosen = names or [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in chosen}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the saved state {path} ({error})") from error


class CommittedRun:
    """A method bound to its scene, which merges what a run in training has committed. ``rounds`` is the schedule as of
    the last merge, ``steps`` what each block had made by then; both are empty before."""

    def __init__(self, folder: RunFolder, entry: MethodEntry, config: RunConfig, scene: Scene, images: ImageCache):
        # How views found their blocks does not move a cell's border, and finding it by renders trains a model.
        if getattr(config, "assignment", "points") != "points":
            config = replace(config, assignment="points")  # type: ignore[call-arg]
        self._folder, self._entry, self._config = folder, entry, config
        self._scene, self._images = scene, images
        self.rounds: tuple[Round, ...] = ()
        self.steps: dict[int, int] = {}

    def merged(self) -> TrainedScene | None:
        """The merged scene of the last commit; None before the first one."""
        for left in reversed(range(TRIES)):
            try:
                return self._merged_now()
            except UserError:
                if not left:
                    raise
        return None

    def _merged_now(self) -> TrainedScene | None:
        manifest = self._folder.checkpoint / MANIFEST
        if not manifest.exists():
            return None
        found = Checkpoint.from_file(manifest)
        method: Any = self._entry.build(self._config, self._scene, self._images)
        for split in found.splits:
            method.split(split)
        self.rounds = tuple(method.rounds)
        done = [visit for round_ in self.rounds[: found.next_round] for visit in round_.visits]
        self.steps = {visit.unit: visit.first_step + visit.steps for visit in done}
        store = store_of(self._folder)
        if found.shared is not None:
            method.shared.restore(unpack(store.read_bytes(found.shared)))
        count = self._config.blocks + len(found.splits)
        with torch.no_grad():
            return method.merge({unit: _saved(unit, found, store, method) for unit in range(count)})


def _saved(unit: int, found: Checkpoint, store: UnitStore, method: Any) -> SavedUnit:
    entry = found.units.get(unit)
    parents = [split for split in found.splits if unit in (split.unit, split.added)]
    if entry is None and parents:
        entry = next((e for e in found.units.values() if e.file == parents[-1].file), None)
    whole = entry is not None and any(split.file == entry.file for split in parents)
    return SavedUnit(store, entry, method, unit, whole)


def teachers(folder: RunFolder, decoders: int) -> tuple[GaussianDecoder, ...] | None:
    """The teacher's decoder of the last commit, or one for each of ``decoders`` blocks that share none; None when the
    run has no teacher or no checkpoint is left."""
    manifest = folder.checkpoint / MANIFEST
    if not manifest.exists():
        return None
    try:
        found = Checkpoint.from_file(manifest)
        entries: list[Entry | None] = [found.shared]
        if decoders > 1:
            entries = [found.units.get(unit) for unit in range(decoders)]
        states: list[dict[str, Tensor]] = [
            tensors_of(store_of(folder).folder / entry.file, prefix="teacher.")
            for entry in entries
            if entry is not None
        ]
        if len(states) < len(entries) or not all(states):
            return None
        return tuple(decoder_from_state(state, "teacher") for state in states)
    except (UserError, KeyError):
        return None
