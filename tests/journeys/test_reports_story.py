"""From a run watched in a terminal to its reports: the live board, events, metrics, a comparison, the doctor's page."""

import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest

from scene_distill.cli.main import main
from scene_distill.data.procedural_city import load_recipe, make_city

FLAGS = ["--blocks", "2", "--lanes", "2", "--iterations", "24", "--image-width", "80"]


def in_a_terminal(*arguments: str) -> str:
    """What a command writes to a terminal of 120 x 30 characters."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "scene_distill", *arguments], stdout=theirs, stderr=theirs, stdin=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    output, deadline = b"", time.monotonic() + 240
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                output += os.read(ours, 65_536)
            except OSError:
                break
        elif process.poll() is not None:
            break
    os.close(ours)
    assert process.wait(10) == 0, output.decode("utf-8", "replace")[-3000:]
    return output.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    return make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "city")


@pytest.fixture(scope="module")
def watched(city, tmp_path_factory) -> tuple[Path, str]:
    """A run trained in a terminal, and what the terminal got."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("runs") / "first"
    shown = in_a_terminal(
        "train", "splats", "--data", str(city), "--output-dir", str(folder), *FLAGS, "--vis", "tensorboard"
    )
    return folder, shown


def test_a_terminal_shows_a_live_board(watched):
    _, shown = watched
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "\x1b[" in shown and "48/48" in plain
    assert re.search(r"training blocks (0 1|1 0)", plain)
    for words in ("loss", "ssim", "PSNR", "dB", "splats on 2 lanes", "at most", " ms:", "backward", "render", "left"):
        assert words in plain, words
    assert "held-out views: PSNR" in plain and "next: scene-distill export" in plain


def test_events_were_written_while_it_trained(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = watched
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert events.Scalars("held_out/psnr")[0].value == pytest.approx(results["psnr"])
    assert events.Scalars("train/loss")[-1].step == 48


def test_the_report_says_what_was_trained_and_what_measured(watched, tmp_path):
    folder, _ = watched
    before = json.loads((folder / "metrics.json").read_text())
    main(["eval", str(folder), "--json", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["results"]["psnr"] == before["results"]["psnr"] and report["per_view"] == before["per_view"]
    assert report["trained"] == before["trained"] and report["held_out"] == before["held_out"]
    assert report["provenance"]["data"]["sha256"] == before["provenance"]["data"]["sha256"]


def test_runs_are_compared_on_one_page_and_other_splits_refused(watched, tmp_path, capsys):
    folder, _ = watched
    second = tmp_path / "second"
    shutil.copytree(folder, second)
    main(["compare", str(folder), str(second), "--output", str(tmp_path / "page.html"), "--pictures", "2"])
    assert "against the first +0.00 [+0.00, +0.00]" in capsys.readouterr().out
    assert "first against second" in (tmp_path / "page.html").read_text()
    settings = (second / "config.yaml").read_text()
    (second / "config.yaml").write_text(settings.replace("test_every: 8", "test_every: 5"))
    with pytest.raises(SystemExit) as stopped:
        main(["compare", str(folder), str(second), "--output", str(tmp_path / "other.html")])
    told = capsys.readouterr().err
    assert stopped.value.code == 1 and "holds out other views" in told and told.count("\n") == 1
    assert not (tmp_path / "other.html").exists()


def test_the_doctor_estimates_a_run_and_writes_its_page(city, tmp_path, capsys):
    main(["doctor", "--data", str(city), "--method", "splats", "--output", str(tmp_path / "page.html"),
          "--json", str(tmp_path / "found.json")])  # fmt: skip
    told = capsys.readouterr().out
    assert "poses " in told and "time: about" in told and "one file" in told
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["poses"]["groups"] == [24] and "memory: about" in found["plan"]
    assert "A run of splats" in (tmp_path / "page.html").read_text()
