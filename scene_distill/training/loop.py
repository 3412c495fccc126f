"""Training from a config to a run folder: load, plan, train, merge, evaluate. Readable top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from scene_distill.blocks.runtime import Method, Progress, Runtime, SavedState
from scene_distill.blocks.schedule import Round
from scene_distill.blocks.splitting import StateRows
from scene_distill.blocks.workers import Workers
from scene_distill.core import memory
from scene_distill.core.configs import RunConfig
from scene_distill.core.console import progress, say
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.data.scene import Scene
from scene_distill.renderers import native
from scene_distill.training.control import Control
from scene_distill.training.estimates import Growth
from scene_distill.training.evaluation import Save, TrainedScene
from scene_distill.training.provenance import made_by
from scene_distill.training.report import Measured, report_run
from scene_distill.training.run_folder import RunFolder
from scene_distill.training.scene_blocks import SceneBlocks
from scene_distill.training.telemetry import telling

LIBRARIES_BYTES = 100 * 10**6
"""What libraries still take when training has begun, and what is decoded and copied beside the units in work."""

MOMENTS = (0.1, 0.3)
"""At least and at most this part of --max-memory is kept free for what a round takes for moments."""

COPIES_OF_STATE = 4
"""So many times its state a lane takes for moments: neighbours' copies when it opens, files when it closes."""

IMAGES_SHARE = 0.5
"""Part of the memory left beside the working set that photos may fill; the rest keeps evicted blocks in RAM."""


class TrainableScene(Method, Protocol):
    """A method bound to a scene."""

    rounds: tuple[Round, ...]

    rows: StateRows
    blocks: SceneBlocks

    @property
    def growth(self) -> Growth:
        """How a unit is expected to grow."""
        ...

    def plan(self) -> dict[str, Any]:
        """'table' (text) and 'working_set_bytes' of a round."""
        ...

    def merge(self, states: Mapping[int, SavedState]) -> TrainedScene:
        """One scene from the states of all units."""
        ...


@runtime_checkable
class PreparedScene(Protocol):
    """A method that takes long to bind to a scene: one worker does it and tells the others what it found."""

    def preparation(self) -> Any:
        """What ``build`` takes as fourth argument to be quick; None where it is quick anyway."""
        ...


Build = Callable[..., TrainableScene]
"""(config, scene, photos[, preparation]) -> the method bound to the scene."""


