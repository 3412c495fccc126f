"""The viewer beside a run: before its first commit, while it trains, after a kill, when it is finished."""

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from running_viewer import served, train

from scene_distill.core.errors import UserError
from scene_distill.methods import find_method
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.training.control import send, training_state
from scene_distill.training.loop import prepare
from scene_distill.viewer.log_follower import MOST_POINTS, LogFollower
from scene_distill.viewer.sessions import open_session


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_looking_at_a_run_in_training_shows_its_commits_and_changes_nothing(town_config, town_run, tmp_path):
    run, rounds = tmp_path / "run", []

    def listen(step):
        if step.done_steps == 2 * 4 * 3:  # the end of the third of six rounds
            send(run, {"command": "pause"})
        rounds.append(step.round)

    thread = threading.Thread(target=train, args=(town_config, run, listen), daemon=True)
    thread.start()
    wait_for(lambda: (training_state(run) or {}).get("state") == "paused")
    wait_for((run / "checkpoint" / "checkpoint.json").exists)
    before = contents(run)
    session = open_session(run)
    hello, status = session.describe(), session.status()
    assert hello["kind"] == "last commit" and hello["primitives"] > 100
    assert status["state"] == "paused" and status["step"] == 24 and status["steps"] == 48
    assert [(lane["lane"], lane["worker"]) for lane in status["lanes"]] == [(0, 0), (1, 0)]
    assert {lane["block"] for lane in status["lanes"]} == {0, 1}
    assert session.looking.teacher is not None
    assert contents(run) == before
    assert "next round" in session.steer({"command": "set", "name": "dssim", "value": 0.3})
    with pytest.raises(UserError):
        session.steer({"command": "set", "name": "seed", "value": 1})
    session.steer({"command": "resume"})
    thread.join(120)
    assert rounds[-1] == 5
    version = session.version
    assert session.poll() and session.version == version + 1
    assert session.describe()["kind"] == "saved run" and session.status()["state"] == "finished"
    assert session.status()["tunables"]["dssim"] == 0.3
    assert not session.poll()
    assert weights(run) != weights(town_run)


def test_the_merged_commit_is_what_training_itself_would_merge(town_config, tmp_path):
    run = tmp_path / "killed"

    def die(step):
        if step.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(town_config, run, die)
    session = open_session(run)
    assert session.status()["state"] == "stopped"
    entry = find_method("momentum-gs")
    training = prepare(entry.name, replace(town_config, output_dir=run, resume=True), entry.build)
    training.begin()
    expected, mine = training.merged(), session.looking.scene.scene
    assert torch.equal(mine.anchors.positions, expected.anchors.positions)
    assert torch.equal(mine.block, expected.block)
    assert all(torch.equal(a, b) for a, b in zip(mine.decoders[0].weights, expected.decoders[0].weights, strict=True))
    teacher = training.method.shared.teacher.decoder
    shown = session.looking.teacher.scene.decoders[0]
    assert all(torch.equal(a, b) for a, b in zip(shown.weights, teacher.weights, strict=True))


def test_before_the_first_commit_there_are_the_points(town_config, tmp_path):
    entry = find_method("momentum-gs")
    training = prepare(entry.name, replace(town_config, output_dir=tmp_path / "new"), entry.build)
    training.begin()
    session = open_session(tmp_path / "new")
    assert session.describe()["kind"] == "first points" and len(session.looking.scene) == len(training.scene.points)
    assert not session.poll()


def test_a_run_of_plain_splats_and_one_without_its_data(town, town_run, tmp_path):
    entry = find_method("splats")
    config = SplatsConfig(data=town, blocks=2, lanes=1, iterations=8, visits=2, image_width=96)
    training = prepare(entry.name, replace(config, output_dir=tmp_path / "splats"), entry.build)
    training.begin()
    training.train()
    hello = open_session(tmp_path / "splats").describe()
    assert hello["primitive"] == "splats" and len(hello["blocks"]) == 2
    moved = tmp_path / "moved"
    shutil.copytree(town_run, moved)
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace(str(town), str(tmp_path / "gone")))
    hello = open_session(moved).describe()
    assert hello["frames"] == [] and "gone" in hello["facts"]["photos"]
    assert len(open_session(moved, town).describe()["frames"]) == 24
    with pytest.raises(UserError):
        open_session(tmp_path / "nothing")
    with pytest.raises(UserError):
        open_session(tmp_path)


def test_a_damaged_checkpoint_is_a_sentence_and_a_later_one_is_taken_up(town_config, town_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(town_run, run)
    (run / "model.safetensors").unlink()
    session = open_session(run)
    manifest = run / "checkpoint" / "checkpoint.json"
    whole = manifest.read_text()
    manifest.write_text(whole[:40])
    session._next_merge = 0.0
    with pytest.raises(UserError):
        session.poll()
    manifest.write_text(whole)
    session._next_merge = 0.0
    assert session.poll()


def test_lanes_of_several_workers_are_told_apart(town_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(town_run, run)
    state = json.loads((run / "training.json").read_text())
    log = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join(log[: len(log) // 2]))
    for workers, owners in ((2, [0, 1]), (3, [0, 1])):
        alive = {"state": "training", "workers": workers, "pid": os.getpid()}
        (run / "training.json").write_text(json.dumps(state | alive))
        lanes = open_session(run).status()["lanes"]
        assert sorted((lane["lane"], lane["worker"]) for lane in lanes) == list(enumerate(owners)), workers


def test_the_log_is_followed_through_rewinds_and_half_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    follower = LogFollower(log)
    assert not follower.follow()

    def line(step: int, loss: float) -> str:
        return json.dumps({"round": 0, "step": step, "seconds": 1.0, "units": {"0": {"loss": loss}}}) + "\n"

    log.write_text(line(1, 0.5) + line(2, 0.4)[:20])
    assert follower.follow() and follower.curves["loss"].points == [(1, 0.5)]
    with log.open("a") as file:
        file.write(line(2, 0.4)[20:] + "not json\n[]\n" + json.dumps({"units": 3}) + "\n")
    assert follower.follow() and follower.curves["loss"].points[-1] == (2, 0.4)
    log.write_text(line(1, 0.9))
    assert follower.follow() and follower.curves["loss"].points == [(1, 0.9)]


def test_curves_of_long_runs_stay_short_and_keep_their_mean(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = (
        json.dumps({"round": 0, "step": s, "seconds": 1.0, "units": {"3": {"loss": float(s)}}}) for s in range(9999)
    )
    log.write_text("\n".join(lines) + "\n")
    follower = LogFollower(log)
    follower.follow()
    points = follower.history()["run"]["loss"]
    assert MOST_POINTS / 2 <= len(points) <= MOST_POINTS + 1
    assert sum(value for _, value in points) / len(points) == pytest.approx(9998 / 2, rel=0.01)
    assert len(follower.history()["blocks"]["3"]["loss"]) <= 151


def test_a_browser_is_told_when_the_scene_has_changed(town_run, tmp_path):
    from websockets.sync.client import connect

    run = tmp_path / "run"
    shutil.copytree(town_run, run)
    with served(run, tmp_path) as viewer, connect(viewer.url.replace("http", "ws") + "/ws") as socket:
        versions = []
        end = time.monotonic() + 60
        touched = False
        while len(versions) < 2 and time.monotonic() < end:
            message = json.loads(socket.recv(timeout=60))
            if message["type"] == "hello":
                versions.append(message["version"])
                if not touched:
                    (run / "model.safetensors").touch()
                    touched = True
        assert versions == [1, 2]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
