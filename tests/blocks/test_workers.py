"""Several processes: any number trains the same bytes, and one that is gone is told, whoever started them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_method import train

from scene_distill.blocks.workers import Place
from scene_distill.core.errors import UserError

PROGRAM = str(Path(__file__).with_name("tiny_method.py"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
SETTINGS = ("8x4", "5x2", "3x4")
LENGTH = ("--iterations", "6", "--visits", "3")
PATIENCE_S = 200.0


def tiny(*words: str | Path, launcher: tuple[str, ...] = (), folder: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, *launcher, PROGRAM, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=ENVIRONMENT
    )


def torchrun(*words: str) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", *words)


def digests(process: subprocess.Popen) -> dict[str, str]:
    out, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, told
    return json.loads(out.splitlines()[-1])


def children(pid: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what, process: subprocess.Popen) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)


def committed(folder: Path, setting: str, rounds: int) -> bool:
    manifest = folder / setting / "checkpoint.json"
    return manifest.exists() and json.loads(manifest.read_text())["next_round"] >= rounds


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, str]:
    """Digests of one worker in this process."""
    folder, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {s: train(folder / s, *map(int, s.split("x")), iterations=6, visits=3) for s in SETTINGS}
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_any_number_of_workers_trains_the_same_bytes(tmp_path, alone, workers):
    assert digests(tiny(tmp_path, "--settings", *SETTINGS, *LENGTH, "--workers", str(workers))) == alone


def test_units_that_exchange_do_so_alike_on_any_number_of_workers(tmp_path):
    expected = train(tmp_path / "alone", 5, 3, iterations=6, visits=3, exchange=True)
    words = ("--settings", "5x3", "--exchange", *LENGTH, "--workers", "2")
    assert digests(tiny(tmp_path, *words)) == {"5x3": expected}


def test_all_reduced_gradients_agree_to_rounding(tmp_path, alone):
    words = ("--settings", "8x4", *LENGTH, "--workers", "2", "--reduction", "all-reduce")
    digests(tiny(tmp_path / "two", *words))
    train(tmp_path / "one", 8, 4, iterations=6, visits=3, reduction="all-reduce")
    ours, theirs = (sorted((tmp_path / n).rglob("units/*")) for n in ("one", "two"))
    assert [path.name for path in ours] == [path.name for path in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        others = load_file(other)
        for name, tensor in load_file(mine).items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5)


def test_two_nodes_with_disks_of_their_own(tmp_path, alone):
    """Two torchrun agents that meet on localhost; the second node's folder stays empty."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = []
    for node, processes in enumerate((2, 1)):
        (tmp_path / str(node)).mkdir()
        meet = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "tiny")
        launcher = torchrun("--nnodes", "2", "--nproc-per-node", str(processes), "--local-addr", "127.0.0.1", *meet)
        words = ("run", "--settings", "8x4", "5x2", *LENGTH)
        agents.append(tiny(*words, launcher=launcher, folder=tmp_path / str(node)))
    outputs = [agent.communicate(timeout=PATIENCE_S) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    printed = json.loads("".join(out for out, _ in outputs))
    assert printed == {setting: alone[setting] for setting in ("8x4", "5x2")}
    written = [sorted(path.name for path in (tmp_path / node).rglob("checkpoint.json")) for node in "01"]
    assert sorted(map(len, written)) == [0, 2]


def test_torchrun_restarts_after_a_kill_and_ends_with_the_same_bytes(tmp_path):
    expected = train(tmp_path / "alone", 4, 2, iterations=60, visits=12)
    launcher = torchrun("--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    words = ("--settings", "4x2", "--iterations", "60", "--visits", "12", "--step-ms", "3")
    agent = tiny(tmp_path, *words, launcher=launcher)
    wait_for(lambda: committed(tmp_path, "4x2", 3), agent)
    os.kill(children(agent.pid)[1], signal.SIGKILL)
    assert digests(agent) == {"4x2": expected}


@pytest.mark.parametrize(
    ("victim", "how", "sentence"),
    [
        (2, signal.SIGKILL, "worker 2 is gone"),
        (1, signal.SIGSTOP, "worker 1 is gone"),
        (0, signal.SIGKILL, "worker 0 is gone"),
    ],
)
def test_a_worker_that_is_gone_is_named_and_nobody_hangs(tmp_path, victim, how, sentence):
    words = ("--settings", "6x3", "--iterations", "4000", "--visits", "400", "--workers", "3", "--timeout", "5")
    process = tiny(tmp_path, *words)
    wait_for(lambda: committed(tmp_path, "6x3", 1), process)
    family = [process.pid, *children(process.pid)]
    os.kill(family[victim], how)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (-signal.SIGKILL if victim == 0 else 1)
    assert sentence in told and "--resume" in told and "Traceback" not in told, told
    until = time.monotonic() + 30
    while any(map(alive, family)):
        assert time.monotonic() < until, "a worker hangs"
        time.sleep(0.02)


def test_workers_that_see_different_data_say_so(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from scene_distill.blocks.launch import joined\n"
        "from scene_distill.core.errors import UserError\n"
        "with joined(2, lambda: [sys.executable, sys.argv[0]]) as workers:\n"
        "    workers.agree('numbers', np.arange(3), [1, 2])\n"
        "    try:\n"
        "        workers.agree('numbers', np.arange(3) + workers.rank)\n"
        "    except UserError as error:\n"
        "        sys.stdout.write(f'{error}\\n')  # one write a line: two processes share the pipe\n"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=ENVIRONMENT, check=True)
    assert sorted(done.stdout.splitlines())[0].startswith("worker 0 and worker 1 see different things: numbers")
    assert len(done.stdout.splitlines()) == 2


def test_preparing_may_take_longer_than_any_step(tmp_path):
    program = (
        "import sys, time\n"
        "from scene_distill.blocks.launch import joined\n"
        "with joined(2, lambda: [sys.executable, sys.argv[0]], timeout_s=8) as workers:\n"
        "    with workers.first_before_others('worker 0 sleeps'):\n"
        "        time.sleep(10 if workers.rank == 0 else 0)\n"
        "    told = workers.prepared('found' if workers.rank == 0 else None, 'worker 0 tells')\n"
        "    sys.stdout.write(f'{told}\\n')\n"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=ENVIRONMENT, check=True)
    assert done.stdout == "found\nfound\n"


def test_a_process_that_ends_before_the_start_is_told(tmp_path):
    program = (
        "import sys\n"
        "from scene_distill.blocks.launch import joined\n"
        "from scene_distill.core.errors import UserError\n"
        "try:\n"
        "    with joined(2, lambda: [sys.executable, '-c', 'raise SystemExit(7)']):\n"
        "        pass\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "worker 1 ended before the run began (exit code 7)\n"


def test_the_place_comes_from_the_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert Place.from_environment() == Place(0, 1, 0, 1, False)
    for name, value in {"RANK": 5, "WORLD_SIZE": 6, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert Place.from_environment() == Place(5, 6, 1, 2, False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert Place.from_environment().restarted
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="many"):
        Place.from_environment()
