"""TensorBoard and wandb hear what the log says; both are read back from the files they write."""

import json
import sys

import pytest

from scene_distill.cli.train import take_listeners
from scene_distill.core.configs import save_config
from scene_distill.core.errors import UserError
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.training import listeners
from scene_distill.training.listeners import Audience, audience
from scene_distill.training.run_folder import RunFolder
from scene_distill.training.run_log import Follower, parsed, read_curves


def line(step: int, told: bool = False, seconds: float | None = None) -> dict:
    units = {"0": {"loss": 1 / step, "splats": 10.0}, "3": {"loss": 3 / step, "splats": 30.0}}
    found = {"round": step // 4, "step": step, "seconds": step / 2 if seconds is None else seconds, "units": units}
    extra = {"psnr": 20.0 + step, "stages_ms": {"render": 4.0}, "memory_bytes": 1000, "peak_memory_bytes": 2000}
    return found | extra if told else found


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    save_config(SplatsConfig(seed=5), run.config, "splats")
    for step in range(2, 21, 2):
        run.append(line(step, told=step % 4 == 0))
    return run


def finished(folder: RunFolder) -> None:
    folder.metrics.write_text(json.dumps({"results": {"psnr": 31.5, "ssim": 0.9}}))


def test_tensorboard_events_say_what_the_log_says(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    finished(folder)
    for _ in range(2):  # following again starts over instead of adding the same once more
        with audience(folder.path, ["tensorboard"]) as heard:
            heard.finish()
    assert heard.steps == 20
    events = accumulator.EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/psnr")] == [(s, 20.0 + s) for s in (4, 8, 12, 16, 20)]
    assert [e.step for e in events.Scalars("train/loss")] == [4, 8, 12, 16, 20]
    assert events.Scalars("train/loss")[0].value == pytest.approx((2 / 2 + 2 / 4) / 2)
    assert events.Scalars("blocks/3/loss")[-1].value == pytest.approx((3 / 18 + 3 / 20) / 2)
    assert events.Scalars("stages_ms/render")[0].value == 4.0
    assert [(e.step, e.value) for e in events.Scalars("held_out/psnr")] == [(20, 31.5)]
    assert "seed: 5" in str(events.Tensors("config/text_summary")[0])


def test_wandb_writes_an_offline_run_that_says_what_the_log_says(folder, monkeypatch, capsys):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.setenv("WANDB_MODE", "offline")
    finished(folder)
    with audience(folder.path, ["wandb"]) as heard:
        heard.finish()
    assert capsys.readouterr().out == "", "a listener that fails is told and left out"
    (path,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    store, rows, config, summary = DataStore(), [], {}, {}
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        elif kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "summary":
            summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
    assert [row["_step"] for row in rows] == [4, 8, 12, 16, 20]
    assert [row["train/psnr"] for row in rows] == [24, 28, 32, 36, 40]
    assert config["seed"] == 5 and summary["held_out/psnr"] == 31.5


def test_a_growing_log_is_followed_whole_lines_only_and_none_twice(folder):
    follower = Follower(folder.log)
    assert [s.step for s in follower.new_steps()] == list(range(2, 21, 2)) and not list(follower.new_steps())
    text = json.dumps(line(22)) + "\n"
    with folder.log.open("a") as file:
        file.write(text[:30])
        file.flush()
        assert not list(follower.new_steps())
        file.write(text[30:] + "{broken\n" + '{"round": 5, "step": 22, "scores": {"0": [1, 2]}}\n')
        file.flush()
        assert [s.step for s in follower.new_steps()] == [22]
    folder.rewind_log(4)  # a resumed run drops rounds that were not committed, and trains them again
    folder.append(line(16))
    assert not list(follower.new_steps())
    for step in (18, 20, 22, 24):
        folder.append(line(step))
    assert [s.step for s in follower.new_steps()] == [24]
    assert not list(Follower(folder.path / "nowhere.jsonl").new_steps())


def test_curves_are_means_over_stretches_and_time_goes_on_over_a_resume(folder):
    folder.append(line(22, seconds=0.5))
    curves = read_curves(folder.log, ("train/loss", "train/psnr", "train/consistency"))
    assert set(curves) == {"train/loss", "train/psnr"}
    assert curves["train/loss"].seconds[-1] == pytest.approx(10.5) and curves["train/loss"].steps[-1] == 22
    assert curves["train/psnr"].values.tolist() == [24, 28, 32, 36, 40]
    for step in range(24, 5000):
        folder.append(line(step, seconds=step))
    long = read_curves(folder.log, ("train/loss",))["train/loss"]
    assert len(long.steps) == 300 and (long.steps[1:] > long.steps[:-1]).all() and long.values[0] > long.values[-1]
    assert read_curves(folder.path / "nowhere.jsonl", ("train/loss",)) == {}


def test_lines_that_are_no_steps_and_values_that_are_no_numbers_are_left_out():
    assert parsed("") is None and parsed("{") is None and parsed("[1]") is None and parsed('{"step": 3}') is None
    found = parsed('{"step": 3, "seconds": 1, "units": {"0": {"loss": NaN, "l1": 2.0}}}')
    assert found.figures == {"train/l1": 2.0, "blocks/0/l1": 2.0}


def test_a_listener_that_fails_is_told_once_and_left_out(folder, capsys):
    class Broken:
        def step(self, step):
            raise ConnectionError("no server\nand a long story")

    class Healthy:
        heard = 0

        def step(self, step):
            self.heard += 1

    healthy = Healthy()
    Audience(folder, [Broken(), healthy]).look()
    assert healthy.heard == 5
    assert capsys.readouterr().out.count("Broken fails and is left out: no server\n") == 1


def test_missing_programs_and_accounts_are_one_sentence(folder, monkeypatch):
    with pytest.raises(UserError, match="nothing called 'tensorbord' listens"), audience(folder.path, ["tensorbord"]):
        pass
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"TensorBoard is not installed; pip install 'scene-distill\[tensorboard\]'"):
        take_listeners(["--vis", "tensorboard"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; pip install 'scene-distill\[wandb\]'"):
        listeners.check_listeners(["wandb"])


def test_vis_is_taken_out_of_the_flags_in_every_spelling(monkeypatch):
    monkeypatch.setattr(listeners, "check_listeners", lambda names: None)
    assert take_listeners(["--seed", "1"]) == (["--seed", "1"], ())
    for flags in (["--vis", "tensorboard", "wandb"], ["--vis=tensorboard+wandb"], ["--vis", "tensorboard,wandb"]):
        assert take_listeners([*flags, "--seed", "1"]) == (["--seed", "1"], ("tensorboard", "wandb"))
    with pytest.raises(UserError, match="--vis needs a name"):
        take_listeners(["--vis", "--seed", "1"])
