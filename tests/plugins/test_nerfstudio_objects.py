"""Text to 3D under nerfstudio: the same object as from our own command, opened by nerfstudio's tools."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("nerfstudio")

from scene_distill.core.configs import load_config
from scene_distill.data.captioned_shapes import BACKGROUND, Shot, Toy
from scene_distill.data.captioned_shapes_renderer import over
from scene_distill.methods.dreamer_xl.trained import TrainedGaussians
from scene_distill.methods.text_to_3d.generate import text_to_3d
from scene_distill.methods.text_to_3d.registry import find_text_method
from scene_distill.plugins.nerfstudio_methods import consistent3d, dreamer_xl
from scene_distill.priors.renders import RenderMixture, load_renders, save_renders

SETTINGS = {"prior": "mixture", "image_size": 16, "iterations": 6, "visits": 3, "start_count": 50, "growth_limit": 70,
            "objective": "sds", "threads": 1}  # fmt: skip


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shots = [Shot(Toy("red", "mug"), 30.0 * n, (20.0, 75.0)[n % 5 == 0], 3.2, (0, "mug")) for n in range(12)]
    images = np.stack([over(shot.picture(16), np.array(BACKGROUND)) for shot in shots])
    path = tmp_path_factory.mktemp("renders") / "renders.safetensors"
    save_renders(path, torch.from_numpy(images).permute(0, 3, 1, 2).clamp(0, 1), [shot.caption for shot in shots])
    return path


def trainer(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Any:
    """What ns-train sets up."""
    monkeypatch.setattr(sys, "argv", ["ns-train"])
    config = type(dreamer_xl.config)(**(SETTINGS | {"vis": "tensorboard"} | fields))
    config.set_timestamp()
    config.pipeline.model.prompt = config.prompt
    config.save_config()
    made = config.setup(local_rank=0, world_size=1)
    made.setup()
    return made


def test_an_object_is_our_commands_and_nerfstudio_opens_it(
    renders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    made = trainer(monkeypatch, prompt="a red mug", prior_path=renders, output_dir=tmp_path / "outputs")
    made.train()
    folder = made.training.folder.path
    assert folder.parts[-3:-1] == ("a-red-mug", "dreamer-xl")
    assert "next: ns-viewer --load-config" in capsys.readouterr().out
    (object_folder,) = (folder / "objects").iterdir()
    assert {"object.safetensors", "object.ply", "object.glb", "turntable.png"} <= {
        p.name for p in object_folder.iterdir()
    }

    method = find_text_method("dreamer-xl")
    config = load_config(method.config, folder / "config.yaml")
    prior = RenderMixture(*load_renders(renders))
    (ours,) = text_to_3d(method, config, ["a red mug"], prior, tmp_path / "ours")
    assert (ours.folder / "object.safetensors").read_bytes() == (object_folder / "object.safetensors").read_bytes()

    from nerfstudio.utils import eval_utils

    monkeypatch.setitem(eval_utils.all_methods, "dreamer-xl", dreamer_xl.config)  # as an installed distribution has it
    _, pipeline, _, step = eval_utils.eval_setup(folder / "config.yml", test_mode="test")
    assert step == 6
    camera, batch = pipeline.datamanager.next_eval_image(0)
    rgb = pipeline.model.get_outputs_for_camera(camera)["rgb"]
    assert rgb.shape == batch["image"].shape == (256, 256, 3)
    saved = TrainedGaussians.load(object_folder / "object.safetensors")
    orbit_camera = pipeline.datamanager.dataparser.frames("test")[0].camera
    assert torch.allclose(rgb, saved.render([orbit_camera], torch.zeros(3)).image[0], atol=1e-4)


def test_flags_are_the_methods_own_and_a_prompt_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for specification in (dreamer_xl, consistent3d):
        kind = type(specification.config)
        assert hasattr(specification.config, "guidance") or hasattr(specification.config, "coarse_guidance")
        monkeypatch.setattr(sys, "argv", ["ns-train"])
        with pytest.raises(SystemExit, match="no prompt given"):
            kind().set_timestamp()
        assert specification.config.pipeline.model.method == specification.config.method_name
