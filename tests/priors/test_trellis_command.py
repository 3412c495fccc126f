"""`scene-distill generate` with a folder laid out like the published TRELLIS models."""

import pytest
from tiny_pipelines import make_text_model, make_tokenizer
from tiny_trellis import CONTEXT, red_ball, write_dino, write_trellis

from scene_distill.cli import main as cli
from scene_distill.export.mesh_files import read_mesh
from scene_distill.export.ply import read_ply


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    pytest.importorskip("transformers", reason="pictures are read through transformers (extra 'diffusion')")
    folder = write_trellis(tmp_path_factory.mktemp("models") / "TRELLIS-tiny")
    write_dino(folder / "dinov2_vitl14_reg")
    red_ball().save(folder / "ball.png")
    return folder


def test_a_picture_becomes_files(models, tmp_path, capsys):
    flags = ["--model", str(models), "--image", str(models / "ball.png"), "--output-dir", str(tmp_path)]
    cli.main(["generate", *flags, "--steps", "1", "--guidance", "0", "--threads", "1"])
    printed = capsys.readouterr().out
    assert "2 steps of two flows" in printed and "next: scene-distill view" in printed
    splats, metadata = read_ply(tmp_path / "ball-0-0.ply")
    assert len(splats) > 0 and metadata.up == (0, 0, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"ball-0-0.ply", "ball-0-0.glb", "ball-0-0.png"}


def test_a_text_becomes_files(tmp_path, capsys):
    """A folder that reads texts, with a CLIP folder beside it, from prompt to Gaussians and mesh."""
    pytest.importorskip("transformers", reason="texts are read through transformers (extra 'diffusion')")
    models = write_trellis(tmp_path / "TRELLIS-text", "text")
    clip = tmp_path / "clip-vit-large-patch14"
    tokenizer = make_tokenizer(clip)
    tokenizer.save_pretrained(clip)
    make_text_model(tokenizer, CONTEXT, False).save_pretrained(clip)
    made = tmp_path / "made"
    cli.main(["generate", "a red car", "--model", str(models), "--output-dir", str(made), "--count", "2"])
    assert "6 steps of two flows" in capsys.readouterr().out
    for number in (0, 1):
        assert len(read_ply(made / f"a-red-car-0-{number}.ply")[0]) > 0
        assert len(read_mesh(made / f"a-red-car-0-{number}.glb")[0]) > 0
    with pytest.raises(SystemExit):
        cli.main(["generate", "--model", str(models), "--image", "photo.png"])
    assert "conditioned on text; give --prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--prompt", "a ball"], "conditioned on pictures; give --image"),
        ([], "conditioned on pictures; give --image"),
        (["--image", "nowhere.png"], "cannot be read as a picture"),
    ],
)
def test_what_the_folder_does_not_take_is_refused(models, flags, complaint, capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--model", str(models), *flags])
    assert complaint in capsys.readouterr().err
