"""The entry modules load fast, in any order, and without the parts that need a compiled library."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("nerfstudio")

ROOT = Path(__file__).parents[2]
METHODS, DATAPARSER = "scene_distill.plugins.nerfstudio_methods", "scene_distill.plugins.nerfstudio_dataparser"
PROBE = """
import importlib, json, sys, time

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("scene_distill.renderers", "scene_distill.training", "pycolmap", "safetensors")):
            raise ImportError(name + " is not there")

for name in {before!r}:
    importlib.import_module(name)
sys.meta_path.insert(0, Forbidden())
started = time.process_time()
for name in {modules!r}:
    importlib.import_module(name)
seconds = time.process_time() - started
print(json.dumps({{"seconds": seconds, "nerfstudio": sorted(m for m in sys.modules if m.startswith("nerfstudio."))}}))
"""


def probe(before: list[str], modules: list[str]) -> dict:
    code = PROBE.format(before=before, modules=modules)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_both_load_in_a_blink_beside_nerfstudio_and_without_our_native_library() -> None:
    found = probe(["nerfstudio.configs.method_configs"], [DATAPARSER, METHODS])
    assert found["seconds"] < 0.3


def test_the_dataparser_loads_nothing_of_the_trainer() -> None:
    loaded = set(probe([], [DATAPARSER])["nerfstudio"])
    assert not {name for name in loaded if name.startswith(("nerfstudio.engine", "nerfstudio.models"))}
    assert "nerfstudio.data.datamanagers" not in loaded


def test_the_entry_points_of_the_project_are_these_specifications() -> None:
    from nerfstudio.plugins.registry_dataparser import DataParserSpecification
    from nerfstudio.plugins.types import MethodSpecification

    from scene_distill import methods
    from scene_distill.methods.text_to_3d.registry import TEXT_METHODS
    from scene_distill.plugins import nerfstudio_dataparser, nerfstudio_methods
    from scene_distill.plugins.nerfstudio_objects import OBJECT_METHODS

    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    named = points["nerfstudio.method_configs"]
    known = {**methods.METHODS, **{name: TEXT_METHODS[name] for name in OBJECT_METHODS}}
    assert set(named) == set(known), "every method has its entry point"
    for name, target in named.items():
        module, attribute = target.split(":")
        specification = getattr(nerfstudio_methods, attribute)
        assert module == nerfstudio_methods.__name__
        assert isinstance(specification, MethodSpecification)
        assert specification.config.method_name == name
        assert specification.description == known[name].description
    assert points["nerfstudio.dataparser_configs"] == {"scene-distill": f"{DATAPARSER}:scene_distill"}
    assert isinstance(nerfstudio_dataparser.scene_distill, DataParserSpecification)
