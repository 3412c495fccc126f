"""The trainer that nerfstudio starts: it drives the same engine as `scene-distill train`, and the viewer beside it."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Literal

from scene_distill.core.console import say, say_next
from scene_distill.core.files import write_json
from scene_distill.plugins.nerfstudio_checkpoint import write_checkpoint
from scene_distill.plugins.nerfstudio_errors import one_sentence
from scene_distill.plugins.nerfstudio_onlookers import Loggers, Onlookers, Viewer

if TYPE_CHECKING:
    from scene_distill.blocks.runtime import Progress
    from scene_distill.plugins.nerfstudio_config import RunTrainerConfig
    from scene_distill.training.loop import Training

IDENTITY = {"transform": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], "scale": 1.0}
"""From the scene's world to nerfstudio's: the same."""


class Trainer:
    """Trains one run and returns. Training and the viewer's pictures take turns at ``train_lock``."""

    training: Training

    def __init__(self, config: RunTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        self.config = config
        self.train_lock = Lock()
        self.training_state: Literal["training", "paused", "completed"] = "training"
        self.plan_only = False
        self.onlookers: tuple[Onlookers, ...] = ()
        self._workers = ExitStack()

    def setup(self, test_mode: str = "val") -> None:
        """Start the other workers, load the data, split it and check the budget; on a dry run print the plan."""
        with one_sentence(), ExitStack() as started:
            from scene_distill.training.estimates import plan_text
            from scene_distill.training.loop import prepare
            from scene_distill.training.workers import workers_of

            entry, config = self.config.entry, self.config.run_config()
            workers = started.enter_context(workers_of(entry.name, config))
            self.training = prepare(entry.name, config, entry.build, workers)
            self._workers = started.pop_all()
            self.plan_only = self.training.config.dry_run
            if self.plan_only:
                say(plan_text(self.training))
                say_next(f"ns-train {entry.name} --data {self.config.data}", "the same without --dry-run")

    def train(self) -> None:
        """Train what is left, unless only the plan was asked for; a key press stops it and loses nothing."""
        if self.plan_only:
            self._workers.close()
            return
        try:
            with one_sentence(), self._workers:
                self._begin()
                self._train()
        except KeyboardInterrupt:
            raise SystemExit("stopped; what was committed is kept (continues with --resume True)") from None
        finally:
            for onlooker in self.onlookers:
                onlooker.close()

    def _begin(self) -> None:
        folder = self.training.folder
        self.training.begin()
        write_json(folder.path / "dataparser_transforms.json", IDENTITY)
        if self.config.is_viewer_enabled():
            self.onlookers += (Viewer(self),)
        if self.config.vis != "viewer":
            self.onlookers += (Loggers(self.config, folder.path),)

    def _train(self) -> None:
        """Train what is left, save the model, nerfstudio's checkpoint and the metrics; prints figures and what next."""
        from scene_distill.export.run_pictures import picture_writer
        from scene_distill.training.evaluation import summary

        training, folder = self.training, self.training.folder
        with self.train_lock:
            merged = training.train(self._hear, self._committed)
            report = training.evaluate(merged, picture_writer(folder.renders))
        write_json(folder.metrics, report | {"experiment_name": self.config.experiment_name})
        write_checkpoint(folder.model, self.config.get_checkpoint_dir(), training.runtime.total_steps)
        say(summary(report))
        say(f"run folder: {folder.path}")
        saved = folder.path / "config.yml"
        say_next(f"ns-viewer --load-config {saved}", "look at it in the browser")
        say_next(f"ns-eval --load-config {saved} --output-path {folder.path / 'eval.json'}", "measure it again")
        say_next(f"scene-distill export {folder.path} --format ply", "a splat file for other programs")
        self.training_state = "completed"
        for onlooker in self.onlookers:
            onlooker.finished(merged, report["results"], training.runtime.total_steps)

    def _hear(self, step: Progress) -> None:
        for onlooker in self.onlookers:
            onlooker.step(step)

    def _committed(self) -> None:
        for onlooker in self.onlookers:
            onlooker.committed()
