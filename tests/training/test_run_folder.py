"""A run folder keeps where its data is, from wherever it is opened, and says what it is not."""

from dataclasses import replace
from pathlib import Path

import pytest

from scene_distill.core.configs import save_config
from scene_distill.core.errors import UserError
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.training.run_folder import RunFolder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with a folder of data in it and a list beside it."""
    (tmp_path / "data" / "city").mkdir(parents=True)
    (tmp_path / "held_out.txt").write_text("a.jpg\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONFIG = SplatsConfig(data=Path("data/city"), test_list=Path("held_out.txt"), output_dir=Path("run"), resume=True)


def test_paths_of_data_are_kept_absolute(place):
    RunFolder(Path("run")).open(CONFIG, "splats")
    kept = RunFolder(Path("run")).saved_config(SplatsConfig, "splats")
    assert kept.data == place / "data" / "city" and kept.test_list == place / "held_out.txt"
    assert replace(kept, data=CONFIG.data, test_list=CONFIG.test_list) == CONFIG


@pytest.mark.parametrize("stored", ["relative", "absolute"])
@pytest.mark.parametrize("given", [Path("data/city"), Path("data/../data/city"), "absolute"])
def test_the_same_data_resumes_however_it_is_written(place, stored, given):
    old = CONFIG if stored == "relative" else replace(CONFIG, data=place / "data" / "city")
    folder = RunFolder(place / "run")
    folder.path.mkdir()
    save_config(old, folder.config, "splats")  # as versions before this one did
    folder.open(replace(CONFIG, data=place / "data" / "city" if given == "absolute" else given), "splats")
    with pytest.raises(UserError, match="was started with --data"):
        folder.open(replace(CONFIG, data=place / "data"), "splats")


def test_a_resumed_run_from_another_folder(place, monkeypatch):
    RunFolder(place / "run").open(CONFIG, "splats")
    monkeypatch.chdir(place / "data")
    RunFolder(place / "run").open(replace(CONFIG, data=Path("city"), test_list=Path("../held_out.txt")), "splats")


def test_what_is_no_run_folder_is_told_apart(place):
    with pytest.raises(UserError, match="gone does not exist"):
        RunFolder(place / "gone").method()
    with pytest.raises(UserError, match="data is not a run folder"):
        RunFolder(place / "data").method()
    (place / "note").write_text("")
    with pytest.raises(UserError, match="note exists and is no folder"):
        RunFolder(place / "note" / "run").open(CONFIG, "splats")
