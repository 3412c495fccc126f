"""Text to 3D under nerfstudio: `ns-train dreamer-xl --prompt "a red chair"`, with its viewer, ns-render and ns-export.

The engine is the one of `scene-distill text-to-3d`; one prompt, one object. Nerfstudio's tools want a scene of
photographs: they get the object's own turntable, which is written into the run folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from torch import nn

from scene_distill.core.errors import UserError
from scene_distill.methods.text_to_3d.registry import TEXT_METHODS, TextMethod
from scene_distill.plugins.nerfstudio_config import RunTrainerConfig, holds_run
from scene_distill.plugins.nerfstudio_data import SceneDatamanagerConfig
from scene_distill.plugins.nerfstudio_model import SceneModel, SceneModelConfig

if TYPE_CHECKING:
    from scene_distill.core.cameras import Camera
    from scene_distill.methods.text_to_3d.config import TextTo3DConfig
    from scene_distill.methods.text_to_3d.representation import TrainedObject
    from scene_distill.renderers.splat import Rendering

ORBIT = "orbit"
"""Folder of the turntable in the run folder."""

OBJECT_METHODS = ("dreamer-xl", "consistent3d")
"""Methods that have a command of their own in nerfstudio."""


def _trainer() -> type:
    from scene_distill.plugins.nerfstudio_object_trainer import ObjectTrainer

    return ObjectTrainer


@dataclass
class ObjectTrainerConfig(RunTrainerConfig):
    """An object from words under nerfstudio. OUTPUT_DIR/EXPERIMENT/METHOD/TIMESTAMP is the engine's run folder."""

    _target: type = field(default_factory=_trainer)
    """target class to instantiate"""

    dry_run = False  # no field: there is nothing to plan

    @property
    def text_method(self) -> TextMethod:
        """The method that is trained."""
        return TEXT_METHODS[str(self.method_name)]

    @property
    def settings_class(self) -> type:
        """The method's frozen config."""
        return self.text_method.config

    def object_config(self) -> TextTo3DConfig:
        """The engine's frozen config, with this run's folder as its output folder."""
        kind, folder = self.text_method.config, self.get_base_dir()
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(kind) if f.name != "prompts"}
        values |= {"output_dir": folder, "resume": values["resume"] and holds_run(folder)}
        return kind(prompts=(str(self.prompt),), **values)

    def set_timestamp(self) -> None:
        """Settle what is open before the config is saved, and where nerfstudio's tools will find the turntable."""
        super().set_timestamp()
        self.pipeline.datamanager.data = (self.get_base_dir() / ORBIT).absolute()

    def _tell_tools(self) -> None:
        """Nothing but the seed; there are no photos."""
        if not self.prompt or not self.prompt.strip():
            raise UserError('no prompt given; add --prompt "a red chair"')
        self.machine.seed = self.seed

    def set_experiment_name(self) -> None:
        """Name the experiment after the prompt."""
        from scene_distill.methods.text_to_3d.generate import slug

        if self.experiment_name is None and self.prompt:
            self.experiment_name = slug(self.prompt)
        super().set_experiment_name()


def object_pipeline(method: str) -> VanillaPipelineConfig:
    """Nerfstudio's pipeline around a method's objects."""
    return VanillaPipelineConfig(datamanager=SceneDatamanagerConfig(), model=ObjectModelConfig(method=method))


@dataclass
class ObjectModelConfig(SceneModelConfig):
    """Which method's objects the model holds."""

    _target: type = field(default_factory=lambda: ObjectModel)
    """target class to instantiate"""
    prompt: str | None = None
    """what was asked for"""


class ObjectModel(SceneModel):
    """Holds one made object."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take over an object of any size from its tensors."""
        from scene_distill.plugins.nerfstudio_checkpoint import scene_from

        method = TEXT_METHODS[self.config.method]
        self.scene = ObjectScene(scene_from(state_dict, method))  # type: ignore[arg-type, assignment]
        return nn.modules.module._IncompatibleKeys([], [])


@dataclass(frozen=True, eq=False)
class ObjectScene:
    """A made object as nerfstudio's model looks at scenes."""

    trained: TrainedObject

    def render(self, camera: Camera, *, with_depth: bool = False) -> Rendering:
        """The picture of a camera on black, with depth."""
        import torch

        from scene_distill.renderers.splat import Rendering

        views = self.trained.render([camera], torch.zeros(3))
        depth = None if views.depth_m is None else views.depth_m[0]
        if depth is None:
            depth = torch.zeros_like(views.alpha[0])
        return Rendering(views.image[0], views.alpha[0], depth, torch.zeros(0, 2), torch.zeros(0, 2))

    def save(self, path: Path) -> None:
        """Write the object's file."""
        self.trained.save(path)
