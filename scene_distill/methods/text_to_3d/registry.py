"""The methods of text to 3D by name: a config class, its defaults, and the module with its stages.

Nothing heavy is imported until a method is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.methods.text_to_3d.config import TextTo3DConfig
    from scene_distill.methods.text_to_3d.method import Recipe
    from scene_distill.methods.text_to_3d.representation import TrainedObject


@dataclass(frozen=True)
class TextMethod:
    """A method: its package has ``config`` with the config class and ``recipe`` with ``stages`` and ``load``;
    ``defaults`` are the config's values that make it this method."""

    name: str
    package: str
    config_class: str
    description: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> type[TextTo3DConfig]:
        """The flat config dataclass."""
        return getattr(import_module(f"{self.package}.config"), self.config_class)

    def default(self) -> TextTo3DConfig:
        """The config of the method as it is."""
        return self.config(**self.defaults)

    @property
    def recipe(self) -> Recipe:
        """Its stages."""
        return import_module(f"{self.package}.recipe").stages

    def load(self, path: Path) -> TrainedObject:
        """A trained object from its .safetensors file (``load`` of the recipe)."""
        return import_module(f"{self.package}.recipe").load(path)


def _gaussians(name: str, description: str, **defaults: Any) -> TextMethod:
    return TextMethod(name, "scene_distill.methods.dreamer_xl", "DreamerXLConfig", description, defaults)


PUBLISHED_PATH = {"interval": (100.0, 80.0), "gamma": 0.3, "strength": None}
"""How LucidDreamer and Dreamer XL come from s to t, and the weight of their gradients. The config's own defaults are
the best of them in the toy world (docs/text_to_3d.md); ISM and TSM under their own names keep these."""

TEXT_METHODS = {
    method.name: method
    for method in (
        _gaussians("dreamer-xl", "Gaussians, trajectory score matching, switches as measured best."),
        _gaussians("tsm", "Gaussians, trajectory score matching with its published path.", **PUBLISHED_PATH),
        _gaussians("ism", "Gaussians, interval score matching (LucidDreamer).", objective="ism", **PUBLISHED_PATH),
        _gaussians("sds", "Gaussians, score distillation sampling (DreamFusion).", objective="sds"),
        _gaussians("sjc", "Gaussians, score Jacobian chaining.", objective="sjc"),
        _gaussians("csd", "Gaussians, classifier score distillation.", objective="csd"),
        _gaussians("vsd", "Gaussians, variational score distillation (ProlificDreamer).", objective="vsd"),
        _gaussians(
            "cds",
            "Gaussians, consistency distillation sampling.",
            objective="cds",
            interval=(100.0, 100.0),
        ),
        _gaussians("sdi", "Gaussians, score distillation via inversion.", objective="sdi"),
        TextMethod(
            "consistent3d",
            "scene_distill.methods.consistent3d",
            "Consistent3DConfig",
            "A radiance field, then a mesh; consistency distillation sampling.",
        ),
    )
}


def find_text_method(name: str) -> TextMethod:
    """The method of a name; raises `UserError` that lists the names."""
    if name not in TEXT_METHODS:
        raise UserError(f"there is no text-to-3d method '{name}'; choose one of {', '.join(TEXT_METHODS)}")
    return TEXT_METHODS[name]