@dataclass(frozen=True, eq=False)
class Training:
    """A run that is ready to train: its scene, photos, method, runtime and folder."""

    method_name: str
    config: RunConfig
    scene: Scene
    images: ImageCache
    method: TrainableScene
    runtime: Runtime
    folder: RunFolder

    def begin(self) -> None:
        """Open the run folder, or with ``config.resume`` take up its last commit. Every worker calls it."""
        if self.runtime.workers.rank == 0:
            self.folder.open(self.config, self.method_name)
        if self.config.resume and self.runtime.resume():
            say(f"resumed at round {self.runtime.next_round} of {len(self.runtime.rounds)}")
        if self.runtime.workers.rank == 0:
            self.folder.rewind_log(self.runtime.next_round)

    def train(self, listen: Callable[[Progress], None] = lambda step: None,
              committed: Callable[[], None] = lambda: None) -> TrainedScene:  # fmt: skip
        """Train what is left of the schedule with the help of the other workers, merge, and save the model; returns the
        merged scene. On worker 0; the others call `help_train`."""
        started, left = time.perf_counter(), self.runtime.total_steps - self.runtime.done_steps
        control = Control(self.folder, self.runtime, self.method)
        with telling(self.folder.append, self.runtime.total_steps, self.runtime.done_steps) as telemetry, control:

            def hear(step: Progress) -> None:
                telemetry.hear(step)
                self._log_scores(step)
                listen(step)
                control.hear(step)

            def note_commit() -> None:
                control.committed()
                self._keep_to_budget()
                committed()

            self.runtime.run(hear, note_commit, control.together)
        if left:
            spent = time.perf_counter() - started - control.waited_s
            say(f"trained {left} steps in {spent:.0f} s ({1000 * spent / left:.0f} ms each)")
        merged = self.merged()
        merged.save(self.folder.model)
        return merged

    def _keep_to_budget(self) -> None:
        """Units that grow leave holes behind that malloc cannot use. Near --max-memory these go back to the system, and
        what still exceeds it is taken from the evicted blocks in RAM."""
        if not self.config.max_memory:
            return
        budget = memory.parse_bytes(self.config.max_memory)
        lanes = -(-self.config.lanes // self.runtime.workers.count)
        least, most = (part * budget for part in MOMENTS)
        above = budget - min(max(COPIES_OF_STATE * lanes * self.runtime.largest_bytes, least), most)
        if memory.rss_bytes() > above:
            memory.return_freed_memory()
            self.runtime.shrink_ram(max(int(memory.rss_bytes() - above), 0))

    def _log_scores(self, step: Progress) -> None:
        """In the first step of a round, a line with the shared scoreboard: running PSNR and SSIM of every unit."""
        scores = getattr(self.method.shared, "scores", None)
        if scores and step.done_steps == self.runtime.done_steps + len(step.lanes):
            line = {"scores": {str(unit): list(pair) for unit, pair in sorted(scores.items())}}
            self.folder.append({"round": step.round, "step": step.done_steps} | line)

    def help_train(self) -> None:
        """Train this worker's lanes of what is left; worker 0 does everything else."""
        with Control(self.folder, self.runtime, self.method) as control:
            self.runtime.run(committed=self._keep_to_budget, together=control.together)

    def merged(self) -> TrainedScene:
        """The merged scene of the last committed round."""
        return self.method.merge(self.runtime.states())

    def evaluate(self, merged: TrainedScene, save: Save = lambda frame, rendering, photo: None) -> dict[str, Any]:
        """Metrics on the held-out views, written to metrics.json."""
        run = Measured(self.method_name, self.config, self.folder, merged, self.scene, self.images)
        return report_run(run, save, {
            "seconds": self.runtime.seconds, "steps": self.runtime.total_steps,
            "peak_memory_bytes": memory.peak_rss_bytes(), "trained": made_by(),
        })  # fmt: skip


def prepare(method_name: str, config: RunConfig, build: Build, workers: Workers | None = None) -> Training:
    """Load the data, split it into units and check the budget. Nothing is written yet; `Training.begin` is next.

    Every worker calls it. Worker 0 goes first, so that what is made once (structure from motion, undistorted photos, a
    coarse model) is there for the others.
    """
    workers = workers if workers is not None else Workers()
    config = replace(config, resume=config.resume or workers.place.restarted)
    use_native_threads(config.threads or workers.place.cores)
    with workers.first_before_others("worker 0 reads the scene"):
        scene, width = load_for(config)
    folder = RunFolder(config.output_dir or default_folder(config, method_name))
    all_photos = sum(3 * c.width * c.height for c in (f.camera.resized(width) for f in scene.frames))
    images = ImageCache(scene.frames, width, all_photos)
    method = _built(build, config, scene, images, workers)
    ram_bytes = None
    if config.max_memory:
        share = -(-config.lanes // workers.count) / config.lanes
        spare = _spare_bytes(config, int(share * method.plan()["working_set_bytes"]))
        images.limit(min(all_photos, int(IMAGES_SHARE * spare)))
        ram_bytes = spare - images.budget_bytes
    workers.agree("the scene and its blocks", scene.points, [frame.name for frame in scene.frames], method.rounds)
    runtime = Runtime(method, method.rounds, folder.checkpoint, ram_bytes, workers, config.reduction)
    return Training(method_name, config, scene, images, method, runtime, folder)


def _built(build: Build, config: RunConfig, scene: Scene, images: ImageCache, workers: Workers) -> TrainableScene:
    """The method bound to the scene; worker 0 does first what takes long."""
    if workers.rank == 0:
        method = build(config, scene, images)
        found = method.preparation() if isinstance(method, PreparedScene) else None
        workers.prepared(found, "worker 0 prepares the scene")
        return method
    preparation = workers.prepared(None, "worker 0 prepares the scene")
    return build(config, scene, images) if preparation is None else build(config, scene, images, preparation)


def use_native_threads(threads: int) -> None:
    """Give the cores to the native kernels (all of them when ``threads`` is 0) and one thread to torch.

    Two pools would spin against each other, and torch's sums change their last bits with its number of threads.
    """
    if threads:
        native.set_threads(threads)
    torch.set_num_threads(1)
    native.keep_freed_memory()


def load_for(config: RunConfig) -> tuple[Scene, int]:
    """The scene of a config and the width its photos are used at."""
    if config.data is None:
        raise UserError("no data given; add --data with a COLMAP folder, a transforms.json or a folder of photos")
    with progress("reading the scene", 100) as meter:
        scene = load_scene(
            config.data, test_every=config.test_every, test_list=config.test_list,
            progress=lambda stage, done, total: meter.update(100 * done // max(total, 1), stage),
        )  # fmt: skip
    for name, reason in scene.skipped.items():
        say(f"left out {name}: {reason}")
    widest = max(frame.camera.width for frame in scene.frames)
    return scene, min(config.image_width, widest) if config.image_width > 0 else widest


def default_folder(config: RunConfig, method_name: str) -> Path:
    """outputs/<data>-<method>."""
    assert config.data is not None
    path = config.data.resolve()
    return Path("outputs") / f"{path.parent.name if path.suffix else path.name}-{method_name}"


def _spare_bytes(config: RunConfig, working_set: int) -> int:
    budget = memory.parse_bytes(config.max_memory)
    need = memory.rss_bytes() + LIBRARIES_BYTES + working_set
    if need > budget:
        raise UserError(
            f"--max-memory {config.max_memory} is too small: {min(config.lanes, config.blocks)} lanes need about "
            f"{memory.format_bytes(need)}; give more memory, fewer --lanes, more --blocks, "
            "or a --max-block-memory above which blocks are split"
        )
    return budget - need
