"""A city trained by one, two and three processes, from the command line and from nerfstudio: the same bytes."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = ["--blocks", "4", "--lanes", "3", "--iterations", "24", "--visits", "4", "--image-width", "100", "--seed", "3",
         "--assignment", "render", "--coarse-iterations", "12"]  # fmt: skip


def run(*command: str | Path, folder: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=280, check=False, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(city: Path, folder: Path, *flags: str, launcher: tuple[str, ...] = ()) -> str:
    words = ["scene_distill", "train", "momentum-gs", "--data", city, "--output-dir", folder, *FLAGS, *flags]
    return run(sys.executable, *launcher, "-m", *words)


def digests(run_folder: Path) -> dict[str, str]:
    """Of the merged scene and of every state in the checkpoint."""
    files = [run_folder / "model.safetensors", *(run_folder / "checkpoint" / "units").iterdir()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "city"
    run(sys.executable, "-m", "scene_distill", "data", "city", folder, "--recipe", "city_test")
    return folder


@pytest.fixture(scope="module")
def alone(city, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    train(city, folder)
    return folder


def test_two_workers_train_the_same_bytes_and_only_one_of_them_talks(city, alone, tmp_path):
    printed = train(city, tmp_path, "--workers", "2", "--threads", "1")
    assert digests(tmp_path) == digests(alone)
    assert printed.count("held-out views") == printed.count("run folder") == 1
    names = {path.name for path in tmp_path.iterdir()}
    assert {"metrics.json", "log.jsonl", "renders", "config.yaml"} <= names
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in log if "units" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 4 * 24


def test_three_workers_of_torchrun_train_the_same_bytes(city, alone, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3")
    train(city, tmp_path, "--resume", launcher=launcher)
    assert digests(tmp_path) == digests(alone)


def test_nerfstudio_reaches_the_same_workers(city, alone, tmp_path):
    pytest.importorskip("nerfstudio")
    ns_train = Path(sys.executable).with_name("ns-train")
    where = ["--output-dir", tmp_path, "--experiment-name", "town", "--timestamp", "run", "--vis", "tensorboard"]
    run(ns_train, "momentum-gs", "--data", city, *FLAGS, *where, "--machine.num-devices", "2")
    assert digests(tmp_path / "town" / "momentum-gs" / "run") == digests(alone)
