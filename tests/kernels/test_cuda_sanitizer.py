"""The kernels under the address sanitizer: no thread reads or writes outside its arrays, and one that does is named.

A process that loads instrumented code must run with the sanitizer's library from the start, so each test starts one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_emulator import EVERY_KERNEL, ROOT, SANITIZE, build, emulated_library

ADAM = """
import sys, torch
from pathlib import Path
from scene_distill.renderers import cuda
param, grad, first, second = (torch.ones(7, 11) for _ in range(4))
cuda.CudaKernels(Path(sys.argv[1])).adam_(param, grad, first, second, 0.1, 0.9, 0.999, 1e-15, 1, None)
print("one step taken")
"""


def gcc_library(name):
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"g++ has no {name}: the address sanitizer is not installed")
    return str(Path(path).resolve())


def run(*arguments):
    """A Python that watches every access; the C++ library comes along because the sanitizer looks for its throw."""
    environment = {
        **os.environ,
        "SCENE_DISTILL_WATCH": "addresses",
        "LD_PRELOAD": f"{gcc_library('libasan.so')} {gcc_library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def test_one_element_too_many_is_found(tmp_path):
    """The Adam kernel with its last condition off by one, on torch's own tensors."""
    gcc_library("libasan.so")
    source = (ROOT / "cuda/gpu/adam.cu").read_text()
    assert source.count("i >= a.count") == 1
    (tmp_path / "adam.cu").write_text(source.replace("i >= a.count", "i > a.count"))
    sources = (tmp_path / "adam.cu", ROOT / "cuda/gpu/primitives.cu")
    result = run("-c", ADAM, build("adam.so", sources, "-shared", f"-I{ROOT / 'cuda/gpu'}", *SANITIZE))
    assert result.returncode != 0 and "one step taken" not in result.stdout
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr and "adam.cu:" in result.stderr
    assert "0 bytes" in result.stderr  # right behind an array


def test_reading_past_shared_memory_is_found():
    gcc_library("libasan.so")
    program = build("sabotage", (Path(__file__).with_name("sabotage.cu"),), *SANITIZE)
    result = subprocess.run([program, "shared_overread", "1"], capture_output=True, text=True, timeout=20, check=False)
    assert "AddressSanitizer: use-after-poison" in result.stderr and "sabotage.cu:" in result.stderr


def test_kernels_stay_inside_their_arrays():
    emulated_library("addresses")
    result = run("-m", "pytest", "-p", "no:cacheprovider", "-s", *EVERY_KERNEL)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    assert f"{len(EVERY_KERNEL)} passed" in result.stdout
