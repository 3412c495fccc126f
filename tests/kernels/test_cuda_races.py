"""Races in shared memory: the kernels have none, and a barrier that is taken away is missed.

The watch (cuda/simt/races.cpp) ends a process at the first race, so each test starts one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import EVERY_KERNEL, ROOT, build, emulated_library

DRAW = """
import sys, torch
from pathlib import Path
from test_cuda_raster import splats
from scene_distill.renderers import cuda
tensors, size = splats(90, (16, 16), 3, 5), (16, 16)
image, alpha = torch.rand(16, 16, 3), torch.rand(16, 16)
cuda.CudaKernels(Path(sys.argv[1])).raster_backward(*tensors, image, alpha, image, alpha)
print("drawn")
"""


def run(*arguments, **environment):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("missing_syncwarp", "reads shared memory that another one writes"),
        ("overwritten_too_early", "writes shared memory that another one uses"),
        ("missing_barrier", "race: a thread"),
    ],
)
def test_mistakes_are_reported(name, report):
    """Whatever the thread order; the first two give the right numbers in all of them."""
    program = build("sabotage", (Path(__file__).with_name("sabotage.cu"),), races=True)
    for seed in ("-1", "1", "2"):
        result = subprocess.run([program, name, seed], capture_output=True, text=True, timeout=20, check=False)
        assert result.returncode < 0 and report in result.stderr and "thread (" in result.stderr


def test_correct_code_is_not_reported():
    program = build("sabotage", (Path(__file__).with_name("sabotage.cu"),), races=True)
    result = subprocess.run([program, "correct", "1"], capture_output=True, text=True, timeout=20, check=True)
    assert len(result.stdout.split()) == 64 and not result.stderr


@pytest.mark.parametrize("removed", [0, 1])
def test_a_syncwarp_that_is_removed_from_the_raster_backward_is_missed(tmp_path, removed):
    source = (ROOT / "cuda/gpu/raster_backward.cu").read_text()
    pieces = source.split("__syncwarp();")
    assert len(pieces) == 3
    pieces[removed : removed + 2] = [pieces[removed] + pieces[removed + 1]]
    (tmp_path / "raster_backward.cu").write_text("__syncwarp();".join(pieces))
    sources = (tmp_path / "raster_backward.cu", ROOT / "cuda/gpu/primitives.cu")
    library = build("raster_backward.so", sources, "-shared", f"-I{ROOT / 'cuda/gpu'}", races=True)
    result = run("-c", DRAW, library)
    assert "race: a thread" in result.stderr and "splat_gradients_kernel" in result.stderr and not result.stdout


def test_the_kernels_have_no_races():
    emulated_library("races")
    result = run("-m", "pytest", "-p", "no:cacheprovider", "-s", *EVERY_KERNEL, SCENE_DISTILL_WATCH="races")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    assert f"{len(EVERY_KERNEL)} passed" in result.stdout
