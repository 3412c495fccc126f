"""What is looked at, behind one small protocol: a splat file, a run, or a run that is training in another process.

A session answers three things: what there is and how it stands (`describe`, `status`, `history`), what to draw
(`scene`, `teacher`, `frames`), and commands for training (`steer`). It watches files and never touches training: the
only thing it writes into a run is a line in control.jsonl when somebody asks for it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from scene_distill.blocks.schedule import place_lanes
from scene_distill.core.configs import RunConfig
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Frame, Scene
from scene_distill.export.formats import read_splats
from scene_distill.methods import find_method
from scene_distill.representations.splats import Splats
from scene_distill.training.control import checked_change, send, training_state, tunables
from scene_distill.training.loop import load_for
from scene_distill.training.run_folder import RunFolder
from scene_distill.viewer.colormaps import block_colors
from scene_distill.viewer.committed import CommittedRun, manifest_time, teachers
from scene_distill.viewer.layers import layers_of
from scene_distill.viewer.log_follower import LogFollower
from scene_distill.viewer.scenes import ViewedAnchors, ViewedScene, ViewedSplats, viewed

PHOTO_CACHE_BYTES = 256_000_000
LIVE_REST = 4.0
"""A run in training is merged anew at most so many times its merging time apart, so that watching stays cheap."""

AFTER_A_FAULT_S = 10.0
"""Pause after a commit that could not be read."""

BOX_PERCENT = (1.0, 99.0)
"""Percentiles of the positions that a block's box and the scene's bounds hold: floaters far away do not count."""

UNCERTAIN_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, eq=False)
class Looking:
    """One state of the scene: what is drawn, and the same with the teacher's decoders where there is a teacher."""

    scene: ViewedScene
    teacher: ViewedScene | None
    up: np.ndarray
    unit: str


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
    """The session of a run folder or a splat file; raises `UserError` for anything else."""
    if path.is_dir():
        return RunSession(RunFolder(path), data)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder or a splat file")
    return FileSession(path)


class FileSession:
    """A splat file of any format that `export.formats` reads."""

    def __init__(self, path: Path, title: str | None = None) -> None:
        splats, metadata = read_splats(path)
        if torch.cuda.is_available():
            splats = Splats(**{name: getattr(splats, name).cuda() for name in splats.__dataclass_fields__})
        up = np.asarray(metadata.up, float) if metadata.up is not None else UNCERTAIN_UP
        unit = "m" if metadata.unit == "metre" else "units"
        self.looking = Looking(
            ViewedSplats(splats, np.zeros(3), antialiased=metadata.antialiased), None, up / np.linalg.norm(up), unit
        )
        self.title, self.folder, self.version = title or path.name, path.parent, 1
        self.frames: tuple[Frame, ...] = ()
        self.images: ImageCache | None = None
        self._bytes, self._metadata = path.stat().st_size, metadata

    def describe(self) -> dict[str, Any]:
        """What there is."""
        facts = {"file": self.title, "size": f"{self._bytes / 1e6:.1f} MB", "made by": self._metadata.generator}
        facts |= {"source": self._metadata.source, "up from": "file" if self._metadata.up else "assumed z"}
        return _described(self, "file", {k: v for k, v in facts.items() if v})

    def status(self) -> dict[str, Any]:
        """A file does not change."""
        return {"state": "file", "primitives": len(self.looking.scene)}

    def history(self) -> dict[str, Any]:
        """None."""
        return {"run": {}, "blocks": {}}

    def poll(self) -> bool:
        """Nothing to look at."""
        return False

    def steer(self, command: dict[str, Any]) -> str:
        """Refused: nothing trains here."""
        raise UserError("a file does not train; open a run folder to steer training")


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
                self._show(merged)
                return True
        return False

    def _show(self, trained: Any) -> None:
        scene, teacher = viewed(trained), None
        if isinstance(scene, ViewedAnchors):
            decoders = teachers(self._run, len(scene.scene.decoders))
            teacher = scene.taught_by(decoders) if decoders else None
        up = np.asarray(trained.metadata.get("up", UNCERTAIN_UP), dtype=float)
        unit = "m" if trained.metadata.get("unit") == "metre" else "units"
        self.looking = Looking(scene, teacher, up / np.linalg.norm(up), unit)
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
        return _described(self, kind, facts) | {"tunables": tunables(self._tuned())}

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


def _described(session: Session, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    looking = session.looking
    scene = looking.scene
    positions = scene.positions.detach().float().cpu()
    low, high = _box(positions, scene.origin)
    return {
        "title": session.title, "kind": kind, "version": session.version, "facts": facts, "unit": looking.unit,
        "up": looking.up.tolist(), "bounds": [low, high], "primitive": scene.primitive, "primitives": len(scene),
        "layers": layers_of(scene, looking.teacher, bool(session.frames)), "blocks": _blocks(scene, positions),
        "frames": [_frame(frame, session) for frame in session.frames], "tunables": {},
    }  # fmt: skip


def _box(positions: torch.Tensor, origin: np.ndarray) -> tuple[list[float], list[float]]:
    if len(positions) == 0:
        return [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]
    sample = positions[:: -(-len(positions) // 200_000)].double().numpy()
    low, high = np.percentile(sample, BOX_PERCENT, axis=0) + origin
    return np.round(low, 4).tolist(), np.round(high, 4).tolist()


def _blocks(scene: ViewedScene, positions: torch.Tensor) -> list[dict[str, Any]]:
    if scene.blocks is None or len(scene) == 0:
        return []
    owners = scene.blocks.cpu()
    colors = (block_colors(int(owners.max()) + 1) * 255).round().int().tolist()
    found = []
    for block, count in zip(*(part.tolist() for part in torch.unique(owners, return_counts=True)), strict=True):
        low, high = _box(positions[owners == block], scene.origin)
        found.append({"id": block, "count": count, "color": colors[block], "low": low, "high": high})
    return found


def _frame(frame: Frame, session: Session) -> dict[str, Any]:
    camera = frame.camera
    return {
        "name": frame.name, "width": camera.width, "height": camera.height, "fx": camera.fx, "fy": camera.fy,
        "cx": camera.cx, "cy": camera.cy, "pose": np.round(camera.cam_from_world, 6).ravel().tolist(),
        "test": frame.name in getattr(getattr(session, "_scene", None), "test", ()),
    }  # fmt: skip
