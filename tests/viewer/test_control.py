"""A run that is steered from outside, and one that is not."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from running_viewer import train

from scene_distill.core.configs import save_config
from scene_distill.core.errors import UserError
from scene_distill.methods import find_method
from scene_distill.training.control import checked_change, send, training_state, tunables
from scene_distill.training.loop import prepare


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def answers(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["control"] for line in lines if "control" in line]


def test_a_run_that_is_paused_and_stepped_ends_with_the_same_bytes(town_config, town_run, tmp_path):
    run = tmp_path / "paused"
    seen = []

    def listen(step):
        seen.append(step.done_steps)
        if len(seen) == 3:
            send(run, {"command": "pause"})

    thread = threading.Thread(target=train, args=(town_config, run, listen), daemon=True)
    thread.start()
    wait_for(lambda: (training_state(run) or {}).get("state") == "paused")
    assert len(seen) == 3
    send(run, {"command": "step", "steps": 2})
    wait_for(lambda: len(seen) == 5 and training_state(run)["state"] == "paused")
    time.sleep(0.2)
    assert len(seen) == 5
    send(run, {"command": "resume"})
    thread.join(60)
    assert training_state(run)["state"] == "finished"
    assert weights(run) == weights(town_run)
    assert [answer["command"] for answer in answers(run)] == ["pause", "step", "resume"]


def test_a_changed_rate_takes_effect_at_the_next_round_and_survives_a_kill(town_config, town_run, tmp_path):
    def ask(run):
        def listen(step):
            if step.done_steps == 2:
                send(run, {"command": "set", "name": "lr_features", "value": [0.05, 0.01]})

        return listen

    whole = tmp_path / "whole"
    train(town_config, whole, ask(whole))
    assert weights(whole) != weights(town_run)
    [answer] = answers(whole)
    assert answer["from"] == [0.015, 0.005] and answer["to"] == [0.05, 0.01] and answer["from_round"] == 1

    killed = tmp_path / "killed"
    asked = ask(killed)

    def die(step):
        asked(step)
        if step.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(town_config, killed, die)
    assert training_state(killed)["state"] == "stopped"
    train(replace(town_config, resume=True), killed)
    assert weights(killed) == weights(whole)
    assert len(answers(killed)) == 1


def test_what_cannot_be_done_is_refused_in_the_log_and_training_goes_on(town_config, town_run, tmp_path):
    run = tmp_path / "refused"
    commands = [
        {"command": "set", "name": "seed", "value": 3}, {"command": "set", "name": "lr_features", "value": [1, -1]},
        {"command": "set", "name": "dssim", "value": [1, 2]}, {"command": "dance"}, {"command": "step", "steps": True},
    ]  # fmt: skip

    def listen(step):
        if step.done_steps == 2:
            for command in commands:
                send(run, command)
            with (run / "control.jsonl").open("ab") as file:
                file.write(b"\xff\xfe not json\n[1,2]\n" + b"[" * 3000 + b"\n")

    train(town_config, run, listen)
    assert len(answers(run)) == len(commands)
    assert all("refused" in answer for answer in answers(run))
    assert weights(run) == weights(town_run)


def test_a_change_whose_round_was_lost_holds_from_the_same_round_again(town_config, tmp_path):
    def ask(run, die=False):
        def listen(step):
            seen[step.round] = seen.get(step.round, 0) + 1
            if step.round == 3 and seen[3] == 1:
                send(run, {"command": "set", "name": "lr_features", "value": [0.05, 0.01]})
            if die and step.round == 3 and seen[3] == 3:
                raise KeyboardInterrupt

        seen: dict[int, int] = {}
        return listen

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(town_config, whole, ask(whole))
    with pytest.raises(KeyboardInterrupt):
        train(town_config, killed, ask(killed, die=True))
    train(replace(town_config, resume=True), killed)
    assert [answer["from_round"] for answer in answers(killed)] == [4]
    assert weights(killed) == weights(whole)


def steered(config, run: Path, *words: str) -> subprocess.CompletedProcess:
    config = replace(config, output_dir=run)
    save_config(config, run.with_suffix(".yaml"), "momentum-gs")
    command = [sys.executable, str(Path(__file__).with_name("steered_run.py")), str(run.with_suffix(".yaml")), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_several_workers_pause_step_and_change_together(town_config, town_run, tmp_path):
    """Two processes, of which one hears: told the same in the same rounds, they train what one process trains."""
    alone, two = tmp_path / "alone", tmp_path / "two"
    train(town_config, alone, lambda step: ask_once(alone))
    done = steered(replace(town_config, workers=2, threads=1), two)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert second == first + 2
    assert [answer["command"] for answer in answers(two)] == ["set", "pause", "step", "resume"]
    assert answers(two)[0]["from_round"] == answers(alone)[0]["from_round"] == 1
    assert weights(two) == weights(alone) != weights(town_run)

    killed = tmp_path / "killed"
    assert steered(replace(town_config, workers=2, threads=1), killed, "--die-in-round", "3").returncode != 0
    train(replace(town_config, resume=True), killed)
    assert weights(killed) == weights(alone)


def ask_once(run: Path) -> None:
    if not (run / "control.jsonl").exists():
        send(run, {"command": "set", "name": "lr_features", "value": [0.05, 0.01]})


def test_only_rates_and_loss_weights_may_change(town_config):
    known = tunables(town_config)
    assert {"lr_features", "consistency", "dssim"} <= set(known)
    assert not {"seed", "iterations", "blocks", "lr_until", "momentum"} & set(known)
    assert checked_change(town_config, "lr_features", [0.1, 0.2]) == (0.1, 0.2)
    assert checked_change(town_config, "consistency", 3) == 3.0
    wrong = [("lr_features", 0.1), ("lr_features", [0.1]), ("lr_features", [2.0, 0.1]), ("nothing", 1), (None, 1)]
    for name, value in [*wrong, *(("dssim", value) for value in (-1, float("nan"), True, "1"))]:
        with pytest.raises(UserError):
            checked_change(town_config, name, value)


def test_the_log_tells_the_scoreboard_once_a_round(town_run):
    lines = [json.loads(line) for line in (town_run / "log.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "scores" in line]
    assert [line["round"] for line in scores] == [1, 2, 3, 4, 5]
    assert all(5 < psnr < 60 for line in scores for psnr, _ in line["scores"].values())


def test_training_state_knows_a_process_that_is_gone(town_run, tmp_path):
    assert training_state(town_run)["state"] == "finished"
    assert training_state(tmp_path) is None
    state = json.loads((town_run / "training.json").read_text()) | {"state": "training", "pid": 2**22 - 1}
    (tmp_path / "training.json").write_text(json.dumps(state))
    assert training_state(tmp_path)["state"] == "stopped"
    (tmp_path / "training.json").write_text("{")
    assert training_state(tmp_path) is None


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_prepare_writes_nothing(town_config, tmp_path):
    entry = find_method("momentum-gs")
    prepare(entry.name, replace(town_config, output_dir=tmp_path / "run"), entry.build)
    assert not (tmp_path / "run").exists()
