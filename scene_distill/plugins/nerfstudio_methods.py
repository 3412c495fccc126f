"""The methods of `scene_distill.methods` as nerfstudio's: one entry point each, generated, none named here.

A name of `METHODS` becomes an attribute, with _ for -, which pyproject.toml names as entry point; the class of its
config becomes an attribute too, so that a saved config.yml finds it again. Nothing heavy is imported: the engine waits
until a run is set up.
"""

import importlib
import os

from nerfstudio.plugins.types import MethodSpecification

from scene_distill.methods import METHODS
from scene_distill.methods.text_to_3d.registry import TEXT_METHODS
from scene_distill.plugins.nerfstudio_config import MEANINGFUL, trainer_config_class
from scene_distill.plugins.nerfstudio_objects import OBJECT_METHODS, ObjectTrainerConfig, object_pipeline

for _entry in METHODS.values():
    _kind = trainer_config_class(_entry, __name__)
    globals()[_kind.__name__] = _kind
    globals()[_entry.name.replace("-", "_")] = MethodSpecification(_kind(), _entry.description)

_FIELDS = (*(name for name in MEANINGFUL if name != "data"), "prompt")
for _method in (TEXT_METHODS[name] for name in OBJECT_METHODS):
    _kind = trainer_config_class(_method, __name__, ObjectTrainerConfig, _FIELDS, object_pipeline, ("prompts",))
    globals()[_kind.__name__] = _kind
    globals()[_method.name.replace("-", "_")] = MethodSpecification(_kind(), _method.description)

if os.environ.get("SCENE_DISTILL_GSPLAT") == "1":
    importlib.import_module("scene_distill.plugins.gsplat_splatfacto").install_or_say()
