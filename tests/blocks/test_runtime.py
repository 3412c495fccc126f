"""The runtime on a method small enough to follow by hand: units hold a number, the shared state another."""

import json
import os

import pytest
import torch

from scene_distill.blocks.runtime import MANIFEST, Runtime, mean_over_lanes
from scene_distill.blocks.schedule import make_schedule
from scene_distill.blocks.store import Entry, UnitStore
from scene_distill.core import seeds
from scene_distill.core.errors import UserError


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


class ToyShared:
    def __init__(self):
        self.weight, self.scores, self.frozen_applies = torch.ones(3), {}, 0

    def begin_step(self, shared_step, frozen):
        self.frozen = frozen

    def apply(self, gradients, shared_step):
        assert not self.frozen
        self.weight = self.weight - 0.1 * gradients[0] + 1e-3 * shared_step

    def publish(self, unit, scores):
        self.scores[unit] = scores["norm"]

    def state(self):
        return {"weight": self.weight.clone(), "scores": torch.tensor(sorted(self.scores.items())).double()}

    def restore(self, state):
        self.weight = state["weight"]
        self.scores = {int(u): s for u, s in state["scores"].tolist()}


class ToyUnit:
    def __init__(self, unit, state, shared):
        self.unit, self.value, self.shared = unit, state["value"].clone(), shared

    def step(self, step):
        noise = torch.randn(3, generator=seeds.torch_generator(0, self.unit, step))
        self.value = 0.9 * self.value + 0.1 * self.shared.weight + 0.01 * noise
        return [self.value * self.shared.weight], {"loss": float(self.value.sum())}

    def close(self):
        return {"value": self.value}, {"norm": float(self.value.norm())}


class ToyMethod:
    def __init__(self):
        self.shared = ToyShared()

    def first_state(self, unit):
        return {"value": torch.full((3,), float(unit))}

    def open(self, unit, state, visit, round_):
        return ToyUnit(unit, state, self.shared)


def run(folder, *, units=5, lanes=2, ram=0, kill_at=None):
    runtime = Runtime(ToyMethod(), make_schedule(units, lanes, 40, 8), folder, ram)
    runtime.resume()
    heard = 0

    def listen(progress):
        nonlocal heard
        heard += 1
        if heard == kill_at:
            raise Killed

    runtime.run(listen)
    values = {unit: load()["value"] for unit, load in runtime.states().items()}
    return runtime.method.shared.weight, values


def assert_equal(a, b):
    assert torch.equal(a[0], b[0])
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(a[1][unit], b[1][unit]) for unit in a[1])


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 9])
def test_kill_and_resume_at_any_step_ends_with_the_same_bytes(tmp_path, lanes):
    whole = run(tmp_path / "whole", lanes=lanes)
    for kill_at in (1, 7, 23, 41, 77):
        folder = tmp_path / f"killed{kill_at}"
        for attempt in range(100):
            try:
                resumed = run(folder, lanes=lanes, kill_at=kill_at + attempt)
                break
            except Killed:
                continue
        assert_equal(whole, resumed)


def test_evicted_and_resident_units_train_alike(tmp_path):
    assert_equal(run(tmp_path / "disk", ram=0), run(tmp_path / "ram", ram=10**9))


def test_the_folder_holds_only_what_the_manifest_names(tmp_path):
    run(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    named = {manifest["shared"]["file"], *(entry["file"] for entry in manifest["units"].values())}
    assert {path.name for path in (tmp_path / "units").iterdir()} == named


def test_a_damaged_state_is_told_and_not_used(tmp_path):
    run(tmp_path)
    victim = next((tmp_path / "units").glob("unit-0003*"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(bytes(data))
    runtime = Runtime(ToyMethod(), make_schedule(5, 2, 40, 8), tmp_path)
    runtime.resume()
    with pytest.raises(UserError, match="damaged"):
        runtime.states()[3]()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"next_round": 1}'])
def test_a_damaged_manifest_is_one_sentence(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UserError):
        Runtime(ToyMethod(), make_schedule(5, 2, 40, 8), tmp_path).resume()


def test_another_schedule_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match="another schedule"):
        Runtime(ToyMethod(), make_schedule(5, 3, 40, 8), tmp_path).resume()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=20)
    before = (tmp_path / MANIFEST).read_text()

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(UserError, match="No space left"):
        run(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / MANIFEST).read_text() == before
    assert not [path for path in (tmp_path / "units").iterdir() if path.name.startswith(".")]
    assert_equal(run(tmp_path), run(tmp_path / "whole"))


def test_the_mean_is_taken_in_lane_order():
    lanes = [[torch.tensor([1e8])], [torch.tensor([1.0])], [torch.tensor([-1e8])]]
    expected = ((torch.tensor([1e8]) + 1.0) + -1e8) / 3
    assert torch.equal(mean_over_lanes(lanes)[0], expected)


def test_store_keeps_ram_within_budget(tmp_path):
    store = UnitStore(tmp_path, ram_bytes=1000)
    entries = [store.save(f"s{i}", {"x": torch.full((100,), float(i))}) for i in range(5)]
    assert sum(t.numel() * 4 for state in store._ram.values() for t in state.values()) <= 1000
    assert all(float(store.load(entry)["x"][0]) == i for i, entry in enumerate(entries))
    with pytest.raises(UserError, match="cannot read"):
        store.load(Entry("missing.safetensors", ""))
