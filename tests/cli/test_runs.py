"""A finished run: opened from any folder, refused before the work, told in sentences that can be followed."""

import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_scene import make_scene

from scene_distill.cli.main import main
from scene_distill.export import read_splats, write_splats
from scene_distill.export.metadata import SplatMetadata
from scene_distill.representations.splats import Splats


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data/town, and run/ that was trained on it by a relative path."""
    folder = tmp_path_factory.mktemp("place")
    make_scene(folder / "data" / "town", count=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["train", "splats", "--data", "data/town", "--output-dir", "run", "--blocks", "1", "--lanes", "1",
              "--iterations", "8", "--visits", "1"])  # fmt: skip
    return folder


def refused(capsys, *arguments) -> str:
    """The one sentence that a command stops with; nothing was said before."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.strip().count("\n") == 0
    assert said.out == "", "it was refused only after some work"
    return said.err


def test_a_run_on_a_relative_path_opens_from_any_folder(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["export", str(place / "run"), "--output-dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert len(read_splats(tmp_path / "out" / "scene.ply")[0]) > 0
    assert said.splitlines()[-1].startswith(f"next: scene-distill render {place / 'run'} --views all  ")
    for line in ("against the photos of 2 held-out views: PSNR ", "against the run's pictures of these views: PSNR "):
        assert said.count(line) == 1
    assert "-0.00" not in said and re.search(r"\(loss -?\d+\.\d\d dB\)", said) and "round trip" not in said


def test_data_that_moved_is_asked_for_and_repeated_in_hints(place, tmp_path, monkeypatch, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved town"
    shutil.copytree(place / "run", run)
    shutil.copytree(place / "data" / "town", moved)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(place / "data" / "town"), "data/town"))
    monkeypatch.chdir(tmp_path)
    for command in ("eval", "render", "export", "compare"):
        error = refused(capsys, command, run)
        assert f"data/town, which {config} names as the run's data, does not exist" in error and "--data" in error
    for command, following in (("eval", "compare"), ("render", "export"), ("export", "render")):
        main([command, str(run), "--data", str(moved)])
        last = capsys.readouterr().out.splitlines()[-1]
        assert f"next: scene-distill {following} " in last and f"--data '{moved}'" in last


def test_outputs_that_cannot_be_written_are_refused_before_the_work(place, tmp_path, capsys):
    (tmp_path / "note").write_text("mine")
    run, data, bad = place / "run", place / "data" / "town", tmp_path / "note" / "out"
    for arguments in (
        ["export", run, "--format", "mesh-tsdf", "ply", "--output-dir", bad],
        ["export", run, "--format", "points", "--output-dir", bad],
        ["compare", run, "--output", bad / "x.html"],
        ["eval", run, "--json", bad / "x.json"],
        ["render", run, "--output-dir", bad],
        ["bench", "rasterizer", "--json", bad / "x.json"],
    ):
        assert "note exists and is no folder" in refused(capsys, *arguments), arguments
    for flag in ("--output", "--json"):
        with pytest.raises(SystemExit):
            main(["doctor", "--quick", "--data", str(data), flag, str(bad / "x")])
        said = capsys.readouterr()
        assert "note exists and is no folder" in said.err and "extent " not in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--format", "splat", "spz", "--spz-version", "7"], "no .spz version 7"),
        (["--format", "splat", "--refine", "-1"], "--refine -1 is negative"),
        (["--format", "splat", "mesh-tsdf", "--mesh.voxel", "0"], "positive size"),
        (["--format", "splat", "mesh-tsdf", "--mesh.max-depth", "-5"], "positive size"),
        (["--format", "splat", "mesh-tsdf", "--mesh.voxel", "nan"], "positive size"),
        (["--format", "splat", "mesh-tsdf", "--mesh.faces", "3"], "at least 4"),
        (["--format", "splat", "mesh-tsdf", "--mesh.texture", "3"], "choose 16 to 16384"),
        (["--format", "splat", "mesh-poisson", "--mesh.trim", "-1"], "--mesh.trim -1"),
        (["--format", "splat", "mesh-density", "--mesh.level", "0"], "--mesh.level 0"),
        (["--format", "splat", "mesh-tsdf", "--mesh.min-component", "2"], "--mesh.min-component 2"),
        (["--format", "splat", "points", "--mesh.point-opacity", "1.5"], "--mesh.point-opacity 1.5"),
        (["--format", "mesh-tsfd"], "mesh-tsdf, mesh-poisson, mesh-density, points, cameras-colmap"),
        (["--format", "splat", "ply"], "is the source itself"),
    ],
)
def test_options_of_every_format_are_looked_at_before_anything_is_written(tmp_path, capsys, words, sentence):
    import numpy as np

    rng = np.random.default_rng(0)
    splats = Splats.from_points(rng.normal(size=(20, 3)), rng.integers(0, 255, (20, 3)).astype(np.uint8))
    write_splats(splats, tmp_path / "town.ply", SplatMetadata())
    assert sentence in refused(capsys, "export", tmp_path / "town.ply", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["town.ply"]


def test_a_missing_source_does_not_exist_whatever_is_asked(tmp_path, capsys):
    for arguments in (["nope.ply", "--format", "ply"], ["nope", "--format", "mesh-tsdf"]):
        path = tmp_path / arguments[0]
        assert f"{path} does not exist" in refused(capsys, "export", path, *arguments[1:])
    for command in ("eval", "render", "compare", "follow"):
        assert "nope does not exist" in refused(capsys, command, tmp_path / "nope")
    for kind in ("ply", "mesh-tsdf"):
        assert "is not a run folder" in refused(capsys, "export", tmp_path, "--format", kind)
