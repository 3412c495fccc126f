"""States on disk with a tier in RAM that obeys its budget."""

import threading

import pytest
import torch

from scene_distill.blocks import store as store_module
from scene_distill.blocks.store import DamagedState, Entry, UnitStore


def state(value, count=100):
    return {"x": torch.full((count,), float(value))}


@pytest.mark.parametrize("ram", [None, 0, 1000, 10**6])
def test_what_was_saved_is_loaded_and_ram_obeys_its_budget(tmp_path, ram):
    store = UnitStore(tmp_path, ram)
    entries = [store.save(f"s{i}", state(i)) for i in range(5)]
    assert store.held_bytes == (5 * 400 if ram == 10**6 else 400 * ((ram or 0) // 400))
    assert [float(store.load(entry)["x"][0]) for entry in entries] == [0, 1, 2, 3, 4]
    assert store.held_bytes == 0


def test_a_missing_or_changed_file_is_named(tmp_path):
    store = UnitStore(tmp_path)
    entry = store.save("a", state(1))
    with pytest.raises(DamagedState, match="checksum"):
        store.load(Entry("a", entry.bytes, "0" * 32))
    with pytest.raises(DamagedState, match="should have"):
        store.load(Entry("a", entry.bytes + 1, entry.checksum))
    with pytest.raises(DamagedState, match=str(tmp_path / "b")):
        store.load(Entry("b", 1, ""))


def test_a_state_that_is_being_written_is_lent_as_a_copy(tmp_path, monkeypatch):
    store, started, go_on = UnitStore(tmp_path), threading.Event(), threading.Event()
    write = store_module.write_atomically

    def slow(*arguments):
        started.set()
        assert go_on.wait(10)
        write(*arguments)

    monkeypatch.setattr(store_module, "write_atomically", slow)
    store.keep("a", state(1))
    writer = threading.Thread(target=store.write, args=("a",))
    writer.start()
    assert started.wait(10)
    lent = store.take("a")
    lent["x"] += 1
    go_on.set()
    writer.join()
    assert store.take("a") is None, "written states leave RAM where there is no budget to keep them"
    assert float(UnitStore(tmp_path).load(Entry("a", *entry_of(tmp_path / "a")))["x"][0]) == 1


def entry_of(path):
    data = path.read_bytes()
    return len(data), store_module.checksum(data)


def test_states_fetched_ahead_wait_for_their_round_and_never_exceed_the_budget(tmp_path):
    store = UnitStore(tmp_path, 1100)
    entries = [store.save(f"s{i}", state(i)) for i in range(4)]
    store = UnitStore(tmp_path, 1100)
    for entry in entries:
        store.fetch(entry)
    assert [store.holds(entry.file) for entry in entries] == [True, True, False, False]
    store.save("new", state(9))
    assert store.held_bytes <= 1100
    assert store.holds(entries[0].file) and store.holds(entries[1].file)
    (tmp_path / entries[0].file).unlink()
    assert float(store.load(entries[0])["x"][0]) == 0, "from RAM"
    store.fetch(Entry("gone", 1, ""))
    assert not store.holds("gone")


def test_a_budget_that_only_writing_exceeds_is_told(tmp_path):
    store = UnitStore(tmp_path, 500)
    store.keep("a", state(1))
    assert not store.over_budget
    store.keep("b", state(2))
    assert store.over_budget
    store.write("a")
    assert not store.over_budget and not store.holds("a") and store.holds("b")


def test_a_smaller_budget_drops_the_states_that_were_used_longest_ago(tmp_path):
    store = UnitStore(tmp_path, 1000)
    entries = [store.save(f"s{i}", state(i)) for i in range(2)]
    store.shrink(500)
    assert not store.holds("s0") and store.holds("s1")
    store.empty()
    assert store.held_bytes == 0
    assert [float(store.load(entry)["x"][0]) for entry in entries] == [0, 1]


def test_some_tensors_of_a_file_are_read_and_a_damaged_file_is_told(tmp_path):
    store = UnitStore(tmp_path)
    entry = store.save("a", state(1) | {"y": torch.arange(3)})
    assert store.read_some(entry, ["y"])["y"].tolist() == [0, 1, 2]
    (tmp_path / "a").write_bytes(b"damaged")
    with pytest.raises(DamagedState, match="should have"):
        store.read_some(entry, ["y"])
