"""One worker: kills, resumes, eviction, damage, full disks. Several workers are in test_workers.py."""

import json
import os

import pytest
import torch
from tiny_method import digest, tiny_runtime, train

from scene_distill.blocks.checkpoint import MANIFEST, PREVIOUS
from scene_distill.blocks.reduction import LaneMean
from scene_distill.blocks.workers import Workers
from scene_distill.core.errors import UserError


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def killed_at(folder, lanes, step, **options):
    """Train from the last commit until the listener has heard ``step`` steps; whether it got there."""
    runtime = tiny_runtime(folder, 5, lanes, iterations=12, visits=4, **options)
    runtime.resume()
    heard = 0

    def listen(progress):
        nonlocal heard
        heard += 1
        if heard == step:
            raise Killed

    try:
        runtime.run(listen)
    except Killed:
        return True
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Digests of undisturbed runs of five units, by lanes."""
    folder = tmp_path_factory.mktemp("whole")
    return {lanes: train(folder / str(lanes), 5, lanes, iterations=12, visits=4) for lanes in (1, 2, 3, 5, 9)}


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 9])
def test_kill_and_resume_at_any_step_ends_with_the_same_bytes(tmp_path, whole, lanes):
    for first in (1, 5):
        folder = tmp_path / f"killed{first}"
        step = first
        while killed_at(folder, lanes, step):
            step += 2
        assert step > first
        assert train(folder, 5, lanes, iterations=12, visits=4) == whole[lanes]


@pytest.mark.parametrize("ram", [None, 0, 1500, 10**9])
def test_evicted_and_resident_units_train_alike(tmp_path, whole, ram):
    assert train(tmp_path, 5, 2, iterations=12, visits=4, ram_bytes=ram) == whole[2]


def test_every_step_is_heard_once_and_in_order_and_every_commit_is_told(tmp_path):
    runtime, heard, commits = tiny_runtime(tmp_path, 5, 2), [], []
    runtime.run(lambda progress: heard.append(progress.done_steps), lambda: commits.append(len(heard)))
    assert heard == sorted(set(heard)) and heard[-1] == runtime.total_steps == 5 * 40
    assert len(commits) == len(runtime.rounds)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["next_round"] == len(runtime.rounds) and manifest["seconds"] > 0


def test_the_folder_holds_only_what_the_last_two_manifests_name(tmp_path):
    train(tmp_path, 5, 2)
    named = set()
    for manifest in (MANIFEST, PREVIOUS):
        values = json.loads((tmp_path / manifest).read_text())
        named |= {values["shared"]["file"], *(entry["file"] for entry in values["units"].values())}
    assert {path.name for path in (tmp_path / "units").iterdir()} == named


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "changed":
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    elif how == "cut":
        path.write_bytes(bytes(data[:-3]))
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["changed", "cut", "missing"])
def test_a_damaged_state_is_named_and_the_round_before_still_works(tmp_path, how):
    runtime = tiny_runtime(tmp_path, 5, 2)
    runtime.run()
    expected, last = digest(runtime), runtime.rounds[-1].visits[0]
    victim = tmp_path / "units" / f"unit-{last.unit:04d}-sweep-{last.sweep:04d}.safetensors"
    damage(victim, how)
    with pytest.raises(UserError) as told:
        damaged = tiny_runtime(tmp_path, 5, 2)
        damaged.resume()
        damaged.states()[last.unit]()
    assert str(victim) in str(told.value) and f"rename {tmp_path / PREVIOUS} to {MANIFEST}" in str(told.value)
    (tmp_path / PREVIOUS).rename(tmp_path / MANIFEST)
    assert train(tmp_path, 5, 2) == expected


def test_damage_that_both_manifests_share_is_told_as_final(tmp_path):
    runtime = tiny_runtime(tmp_path, 5, 1)
    runtime.run()
    old = runtime.rounds[-3].visits[0]
    damage(tmp_path / "units" / f"unit-{old.unit:04d}-sweep-{old.sweep:04d}.safetensors", "cut")
    with pytest.raises(UserError, match="start the run anew"):
        tiny_runtime(tmp_path, 5, 1).resume()


def test_damage_found_while_training_stops_it_with_the_sentence(tmp_path):
    assert killed_at(tmp_path, 1, 22)
    victims = sorted((tmp_path / "units").glob("unit-*"))
    for victim in victims:
        damage(victim, "changed")
    with pytest.raises(UserError, match="is damaged"):
        killed_at(tmp_path, 1, 10**6)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"next_round": 1}'])
def test_a_damaged_manifest_is_one_sentence(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError):
        tiny_runtime(tmp_path, 5, 2).resume()


def test_another_schedule_is_refused(tmp_path):
    train(tmp_path, 5, 2)
    with pytest.raises(UserError, match="another schedule"):
        tiny_runtime(tmp_path, 5, 3).resume()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, whole, monkeypatch):
    assert killed_at(tmp_path, 2, 15)
    before = (tmp_path / MANIFEST).read_text()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        with pytest.raises(UserError, match="No space left"):
            killed_at(tmp_path, 2, 10**6)
    assert (tmp_path / MANIFEST).read_text() == before
    assert not [path for path in (tmp_path / "units").iterdir() if path.name.startswith(".")]
    assert train(tmp_path, 5, 2, iterations=12, visits=4) == whole[2]


def test_the_mean_is_taken_in_lane_order_over_the_lanes_that_have_a_gradient():
    lanes = {3: [torch.tensor([-1e8])], 0: [torch.tensor([1e8])], 1: [torch.tensor([1.0])]}
    mean = LaneMean(Workers(), [0] * 4).mean(lanes, [torch.zeros(1)])
    assert torch.equal(mean[0], ((torch.tensor([1e8]) + 1.0) + -1e8) / 3)
    assert LaneMean(Workers(), [0] * 4).mean({}, [torch.zeros(1)]) is None
    assert LaneMean(Workers(), [0] * 4).mean({}, []) is None
