"""Who looks on while a run trains: nerfstudio's viewer and its loggers. They see results and never change them.

The viewer's thread renders only while training waits for it: the trainer holds ``train_lock`` and lets go of it for a
moment after every step. It shows the merged scene as of the last commit, merged anew only while a browser is connected,
because merging holds all blocks in memory at once.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from scene_distill.core.console import say

if TYPE_CHECKING:
    from scene_distill.blocks.runtime import Progress
    from scene_distill.plugins.nerfstudio_config import RunTrainerConfig
    from scene_distill.plugins.nerfstudio_trainer import Trainer
    from scene_distill.training.evaluation import TrainedScene

PAUSE_S = 0.05
"""Seconds between looks at the pause button."""
YIELD_S = 0.001
"""Seconds for which training lets go of the lock after a step while a browser is connected."""


class Onlookers(Protocol):
    """Something that is told how training goes, always from the training thread."""

    def step(self, step: Progress) -> None:
        """A lockstep step is done."""
        ...

    def committed(self) -> None:
        """A round is committed."""
        ...

    def finished(self, merged: TrainedScene, results: dict[str, float], step: int) -> None:
        """Training is complete and its held-out views are measured."""
        ...

    def close(self) -> None:
        """Nothing more will come, whether training is complete or not."""
        ...


class Viewer:
    """Nerfstudio's viewer on the run of ``trainer``."""

    def __init__(self, trainer: Trainer) -> None:
        from nerfstudio.viewer.viewer import Viewer as NerfstudioViewer

        config, folder = trainer.config, trainer.training.folder.path
        self.trainer, self.stale = trainer, True
        self.pipeline = config.pipeline.setup(device=torch.device("cpu"), test_mode="test")
        self.state = NerfstudioViewer(
            config.viewer,
            log_filename=folder / config.viewer.relative_log_filename,
            datapath=trainer.training.scene.root,
            pipeline=self.pipeline,
            trainer=trainer,  # type: ignore[arg-type]  # it asks for nothing but training_state
            train_lock=trainer.train_lock,
            share=config.viewer.make_share_url,
        )
        data = self.pipeline.datamanager
        self.state.init_scene(data.train_dataset, trainer.training_state, data.eval_dataset)
        say("\n".join(self.state.viewer_info))

    def step(self, step: Progress) -> None:
        """Show what was committed, give the viewer's thread its turn, and wait while training is paused."""
        watched = len(self.state.render_statemachines) > 0
        if watched and self.stale:
            self.pipeline.model.scene = self.trainer.training.merged()
            self.stale = False
        lock = self.trainer.train_lock
        lock.release()
        try:
            if watched:
                time.sleep(YIELD_S)
                self.state.update_scene(step.done_steps)
            while self.trainer.training_state == "paused":
                time.sleep(PAUSE_S)
        finally:
            lock.acquire()

    def committed(self) -> None:
        """There is something new to show."""
        self.stale = True

    def finished(self, merged: TrainedScene, results: dict[str, float], step: int) -> None:
        """Go on showing the result until Ctrl-C, if the user asked for it."""
        if self.trainer.config.viewer.quit_on_train_completion:
            return
        self.pipeline.model.scene = merged
        say("the viewer stays open until Ctrl-C")
        try:
            while True:
                self.state.update_scene(step)
                time.sleep(PAUSE_S)
        except KeyboardInterrupt:
            return

    def close(self) -> None:
        """Stop the server."""
        self.state.viser_server.stop()


class Loggers:
    """Nerfstudio's tensorboard, wandb and comet writers."""

    def __init__(self, config: RunTrainerConfig, folder: Path) -> None:
        from nerfstudio.utils import writer

        self.writer = writer
        writer.setup_event_writer(
            config.is_wandb_enabled(), config.is_tensorboard_enabled(), config.is_comet_enabled(), log_dir=folder,
            experiment_name=str(config.experiment_name), project_name=str(config.project_name),
        )  # fmt: skip
        writer.setup_local_writer(config.logging, max_iter=0)

    def step(self, step: Progress) -> None:
        """Means over lanes of what every lane logs."""
        lanes = [numbers for _, numbers in step.lanes]
        names = sorted({name for numbers in lanes for name in numbers})
        means: dict[str, Any] = {
            name: statistics.fmean(numbers[name] for numbers in lanes if name in numbers) for name in names
        }
        self.writer.put_dict("Train Metrics Dict", means, step.done_steps)
        self.writer.write_out_storage()

    def committed(self) -> None:
        """Nothing to add."""

    def finished(self, merged: TrainedScene, results: dict[str, float], step: int) -> None:
        """Means over the held-out views."""
        self.writer.put_dict("Eval Images Metrics Dict (all images)", results, step)
        self.writer.write_out_storage()

    def close(self) -> None:
        """Nothing to close: the writers flush by themselves."""
