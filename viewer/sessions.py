"""What is looked at, behind one small protocol: a file, a run, or a run that is training in another process.

A session answers three things: what there is and how it stands (`describe`, `status`, `history`), what to draw
(`looking`, `frames`), and commands for training (`steer`). It watches files and never touches training: the
only thing it writes into a run is a line in control.jsonl when somebody asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scene_distill.blocks.schedule import place_lanes
from scene_distill.core.configs import RunConfig
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Frame, Scene
from scene_distill.methods import find_method
from scene_distill.representations.splats import Splats
from scene_distill.training.control import checked_change, send, training_state, tunables
from scene_distill.training.loop import load_for
from scene_distill.training.run_folder import RunFolder
from scene_distill.viewer.committed import CommittedRun, manifest_time, teachers
from scene_distill.viewer.describing import UNCERTAIN_UP, Looking, described
from scene_distill.viewer.file_sessions import open_file
from scene_distill.viewer.log_follower import LogFollower
from scene_distill.viewer.scenes import ViewedAnchors, ViewedSplats, viewed

PHOTO_CACHE_BYTES = 256_000_000
LIVE_REST = 4.0
"""A run in training is merged anew at most so many times its merging time apart, so that watching stays cheap."""

AFTER_A_FAULT_S = 10.0
"""Pause after a commit that could not be read."""


class Session(Protocol):
    """What the server needs of whatever is looked at. Calls come from one thread at a time."""

    title: str
    folder: Path
    version: int
    frames: tuple[Frame, ...]
    images: ImageCache | None

    @property
    def looking(self) -> Looking:
        """What is drawn now."""
        ...

    def describe(self) -> dict[str, Any]:
        """What there is: layers, blocks, bounds, views, settings that can be changed. New with every `version`."""
        ...

    def status(self) -> dict[str, Any]:
        """How it stands: state, step, losses, lanes."""
        ...

    def history(self) -> dict[str, Any]:
        """Curves over training; empty for a file."""
        ...

    def poll(self) -> bool:
        """Look at the files again; True when the status is new. `version` counts up when there is another scene."""
        ...

    def steer(self, command: dict[str, Any]) -> str:
        """Pass a command on to training; returns a sentence. Raises `UserError` where it cannot be done."""
        ...


def open_session(path: Path, data: Path | None = None) -> Session:
    """The session of a run folder, a splat file or a mesh; raises `UserError` for anything else."""
    if path.is_dir():
        return RunSession(RunFolder(path), data)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder, a splat file or a mesh")
    return open_file(path)


class RunSession:
    """A run folder, finished or in training.

    A finished run shows its model; one in training (or cut off) what it last committed, or its first points before the
    first commit. Without its data folder a finished run is shown without photos.
    """

    def __init__(self, folder: RunFolder, data: Path | None = None) -> None:
        self._run, self._entry = folder, find_method(folder.method())
        self._config = folder.saved_config(self._entry.config, self._entry.name)
        self._config = replace(self._config, data=data or self._config.data)
        self.title, self.folder, self.version = folder.path.resolve().name, folder.path, 0
        self._log = LogFollower(folder.log)
        self._missing_data = ""
        self._scene: Scene | None = None
        self.images: ImageCache | None = None
        self._committed: CommittedRun | None = None
        self.frames: tuple[Frame, ...] = ()
        self._load_data()
        self._shown: tuple[str, int] = ("", 0)
        self._next_merge = 0.0
        self.looking: Looking
        self.poll()
        if self.version == 0:
            self._show_points()

    def _load_data(self) -> None:
        try:
            self._scene, width = load_for(self._config)
        except UserError as error:
            if not self._run.model.exists():
                raise
            self._missing_data = str(error)
            return
        self.frames = self._scene.frames
        self.images = ImageCache(self.frames, width, PHOTO_CACHE_BYTES)

    def poll(self) -> bool:
        """Follow the log and the checkpoint."""
        news = self._log.follow()
        return self._show_newest() or news

    def _show_newest(self) -> bool:
        """Take up the finished model, or the newest commit; True when there is another scene."""
        state, commit = training_state(self._run.path), manifest_time(self._run)
        running = state is not None and state["state"] in ("training", "paused")
        model = self._run.model
        if model.exists() and not running and (state is None or model.stat().st_mtime_ns >= commit):
            if self._shown == ("model", model.stat().st_mtime_ns):
                return False
            self._shown = ("model", model.stat().st_mtime_ns)
            self._show(self._entry.load(model))
            return True
        if commit and self._shown != ("commit", commit) and time.monotonic() >= self._next_merge and self._scene:
            started = time.monotonic()
            assert self.images is not None
            if self._committed is None:
                self._committed = CommittedRun(self._run, self._entry, self._config, self._scene, self.images)
            self._next_merge = started + AFTER_A_FAULT_S
            merged = self._committed.merged()
            spent = time.monotonic() - started
            self._next_merge = time.monotonic() + LIVE_REST * spent
            self._shown = ("commit", commit)
            if merged is not None:
                self._show(merged, self._committed.steps)
                return True
        return False

    def _show(self, trained: Any, steps: Mapping[int, int] | None = None) -> None:
        """Look at a trained scene; ``steps`` that each block has made, all of them by default."""
        scene, teacher = viewed(trained), None
        if isinstance(scene, ViewedAnchors):
            decoders = teachers(self._run, len(scene.scene.decoders))
            teacher = scene.taught_by(decoders) if decoders else None
        if steps is None:
            blocks = 0 if scene.blocks is None or not len(scene) else int(scene.blocks.max())
            steps = dict.fromkeys(range(blocks + 1), self._config.iterations)
        up = np.asarray(trained.metadata.get("up", UNCERTAIN_UP), dtype=float)
        unit = "m" if trained.metadata.get("unit") == "metre" else "units"
        self.looking = Looking(scene, teacher, up / np.linalg.norm(up), unit, steps)
        self.version += 1

    def _show_points(self) -> None:
        """Before the first commit there are only the points that training starts from."""
        assert self._scene is not None
        origin = np.median(self._scene.points, axis=0)
        points = Splats.from_points(self._scene.points - origin, self._scene.colors)
        unit = "m" if self._scene.metadata.get("unit") == "metre" else "units"
        self.looking = Looking(ViewedSplats(points, origin), None, self._scene.up, unit)
        self.version = 1

    def describe(self) -> dict[str, Any]:
        """What there is."""
        config = self._config
        facts: dict[str, Any] = {
            "method": self._entry.name,
            "data": config.data.name if config.data else "",
            "blocks": config.blocks,
        }
        facts |= {"lanes": config.lanes, "iterations": config.iterations, "image width": config.image_width}
        if self._missing_data:
            facts["photos"] = self._missing_data
        kind = {"model": "saved run", "commit": "last commit"}.get(self._shown[0], "first points")
        return described(self, kind, facts) | {"tunables": tunables(self._tuned())}

    def _tuned(self) -> RunConfig:
        """The config with the changes that the log tells of."""
        changed: dict[str, Any] = {}
        for event in self._log.events:
            if "from_round" in event:
                try:
                    changed[event["name"]] = checked_change(self._config, event["name"], event["to"])
                except UserError:
                    continue
        return replace(self._config, **changed)

    def status(self) -> dict[str, Any]:
        """State of the training process, its place in the schedule, and the newest figures of every block."""
        state, log = training_state(self._run.path) or {}, self._log
        log.follow()  # after the state, so that the step is not older than the pause that it tells of
        name = state.get("state") or ("finished" if self._run.model.exists() else "stopped")
        blocks = {
            str(unit): {key: round(float(value), 5) for key, value in numbers.items()}
            for unit, numbers in sorted(log.latest.items())
        }
        lanes = self._lanes(state) if name in ("training", "paused") else []
        return {
            "state": name, "primitives": len(self.looking.scene), "lanes": lanes, "blocks": blocks,
            "step": log.last.get("step", state.get("step", 0)), "steps": state.get("steps", 0),
            "round": log.last.get("round", state.get("round", 0)), "rounds": state.get("rounds", 0),
            "workers": state.get("workers", 1), "seconds": log.last.get("seconds", 0.0),
            "metrics": self._metrics(), "events": log.events[-12:], "tunables": tunables(self._tuned()),
        }  # fmt: skip

    def _lanes(self, state: dict[str, Any]) -> list[dict[str, int | None]]:
        """Which block each lane trains, and on which worker; None where the schedule is not known yet."""
        workers, round_ = max(int(state.get("workers", 1)), 1), self._log.last.get("round", 0)
        rounds = self._committed.rounds if self._committed is not None else ()
        owners: tuple[int | None, ...] = (0 if workers == 1 else None,) * len(self._log.lanes)
        if workers > 1 and round_ < len(rounds):
            owners = place_lanes(rounds, workers)[round_]
        return [
            {"lane": lane, "block": unit, "worker": worker}
            for lane, (unit, worker) in enumerate(zip(self._log.lanes, owners, strict=False))
        ]

    def _metrics(self) -> dict[str, Any]:
        from scene_distill.core.files import read_json

        try:
            results = read_json(self._run.metrics)["results"]
            return {key: results[key] for key in ("psnr", "ssim", "psnr_corrected", "seam_ratio") if key in results}
        except (UserError, KeyError, TypeError):
            return {}

    def history(self) -> dict[str, Any]:
        """Curves over training."""
        return self._log.history()

    def steer(self, command: dict[str, Any]) -> str:
        """Write a command for the training process."""
        state = training_state(self._run.path)
        if state is None or state["state"] not in ("training", "paused"):
            raise UserError("this run is not training now; there is nothing to steer")
        if command["command"] == "set":
            checked_change(self._tuned(), command.get("name"), command.get("value"))
        send(self._run.path, command)
        when = "from the next round on" if command["command"] == "set" else "after this step"
        return f"sent: {command['command']} {command.get('name', '')}".strip() + f", {when}"
