"""`scene-distill view`: what it is asked for, and what it refuses before it listens."""

import io
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from scene_distill.cli.view import View, kind_of, main, opened
from scene_distill.core.errors import UserError
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import write_ply
from scene_distill.export.splat import write_splat
from scene_distill.representations.splats import Splats


@pytest.fixture()
def splats() -> Splats:
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(4)).numpy() * 4
    return Splats.from_points(points, (points * 60).astype("uint8"))


@pytest.mark.parametrize("write, extension", [(write_ply, "ply"), (write_splat, "splat")])
def test_a_file_on_standard_input_is_known_by_its_first_bytes(splats, tmp_path, monkeypatch, write, extension):
    path = tmp_path / f"file.{extension}"
    write(splats, path, SplatMetadata())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    session, films = opened(View("-"))
    assert len(session.looking.scene) == 60 and session.title == "standard input" and films == Path("films")


def test_marks_of_formats():
    assert kind_of(b"ply\nformat ascii 1.0\n") == "ply"
    assert kind_of(b"ply\nformat\nproperty uint packed_position\n") == "compressed.ply"
    assert kind_of(b"\x1f\x8b\x08") == kind_of(b"NGSP") == "spz"
    assert kind_of(b"PK\x03\x04") == "sog" and kind_of(b"glTF") == "glb" and kind_of(b"\x00" * 32) == "splat"


@pytest.mark.parametrize("arguments, why", [
    (["nowhere"], "does not exist"), ([".", "--port", "99999"], "no port"), ([".", "--host", "0.0.0.0"], "token"),
    ([".", "--token", "short"], "too short"), ([__file__], "format"),
])  # fmt: skip
def test_what_cannot_be_served_is_refused_with_a_sentence(arguments, why, tmp_path):
    with pytest.raises(UserError, match=why):
        main(arguments)


def test_a_port_that_is_taken_is_a_sentence(splats, tmp_path):
    import socket

    path = tmp_path / "file.ply"
    write_ply(splats, path, SplatMetadata())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="choose another --port"):
            main([str(path), "--port", str(taken.getsockname()[1])])


def test_the_command_serves_until_it_is_interrupted(splats, tmp_path):
    path = tmp_path / "file.ply"
    write_ply(splats, path, SplatMetadata())
    hears_interrupts = (  # a shell starts what runs in its background deaf to them
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from scene_distill.cli.main import main; main()"
    )
    options = ["view", str(path), "--port", "0", "--host", "0.0.0.0", "--token", "new"]
    command, environment = [sys.executable, "-c", hears_interrupts, *options], os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        url = first.split()[2]
        assert "?token=" in url and process.stdout.readline().startswith("next: scene-distill view RUN")
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert b"scene-distill viewer" in answer.read()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(url.split("?")[0], timeout=20)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "viewer stopped" in process.stdout.read()
