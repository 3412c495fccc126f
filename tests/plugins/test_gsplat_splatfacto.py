"""Stock splatfacto without a GPU: trained by ns-train, read by ns-eval; and nothing is touched without the variable."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nerfstudio")
pytest.importorskip("gsplat")
if torch.cuda.is_available():
    pytest.skip("splatfacto has a GPU here and is left alone", allow_module_level=True)

from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.plugins.gsplat_splatfacto import accept_numpy_scalars

ROOT = Path(__file__).parents[2]
ITERATIONS = 80
LOOK = """
import json, time, torch
from torchmetrics.image import lpip
from nerfstudio.models import splatfacto
before = [torch.Tensor.cuda, splatfacto.SplatfactoModel.populate_modules,
          splatfacto.SplatfactoModel.get_image_metrics_and_images, splatfacto.get_viewmat,
          lpip.LearnedPerceptualImagePatchSimilarity]
from nerfstudio.engine import schedulers
before.append(schedulers.ExponentialDecayScheduler.get_scheduler)
import nerfstudio.configs.config_utils, nerfstudio.engine.trainer, nerfstudio.pipelines.base_pipeline
import sys
started = time.process_time()
import scene_distill.plugins.nerfstudio_methods
seconds = time.process_time() - started
import nerfstudio.configs.method_configs as configs
after = [torch.Tensor.cuda, splatfacto.SplatfactoModel.populate_modules,
         splatfacto.SplatfactoModel.get_image_metrics_and_images, splatfacto.get_viewmat,
         lpip.LearnedPerceptualImagePatchSimilarity, schedulers.ExponentialDecayScheduler.get_scheduler]
print(json.dumps({
    "rasterization": type(splatfacto.rasterization).__name__,
    "same": [a is b for a, b in zip(before, after)],
    "device": configs.all_methods["splatfacto"].machine.device_type,
    "other": configs.all_methods["nerfacto"].machine.device_type,
    "loaded": sorted(name for name in sys.modules if name.startswith("scene_distill.plugins.gsplat")),
    "seconds": seconds,
}))
"""


def environment(place: Path, value: str | None) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if name != "SCENE_DISTILL_GSPLAT"}
    kept |= {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT)]), "PYTHONWARNINGS": "ignore", "COLUMNS": "200",
             "OMP_WAIT_POLICY": "passive"}  # fmt: skip
    return kept | ({} if value is None else {"SCENE_DISTILL_GSPLAT": value})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the entry points of pyproject.toml as an installed distribution has them."""
    folder = tmp_path_factory.mktemp("splatfacto")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = folder / f"scene_distill-{project['version']}.dist-info"
    metadata.mkdir()
    words = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(words)
    groups = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
              for group, points in project["entry-points"].items()]  # fmt: skip
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    return folder


def run(place: Path, value: str | None, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=place, env=environment(place, value), capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def program(name: str) -> Path:
    return Path(sys.executable).parent / name


def test_without_the_variable_nothing_is_touched(place: Path) -> None:
    found = json.loads(run(place, None, "-c", LOOK).splitlines()[-1])
    assert all(found["same"]) and found["rasterization"] == "function"
    assert found["device"] == "cuda"
    assert not found["loaded"]


def test_with_the_variable_the_obstacles_are_moved_and_other_methods_left_alone(place: Path) -> None:
    found = json.loads(run(place, "1", "-c", LOOK).splitlines()[-1])
    assert found["same"] == [False, False, False, False, True, False] and found["rasterization"] == "StandIn"
    assert (found["device"], found["other"]) == ("cpu", "cuda")


@pytest.mark.timeout(600)
def test_stock_splatfacto_trains_on_the_cpu_and_ns_eval_reads_the_run(place: Path) -> None:
    make_city(load_recipe("city_test"), place / "city")
    output = run(
        place, "1", program("ns-train"), "splatfacto", "--data", "city", "--max-num-iterations", ITERATIONS,
        "--vis", "tensorboard", "--timestamp", "run", "--pipeline.model.num-downscales", 0,
        "--steps-per-eval-image", 79, "--pipeline.model.cull-alpha-thresh", 0.05,
        "--pipeline.model.warmup-length", 5, "--pipeline.model.refine-every", 20,
        "colmap", "--colmap-path", "sparse/0", "--downscale-factor", 1,
    )  # fmt: skip
    assert "LPIPS is left out of the metrics" in output
    assert "GSs duplicated" in output, "splats grew by absolute gradients"
    folder = place / "outputs" / "city" / "splatfacto" / "run"
    state = torch.load(folder / "nerfstudio_models" / f"step-{ITERATIONS - 1:09d}.ckpt", weights_only=True)
    assert type(state["schedulers"]["means"]["_last_lr"][0]) is float
    run(place, "1", program("ns-eval"), "--load-config", folder / "config.yml", "--output-path", "eval.json")
    results = json.loads((place / "eval.json").read_text())["results"]
    assert "lpips" not in results
    assert results["psnr"] > 14 and results["ssim"] > 0.3


def test_checkpoints_of_stock_nerfstudio_are_read(tmp_path: Path) -> None:
    torch.save({"_last_lr": [np.float64(0.25)]}, tmp_path / "old.ckpt")
    with torch.serialization.safe_globals([]):
        accept_numpy_scalars()
        assert torch.load(tmp_path / "old.ckpt")["_last_lr"] == [0.25]
