"""One file or small folder per paper; the only place that wires rooms together.

`METHODS` is what the command line, the plugins and the viewer see of them: a name, a flat config dataclass, and two
functions. Nothing heavy is imported until a method is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.core.configs import RunConfig
    from scene_distill.data.images import ImageCache
    from scene_distill.data.scene import Scene
    from scene_distill.training.evaluation import TrainedScene
    from scene_distill.training.loop import TrainableScene


@dataclass(frozen=True)
class MethodEntry:
    """A method by name, with its module, config class and one line of description."""

    name: str
    package: str
    config_class: str
    description: str

    @property
    def config(self) -> type[RunConfig]:
        """The flat config dataclass."""
        return getattr(import_module(f"{self.package}.config"), self.config_class)

    def build(self, config: RunConfig, scene: Scene, images: ImageCache, *prepared: Any) -> TrainableScene:
        """The method bound to a scene; ``prepared`` is another worker's `training.loop.PreparedScene.preparation`."""
        return import_module(f"{self.package}.method").build(config, scene, images, *prepared)

    def load(self, path: Path) -> TrainedScene:
        """A trained model from its .safetensors file."""
        return import_module(f"{self.package}.method").load(path)


METHODS = {
    "momentum-gs": MethodEntry(
        "momentum-gs",
        "scene_distill.methods.momentum_gs",
        "MomentumGSConfig",
        "A city in blocks that share one Gaussian decoder with a momentum teacher.",
    ),
    "splats": MethodEntry(
        "splats",
        "scene_distill.methods.splats",
        "SplatsConfig",
        "Plain 3D Gaussian splatting, in one block or many.",
    ),
}


def find_method(name: str) -> MethodEntry:
    """The method of a name; raises `UserError` that lists the names."""
    if name not in METHODS:
        raise UserError(f"there is no method '{name}'; choose one of {', '.join(METHODS)}")
    return METHODS[name]
