"""Whether and how fast the CUDA kernels run on this machine's GPU: build, test, time, train; at most eight minutes.

    python benchmarks/gpu_check.py [--out benchmarks/results/gpu_check.json] [--skip build tests ...]

Needs an editable install (pip install -e .[dev]), CMake, Ninja, a C++ compiler and nvcc. Writes one JSON with a part
per step: what the machine is; seconds of the build; the kernel tests with --device cuda and the end of their report;
milliseconds of a training step and of each kernel on cases A, B and C of ``scene-distill bench step``; and the figures
of 200 steps on a small self-made city. A step that fails or takes too long is told in its part, and the next one runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
EMULATOR_ONLY = ("test_cuda_emulator.py", "test_cuda_sanitizer.py", "test_cuda_races.py", "test_cuda_build.py")
"""Tests that compile for the emulator, or compile again, and touch no GPU."""

SECONDS = {"configure": 20, "build": 130, "tests": 150, "time": 60, "city": 30, "train": 60}
"""The most that each command may take: 450 in all."""


def call(command: list[str], seconds: float) -> dict[str, Any]:
    """Exit code, seconds and the end of what a command printed."""
    started = time.time()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        code, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        printed = late.stdout or b""
        code, text = None, printed.decode() if isinstance(printed, bytes) else printed
    return {"exit_code": code, "seconds": time.time() - started, "output": text[-6000:]}


def machine() -> dict[str, Any]:
    """The GPU and the versions that decide what runs on it."""
    properties = torch.cuda.get_device_properties(0)
    nvcc = call(["nvcc", "--version"], 20)["output"]
    release = re.search(r"release ([\d.]+)", nvcc)
    return {
        "gpu": properties.name, "capability": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count, "memory_gb": properties.total_memory / 1e9,
        "torch": torch.__version__, "torch_cuda": torch.version.cuda, "nvcc": release[1] if release else None,
        "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def build() -> dict[str, Any]:
    """Both libraries of the source tree, the CUDA one for all architectures, as an install has them."""
    configured = call(["cmake", "-S", ".", "-B", "build/dev", "-G", "Ninja"], SECONDS["configure"])
    if configured["exit_code"] != 0:
        return configured
    built = call(["cmake", "--build", "build/dev"], SECONDS["build"])
    return built | {"output": "" if built["exit_code"] == 0 else built["output"]}


def run_tests() -> dict[str, Any]:
    """The kernel tests on the GPU."""
    ignored = [f"--ignore=tests/kernels/{name}" for name in EMULATOR_ONLY]
    command = [sys.executable, "-m", "pytest", "-q", "--device", "cuda", "tests/kernels", *ignored]
    report = call(command, SECONDS["tests"])
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", report["output"])
    counts = {word: int(number) for number, word in found}
    return report | counts


def milliseconds(function: Callable[[], Any], repetitions: int = 30) -> dict[str, float]:
    """Smallest and median time of a call from its start to the end of its last kernel, after five calls to warm up."""
    for _ in range(5):
        function()
    found = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - started) * 1e3)
    return {"best": min(found), "median": statistics.median(found)}


def time_apart() -> dict[str, Any]:
    """`time_steps` in a process of its own, so that a kernel that fails or hangs ends only that."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "timings.json"
        report = call([sys.executable, __file__, "--timings", str(found)], SECONDS["time"])
        return json.loads(found.read_text()) if report["exit_code"] == 0 else report


def time_steps() -> dict[str, Any]:
    """A whole training step and its kernels on the synthetic cases."""
    from scene_distill.renderers.benchmark import CASES
    from scene_distill.renderers.step_benchmark import SplatStep, stages_of

    report: dict[str, Any] = {}
    torch.set_default_device("cuda")  # for what stages_of makes
    try:
        for case in (case for case in CASES if case.name in ("A", "B", "C")):
            with torch.device("cpu"):
                step = SplatStep(case)
            vars(step).update(on_gpu(vars(step)))
            stages = {name: milliseconds(stage) for name, stage in stages_of(step).items()}
            report[case.name] = {
                "width": case.width, "height": case.height, "gaussians": case.gaussians, "step_ms": milliseconds(step),
                "stages_ms": stages, "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6,
            }  # fmt: skip
    finally:
        torch.set_default_device(None)
    return report


def on_gpu(value: Any) -> Any:
    """The tensors of a tensor, dict, tuple or object of such, moved; a leaf stays a leaf."""
    if isinstance(value, torch.Tensor):
        return value.detach().cuda().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {name: on_gpu(part) for name, part in value.items()}
    return tuple(on_gpu(part) for part in value) if isinstance(value, tuple) else value


def train() -> dict[str, Any]:
    """200 steps of plain splats on a hamlet of 24 photos; held-out figures against those of an untrained start."""
    with tempfile.TemporaryDirectory() as folder:
        city, run = Path(folder) / "city", Path(folder) / "run"
        program = [sys.executable, "-m", "scene_distill"]
        made = call([*program, "data", "city", str(city), "--recipe", "city_test"], SECONDS["city"])
        if made["exit_code"] != 0:
            return made
        options = ["--iterations", "200", "--visits", "4", "--image-width", "160", "--output-dir", str(run)]
        report = call([*program, "train", "splats", "--data", str(city), *options], SECONDS["train"])
        metrics = run / "metrics.json"
        return report | ({"metrics": json.loads(metrics.read_text())} if metrics.exists() else {})


STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "build": build, "tests": run_tests, "time": time_apart, "train": train,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu_check.json")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(STEPS))
    parser.add_argument("--timings", type=Path, help="write the timings alone into this JSON and stop")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; this script measures the CUDA kernels on one")
    if options.timings:
        options.timings.write_text(json.dumps(time_steps()))
        return
    started = time.time()
    report: dict[str, Any] = {"machine": machine()}
    for name, step in STEPS.items():
        if name in options.skip:
            continue
        print(f"{name} ...", flush=True)
        try:
            report[name] = step()
        except Exception as error:  # the other parts are worth having
            report[name] = {"error": f"{type(error).__name__}: {error}"}
        report["seconds"] = time.time() - started
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
