"""The emulator itself: it finds and names each deliberate mistake in sabotage.cu; correct code gets right answers."""

import functools
import subprocess
from pathlib import Path

import pytest
from cuda_emulator import build


@functools.cache
def program():
    return build("sabotage", (Path(__file__).with_name("sabotage.cu"),))


def run(name, seed=1):
    return subprocess.run([program(), name, str(seed)], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("divergent_barrier", "divergent barrier"),
        ("early_exit", "left the kernel before a barrier"),
        ("missing_lane", "waits for a lane that waits at a block barrier"),
        ("stranger_in_warp", "whose mask does not name it"),
        ("shuffle_from_outside", "reads a lane that takes no part"),
        ("different_collectives", "meet at different warp collectives"),
        ("shared_overrun", "wrote outside its shared memory"),
        ("too_much_shared", "more than 48 KiB of shared memory"),
        ("too_many_threads", "a block size no device accepts"),
    ],
)
def test_mistakes_are_reported(name, report):
    result = run(name)
    assert result.returncode < 0  # aborted
    assert "SIMT: kernel" in result.stderr and report in result.stderr


def test_reports_name_the_lines():
    lines = run("divergent_barrier").stderr.splitlines()
    assert "block (0, 0, 0)" in lines[0] and len(lines) == 3
    source = Path(__file__).with_name("sabotage.cu").read_text().splitlines()
    for line in lines[1:]:
        number = int(line.rsplit("sabotage.cu:", 1)[1])
        assert "__syncthreads();" in source[number - 1]


def test_unwritten_shared_memory_is_nan():
    values = run("unwritten_shared").stdout.split()
    assert "nan" in values[5] and values[:5] == ["1"] * 5


def test_thread_order_exposes_a_missing_barrier():
    expected = " ".join(str(63 - i) for i in range(64)) + " "
    assert {run("missing_barrier", seed).stdout for seed in (1, 2)} != {expected}


@pytest.mark.parametrize("seed", [-1, 1, 2])
def test_correct_code(seed):
    values = [float(v) for v in run("correct", seed).stdout.split()]
    # The last lane of a warp gets its own value from shfl_down.
    assert values == [63 - (i if i % 32 == 31 else i + 1) + 32 + 3 for i in range(64)]
