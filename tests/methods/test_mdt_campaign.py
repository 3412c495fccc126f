"""A slice of the campaign of benchmarks/mdt_dist.py: an arm is measured, kept, and refused when it is other."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mdt_dist as campaign
from campaign import Campaign

from scene_distill.cli import main as cli
from scene_distill.cli.distill import check
from scene_distill.core.errors import UserError
from scene_distill.methods.mdt_dist.config import TESTING, MDTConfig
from scene_distill.methods.mdt_dist.model import Walk


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A campaign of one arm and one seed, in its own folders."""
    folder = tmp_path_factory.mktemp("campaign")
    flags = [flag for flag in campaign.flags_of(TESTING) if "teacher" not in flag.split("=")[0] or "steps" in flag]
    return argparse.Namespace(
        world=folder / "world", runs=folder / "runs", results=folder / "results.json", arms=["VM"], seeds=1,
        samples=24, compared=8, workers=1, threads=1, student_steps=0, world_flags=flags, table=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(options):
    """Its results; trainings ran in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "ended", in_process)
        patch.setattr(campaign, "WALKS", [Walk(1, role="student"), Walk(2, "renoise", role="student")])
        patch.setattr(campaign, "TEACHERS", [Walk(25, role="teacher"), Walk(2, role="teacher")])
        patch.setattr(campaign, "TIMED", [Walk(25, role="teacher"), Walk(1, role="student")])
        results = Campaign(options.results)
        campaign.measure_all(options, results)
        return results


def in_process(command):
    threads = torch.get_num_threads()
    try:
        cli.main(command[3:])
    finally:
        torch.set_num_threads(threads)
    return 0, ""


def no_number(text):
    raise AssertionError(f"{text} is not JSON")


def test_an_arm_is_measured_and_told(done, options):
    results = json.loads(options.results.read_text(), parse_constant=no_number)
    assert set(results) == {
        "world",
        "latency",
        "teacher/0/25 euler",
        "teacher/0/2 euler",
        "VM/0/1 euler",
        "VM/0/2 renoise",
    }
    row = results["VM/0/1 euler"]
    assert row["training_seconds"] > 0 and row["teacher_evaluations"] == 2 * 3 * 6 * 6
    assert "overlap_with_fine" in row and "overlap_with_fine" not in results["VM/0/2 renoise"]
    table = campaign.tables(results).splitlines()
    line = next(line for line in table if line.startswith("| VM | 2 | renoise | 1 |"))
    assert line.split("|")[9].strip() == "–"
    one, many = (results[f"{arm}/0/{walk} euler"]["frechet_voxels"] for arm, walk in (("VM", 1), ("teacher", 25)))
    ratio = next(line for line in table if line.startswith("| VM | voxels |"))
    assert float(ratio.split("|")[3]) == pytest.approx(one / many, rel=0.01) and ratio.split("|")[4].strip() == "–"
    assert any(line.startswith("| teacher 25 euler |") and "| 1.0 |" in line for line in table)
    widths = [line.count("|") for line in table if line.startswith("| VM") or line.startswith("| arm")]
    assert len(set(widths)) == 2, "the rows' table, and the ratios'"


def test_a_campaign_that_is_done_does_nothing(done, options, monkeypatch):
    def nothing(*arguments):
        raise AssertionError("trains again")

    monkeypatch.setattr(campaign, "ended", nothing)
    before = options.results.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(campaign, "WALKS", [Walk(1, role="student")])
        patch.setattr(campaign, "TEACHERS", [Walk(25, role="teacher")])
        campaign.measure_all(options, Campaign(options.results))
    assert options.results.read_text() == before


def test_results_of_something_else_are_not_mixed(done, options):
    with pytest.raises(UserError, match="the world or the evaluation under other settings"):
        campaign.measure_all(argparse.Namespace(**vars(options) | {"samples": 20}), Campaign(options.results))
    longer = argparse.Namespace(**vars(options) | {"student_steps": 9})
    world = replace(TESTING, output_dir=options.world)
    with pytest.raises(UserError, match="VM, seed 0 under other settings"):
        campaign.measure_arm(longer, Campaign(options.results), "VM", 0, world, None, None)
    wanted = campaign.arm_config("VM", 0, world, longer)
    with pytest.raises(UserError, match="another --student-steps"):
        campaign.train(wanted.output_dir, [], wanted)
    with pytest.raises(UserError, match="another --width"):
        campaign.train(options.world, [], campaign.world_config([*options.world_flags, "--width", "64"]))


def test_a_model_of_other_teachers_is_refused(done, options, tmp_path):
    wanted = campaign.arm_config("VM", 0, replace(TESTING, output_dir=options.world), options)
    assert campaign.train(wanted.output_dir, [], wanted)
    note = wanted.output_dir / "teacher.json"
    kept = note.read_text()
    note.write_text('{"sha256": "0"}')
    try:
        with pytest.raises(UserError, match="distilled from other weights"):
            campaign.train(wanted.output_dir, [], wanted)
    finally:
        note.write_text(kept)


def test_two_campaigns_do_not_train_in_one_folder(tmp_path):
    with campaign.held(tmp_path / "arm"):
        with pytest.raises(UserError, match="another campaign trains"), campaign.held(tmp_path / "arm"):
            pass
        with campaign.held(tmp_path / "other"):
            pass
    with campaign.held(tmp_path / "arm"):
        pass


def test_states_that_are_no_numbers_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "evaluate_walk", lambda *_: {"evaluations": 2})
    results = Campaign(tmp_path / "results.json")
    campaign.measure(results, "VM", 0, None, None, Walk(1, role="student"), None, {})
    assert results.results["VM/0/1 euler"]["diverged"]
    floors = {"world": {"floors": {"frechet_voxels_raw": 1.0}, "autoencoding": {}}}
    assert "| VM | 1 | euler | 1 (1 diverged) |" in campaign.tables(results.results | floors)


def test_changed_defaults_are_other_settings(tmp_path):
    one = campaign.arm_config(
        "VM", 0, replace(TESTING, output_dir=tmp_path), argparse.Namespace(runs=tmp_path, student_steps=0)
    )
    assert campaign.settings_of(one) == campaign.settings_of(replace(one, output_dir=tmp_path / "other", workers=2))
    assert campaign.settings_of(one) != campaign.settings_of(replace(one, student_rate=1.0))


@pytest.mark.parametrize("arm", list(campaign.ARMS))
def test_flags_of_an_arm_say_what_it_is(arm, tmp_path):
    world = replace(TESTING, output_dir=tmp_path, student_steps=4000)
    options = argparse.Namespace(runs=tmp_path, student_steps=0)
    wanted = campaign.arm_config(arm, 2, world, options)
    read = tyro.cli(MDTConfig, args=campaign.flags_of(wanted), config=(tyro.conf.FlagCreatePairsOff,))
    assert replace(read, output_dir=wanted.output_dir) == wanted and wanted.seed == 2
    assert wanted.student_steps == (7000 if arm == "VM, equal evaluations" else 4000)
    check(wanted)
    flags = campaign.flags_of(replace(wanted, tangent_norm=False))
    assert "--no-tangent-norm" in flags


def test_a_training_ends_with_its_campaign(tmp_path):
    """A campaign that is told to end takes along what its training started."""
    sleep = [sys.executable, "-c", "import time; time.sleep(100)", str(tmp_path)]
    child = f"import subprocess; subprocess.Popen({sleep!r}).wait()"
    code = (
        f"import signal, sys; sys.path.insert(0, {str(Path(campaign.__file__).parent)!r}); import mdt_dist\n"
        "signal.signal(signal.SIGTERM, lambda n, f: sys.exit(1))\n"
        f"print('ready', flush=True); mdt_dist.ended([sys.executable, '-c', {child!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "ready"
        assert waits(lambda: running(tmp_path))
        process.terminate()
        assert process.wait(60) == 1
        assert waits(lambda: not running(tmp_path))
    finally:
        process.kill()
        for number in running(tmp_path):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def running(mark):
    """Numbers of processes that have the mark as an argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(mark).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def waits(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    return condition()
