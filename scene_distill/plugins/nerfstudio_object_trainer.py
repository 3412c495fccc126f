"""The trainer that nerfstudio starts for text to 3D: the engine of `scene-distill text-to-3d`, the viewer beside it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scene_distill.core.console import say, say_next
from scene_distill.plugins.nerfstudio_checkpoint import write_checkpoint
from scene_distill.plugins.nerfstudio_errors import one_sentence
from scene_distill.plugins.nerfstudio_objects import ORBIT, ObjectScene, ObjectTrainerConfig
from scene_distill.plugins.nerfstudio_trainer import Trainer

if TYPE_CHECKING:
    from scene_distill.blocks.runtime import Progress
    from scene_distill.methods.text_to_3d.generate import ObjectsRun
    from scene_distill.training.run_folder import RunFolder


@dataclass(frozen=True)
class OrbitRoot:
    """Where the scene is that nerfstudio's tools look at."""

    root: Path


class ObjectInTraining:
    """What the viewer and the loggers ask of a run in training: its folder, its scene's folder, its object so far."""

    def __init__(self, run: ObjectsRun) -> None:
        self.run = run
        self.folder: RunFolder = run.folder
        self.scene = OrbitRoot(run.folder.path / ORBIT)

    def begin(self) -> None:
        """Open the run folder, and write the turntable of the object as it is."""
        self.run.begin()
        self.write_orbit()

    def write_orbit(self) -> None:
        """Write the turntable of the object as of the last commit."""
        from scene_distill.export.orbit_scene import write_orbit

        write_orbit(self.run.trained(0), self.scene.root)

    def merged(self) -> ObjectScene:
        """The object as of the last commit."""
        return ObjectScene(self.run.trained(0))


class ObjectTrainer(Trainer):
    """Makes one object and returns."""

    config: ObjectTrainerConfig
    training: ObjectInTraining  # type: ignore[assignment]

    def setup(self, test_mode: str = "val") -> None:
        """Start the other workers and load the prior."""
        with one_sentence(), ExitStack() as started:
            from scene_distill.methods.text_to_3d.generate import prepare_objects
            from scene_distill.methods.text_to_3d.method import training_device
            from scene_distill.methods.text_to_3d.teachers import cores_of, open_prior
            from scene_distill.training.loop import use_native_threads
            from scene_distill.training.workers import workers_of

            method, config = self.config.text_method, self.config.object_config()
            words = ("text-to-3d", "--method", method.name)
            workers = started.enter_context(workers_of(method.name, config, words))
            threads = config.threads or workers.place.cores
            use_native_threads(threads)
            prior = open_prior(config, training_device(), cores_of(threads))
            assert config.output_dir is not None
            run = prepare_objects(method, config, config.prompts, prior, config.output_dir, workers)
            self.training = ObjectInTraining(run)
            self._workers = started.pop_all()

    def _train(self) -> None:
        """Train what is left, save the object, nerfstudio's checkpoint and the files; prints what next."""
        from scene_distill.export.object_files import write_object
        from scene_distill.methods.text_to_3d.telling import telling

        training, run = self.training, self.training.run
        total = run.runtime.total_steps
        with self.train_lock, telling(run.made.prompts, total, run.runtime.done_steps) as teller:

            def hear(step: Progress) -> None:
                teller.hear(step)
                self._hear(step)

            run.train(hear, self._committed)
        made = run.finished(0)
        write_object(made, f"'{made.prompt}', prior {run.made.config.prior}")
        training.write_orbit()
        write_checkpoint(made.folder / "object.safetensors", self.config.get_checkpoint_dir(), total)
        say(f"run folder: {training.folder.path}")
        say_next(f"ns-viewer --load-config {training.folder.path / 'config.yml'}", "look at it in the browser")
        say_next(f"scene-distill view {made.folder / 'object.ply'}", "our own viewer")
        self.training_state = "completed"
        with self.train_lock:
            for onlooker in self.onlookers:
                onlooker.finished(ObjectScene(made.trained), {}, total)  # type: ignore[arg-type]
