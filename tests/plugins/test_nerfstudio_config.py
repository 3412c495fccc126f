"""Nerfstudio's mutable mirror of our frozen configs: same words, defaults and help; and how a run finds its folder."""

import dataclasses
import os
import sys
import typing
from pathlib import Path

import pytest
import yaml

pytest.importorskip("nerfstudio")

import tyro

from scene_distill.core.configs import RunConfig
from scene_distill.methods import METHODS
from scene_distill.plugins.nerfstudio_config import RunTrainerConfig, field_helps
from scene_distill.plugins.nerfstudio_methods import momentum_gs

ENTRY = METHODS["momentum-gs"]
KIND = type(momentum_gs.config)


def parsed(*words: str) -> RunTrainerConfig:
    return tyro.cli(tyro.conf.FlagConversionOff[KIND], args=list(words), default=KIND())


def settled(monkeypatch: pytest.MonkeyPatch, *words: str) -> RunTrainerConfig:
    """The config as ns-train has it when training starts."""
    monkeypatch.setattr(sys, "argv", ["ns-train", "momentum-gs", *words])
    config = parsed(*words)
    config.set_timestamp()
    return config


def test_every_word_of_ours_is_there_with_its_default_and_help(capsys: pytest.CaptureFixture) -> None:
    mine, theirs = KIND(), ENTRY.config()
    hints, ours = typing.get_type_hints(KIND), typing.get_type_hints(ENTRY.config)
    for field in dataclasses.fields(theirs):
        if field.name != "output_dir":
            assert hints[field.name] == ours[field.name], field.name
            assert getattr(mine, field.name) == getattr(theirs, field.name), field.name
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in ("lanes", "seed", "momentum", "lr_until"):
        assert f"--{name.replace('_', '-')}" in shown
        assert field_helps(ENTRY.config)[name][:25] in shown


def test_helps_are_the_strings_below_the_fields() -> None:
    helps = field_helps(RunConfig)
    assert set(helps) == {field.name for field in dataclasses.fields(RunConfig)}
    assert helps["iterations"] == "Steps per block, one view a step. Every schedule is a fraction of it."
    assert all(helps.values())


def test_flags_reach_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = (
        "--data town --blocks 6 --lanes 3 --iterations 50 --image-width 200 --seed 9 --max-memory 8GB --test-every 5"
    )
    config = settled(monkeypatch, *words.split(), "--output-dir", "parent", "--growth-cells", "4", "2", "1")
    engine = config.run_config()
    assert (engine.blocks, engine.lanes, engine.iterations, engine.image_width, engine.seed) == (6, 3, 50, 200, 9)
    assert engine.max_memory == "8GB" and engine.growth_cells == (4.0, 2.0, 1.0)
    assert engine.output_dir == Path("parent/town/momentum-gs") / config.timestamp
    assert not engine.resume and not engine.dry_run
    assert config.pipeline.datamanager.image_width == 200
    assert config.pipeline.datamanager.dataparser.test_every == 5


def test_a_flag_without_effect_is_refused() -> None:
    for words in (["--max-num-iterations", "5"], ["--machine.num-machines", "2"], ["--steps-per-save", "5"]):
        with pytest.raises(SystemExit) as stopped:
            parsed("--data", "town", *words)
        assert stopped.value.code not in (0, None)


def test_nerfstudios_launcher_never_sees_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settled(monkeypatch, "--data", "town", "--machine.num-devices", "3")
    assert config.machine.num_devices == 1
    assert config.workers == config.run_config().workers == 3
    assert settled(monkeypatch, "--data", "town", "--workers", "2").run_config().workers == 2
    with pytest.raises(SystemExit, match="differ"):
        settled(monkeypatch, "--data", "town", "--workers", "2", "--machine.num-devices", "3")


def test_the_device_and_the_address_are_chosen_by_themselves() -> None:
    import torch

    assert KIND().machine.device_type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert KIND().viewer.websocket_host == "127.0.0.1"


def test_a_settings_file_gives_what_no_flag_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setting.yaml").write_text(
        "method: momentum-gs\nblocks: 5\nlanes: 1\niterations: 70\nlr_features: [0.1, 0.2]\n"
    )
    default = str(KIND().iterations)
    config = settled(monkeypatch, "--data", "town", "--config", "setting.yaml", "--lanes=2", "--iterations", default)
    assert (config.blocks, config.lanes, config.iterations) == (5, 2, int(default))
    assert config.lr_features == (0.1, 0.2)
    assert config.config is None, "it is part of the saved config now"


def test_a_bad_settings_file_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("blocs: 5\n")
    with pytest.raises(SystemExit, match="unknown setting 'blocs'"):
        settled(monkeypatch, "--data", "town", "--config", str(tmp_path / "bad.yaml"))
    with pytest.raises(SystemExit, match="no data given"):
        settled(monkeypatch)


def test_the_experiment_is_called_like_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "old.town").mkdir()
    (tmp_path / "old.town" / "transforms.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "old.town")
    for data in (".", "transforms.json", "../old.town/"):
        assert settled(monkeypatch, "--data", data).experiment_name == "old.town"


def begin(run: Path, age_s: float) -> None:
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("method: momentum-gs\n")
    stamp = os.stat(run / "config.yaml").st_mtime - age_s
    os.utime(run / "config.yaml", (stamp, stamp))


def test_resume_goes_on_with_the_newest_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "outputs" / "town" / "momentum-gs"
    begin(runs / "2030-01-01_000000", 60)
    begin(runs / "by-hand", 10)
    begin(tmp_path / "outputs" / "village" / "momentum-gs" / "2031-01-01_000000", 0)
    (runs / "2032-01-01_000000").mkdir()  # begun by nerfstudio, killed before the engine wrote anything
    config = settled(monkeypatch, "--data", "town", "--resume", "True")
    assert config.timestamp == "by-hand"
    assert config.run_config().resume
    fresh = settled(monkeypatch, "--data", "town")
    assert fresh.timestamp not in ("by-hand", "{timestamp}")


def test_resume_without_a_run_says_so_and_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = settled(monkeypatch, "--data", "town", "--resume", "True")
    assert "there is no run to resume" in capsys.readouterr().out
    assert not config.run_config().resume


def test_a_saved_config_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = settled(monkeypatch, "--data", "town", "--blocks", "3")
    config.save_config()
    path = config.get_base_dir() / "config.yml"
    back = yaml.load(path.read_text(), Loader=yaml.Loader)
    assert type(back) is KIND
    assert back == config
    assert back.run_config() == config.run_config()


def test_a_dry_run_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settled(monkeypatch, "--data", "town", "--dry-run", "True").save_config()
    assert list(tmp_path.iterdir()) == []
