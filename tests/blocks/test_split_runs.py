"""Runs in which units are split: every step is made, kills do not show, and the number of workers does not either."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from divisible_method import divisible_runtime
from tiny_method import digest

from scene_distill.blocks.checkpoint import MANIFEST

UNITS, LANES, LIMIT = 3, 2, 420
"""A row and its moment are 48 bytes: with headers a unit of more than about 5 rows is split."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


def trained(folder, *, limit=LIMIT, ram=0, kill_at=None):
    runtime = divisible_runtime(folder, UNITS, LANES, limit, ram_bytes=ram)
    runtime.resume()
    heard = 0

    def listen(progress):
        nonlocal heard
        heard += 1
        if heard == kill_at:
            raise Killed

    runtime.run(listen)
    return runtime


def test_units_are_split_and_all_make_their_steps(tmp_path):
    steps = Counter()
    runtime = divisible_runtime(tmp_path, UNITS, LANES, LIMIT)
    runtime.run(lambda progress: steps.update(unit for unit, _ in progress.lanes))
    splits = runtime.method.splits
    assert splits and [s.added for s in splits] == list(range(UNITS, UNITS + len(splits)))
    before = {s.added: steps[s.added] for s in splits}
    assert all(steps[unit] == 40 for unit in range(UNITS))
    assert all(0 < count <= 40 for count in before.values())
    assert sum(steps.values()) == runtime.total_steps == runtime.done_steps
    assert set(runtime.states()) == set(range(UNITS + len(splits)))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert [entry["added"] for entry in manifest["splits"]] == [s.added for s in splits]


def test_the_two_parts_open_with_the_rows_of_the_unit(tmp_path):
    runtime = divisible_runtime(tmp_path, 1, 1, LIMIT)
    method, events = runtime.method, []
    cut, opened = method.cut, method.open

    def watched_cut(unit, state):
        events.append(("cut", unit, len(state["rows"])))
        return cut(unit, state)

    def watched_open(unit, state, visit, round_):
        events.append(("open", unit, len(state["rows"])))
        return opened(unit, state, visit, round_)

    method.cut, method.open = watched_cut, watched_open
    runtime.run()
    first = next(index for index, event in enumerate(events) if event[0] == "cut")
    (_, unit, rows), low, high = events[first : first + 3]
    assert (unit, low[:2], high[:2]) == (0, ("open", 0), ("open", 1))
    assert low[2] + high[2] == rows and min(low[2], high[2]) > 0


def test_without_a_limit_nothing_is_split(tmp_path):
    runtime = trained(tmp_path, limit=0)
    assert runtime.method.splits == [] and set(runtime.states()) == set(range(UNITS))


def test_a_unit_that_cannot_be_cut_goes_on_whole(tmp_path, capsys):
    runtime = divisible_runtime(tmp_path, UNITS, LANES, LIMIT)
    runtime.method.cut = lambda unit, state: None
    runtime.run()
    assert runtime.method.splits == []
    assert capsys.readouterr().out.count("block 0 outgrew its memory") == 1


@pytest.mark.parametrize("ram", [0, 10**9])
def test_kill_and_resume_around_splits_ends_with_the_same_bytes(tmp_path, ram):
    whole = trained(tmp_path / "whole", ram=ram)
    assert len(whole.method.splits) >= 3
    for kill_at in (1, 6, 17, 29, 44):
        for attempt in range(200):
            try:
                resumed = trained(tmp_path / f"killed{kill_at}", ram=ram, kill_at=kill_at + attempt)
                break
            except Killed:
                continue
        assert digest(resumed) == digest(whole)
        assert resumed.method.splits == whole.method.splits


@pytest.mark.parametrize("workers", [2, 3])
def test_splits_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    script = Path(__file__).with_name("divisible_method.py")
    found = []
    for count in (1, workers):
        command = [sys.executable, script, tmp_path / str(count), UNITS, LANES, LIMIT, "--workers", count]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1] and found[0]["splits"] >= 3
