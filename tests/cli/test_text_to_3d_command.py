"""The command text-to-3d: from prompts to files, alone and on two workers, and what it says when it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scene_distill.cli import text_to_3d as command
from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes import BACKGROUND, Shot, Toy
from scene_distill.data.captioned_shapes_renderer import over
from scene_distill.export.formats import read_splats
from scene_distill.priors.renders import save_renders

PROMPTS = ("a red mug", "a blue house")
SMALL = ["--image-size", "16", "--iterations", "6", "--visits", "3", "--start-count", "50", "--growth-limit", "70",
         "--lanes", "2", "--threads", "1", "--prior", "mixture"]  # fmt: skip


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shots = [Shot(Toy(*prompt.split()[1:]), 30.0 * n, 20.0, 3.2, (0, prompt)) for prompt in PROMPTS for n in range(12)]
    shots += [Shot(Toy(*prompt.split()[1:]), 30.0 * n, 75.0, 3.2, (0, prompt)) for prompt in PROMPTS for n in range(3)]
    images = np.stack([over(shot.picture(16), np.array(BACKGROUND)) for shot in shots])
    path = tmp_path_factory.mktemp("renders") / "renders.safetensors"
    save_renders(path, torch.from_numpy(images).permute(0, 3, 1, 2).clamp(0, 1), [shot.caption for shot in shots])
    return path


def test_prompts_become_turntables_and_files(
    renders: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# two toys\n\na blue house\n")
    flags = ["--method", "sds", "--prompts-file", str(prompts), "--prior-path", str(renders), *SMALL]
    monkeypatch.chdir(tmp_path)
    command.main(["a red mug", *flags])
    folder = tmp_path / "outputs" / "a-red-mug-and-1-more-sds"
    said = capsys.readouterr().out
    assert said.strip().splitlines()[-1].startswith("next: scene-distill view ")
    objects = sorted((folder / "objects").iterdir())
    assert [path.name for path in objects] == ["00-a-red-mug", "01-a-blue-house"]
    for path in objects:
        assert Image.open(path / "turntable.png").size == (8 * 192, 192)
        splats, about = read_splats(path / "object.ply")
        assert 1 <= len(splats) <= 70 and about.up == (0.0, 0.0, 1.0) and "prior mixture" in about.source
        assert len(read_splats(path / "object.glb")[0]) == len(splats)
    assert len((folder / "log.jsonl").read_text().splitlines()) == 6

    alone = [(path / "object.safetensors").read_bytes() for path in objects]
    words = [sys.executable, "-m", "scene_distill", "text-to-3d", *PROMPTS, "--method", "sds", "--prior-path",
             str(renders), *SMALL, "--workers", "2", "--output-dir", str(tmp_path / "two")]  # fmt: skip
    subprocess.run(words, check=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
    two = [(tmp_path / "two" / "objects" / path.name / "object.safetensors").read_bytes() for path in objects]
    assert two == alone


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "sds"], "there is no prompt"),
        (["a red mug", "--method", "dreamfusion"], "there is no text-to-3d method 'dreamfusion'"),
        (["a red mug", "--method"], "--method needs a value"),
        (["a red mug", "a red mug", "--prior", "mixture"], "given twice"),
        (["--prompts-file", "absent.txt"], "cannot read the prompts"),
        (["a red mug", "--config", "absent.yaml"], "cannot read the config file"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        command.main([*arguments, "--output-dir", str(tmp_path)] if "--method" not in arguments[-1:] else arguments)


def test_help_lists_the_methods(capsys: pytest.CaptureFixture) -> None:
    command.main([])
    said = capsys.readouterr().out
    assert "dreamer-xl" in said and "consistent3d" in said and "--prompts-file" in said


def test_published_settings_name_their_method() -> None:
    configs = Path(__file__).parents[2] / "configs"
    assert command.method_in(str(configs / "dreamer_xl_published.yaml")) == "dreamer-xl"
    assert command.method_in(str(configs / "lucid_dreamer_published.yaml")) == "ism"
