"""The core trains, evaluates and exports with nothing but its own requirements."""

import subprocess
import sys
from pathlib import Path

from scene_distill.data.procedural_city import load_recipe, make_city

BLOCKED = ("nerfstudio", "torchvision", "gsplat", "open3d", "embreex", "trimesh", "viser", "cv2", "pycolmap", "plyfile")

PROGRAM = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name + " is an extra and must not be needed here")

sys.meta_path.insert(0, Blocker())
from scene_distill.cli.main import main

main(["doctor", "--data", {city!r}])
main(["train", "momentum-gs", "--data", {city!r}, "--output-dir", {run!r}, "--blocks", "2", "--lanes", "2",
      "--iterations", "8", "--image-width", "64"])
main(["eval", {run!r}])
main(["export", {run!r}, "--format", "ply", "splat", "--refine", "2"])
"""


def test_core_runs_without_any_extra(tmp_path: Path) -> None:
    city = make_city(load_recipe("city_test"), tmp_path / "city")
    program = PROGRAM.format(blocked=BLOCKED, city=str(city), run=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "exports" / "scene.splat").stat().st_size > 0
