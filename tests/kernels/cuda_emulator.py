"""The CUDA kernels under test: emulated on the CPU from the same sources, or the real ones with ``--device cuda``."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scene_distill.renderers import cuda, native

ROOT = Path(__file__).resolve().parents[2]
SIMT = sorted((ROOT / "cuda/simt").glob("*.cpp"))
HEADERS = sorted([*(ROOT / "cuda/simt").glob("*.h"), *(ROOT / "cuda/gpu").glob("*.h")])
SEEDS = (1, 2)
"""Orders in which the emulator runs the threads of a block: results must not depend on it."""

NO_THRESHOLDS = native.Limits(1e-7, 0.9999, 1e-12, 0.3, 0.2, 0.3)
"""Limits that hardly cut: float32 and float64 then agree everywhere, not only away from the cuts."""


EVERY_KERNEL = tuple(f"tests/kernels/test_cuda_{name}" for name in (
    "raster.py::test_rgb[thresholds-1]", "raster.py::test_any_number_of_channels[33]",
    "raster.py::test_needles_are_not_culled", "raster.py::test_nothing_to_draw",
    "raster.py::test_masked_pixels_show_the_background_and_pull_at_nothing_else[1]",
    "raster.py::test_clipped_pixels_and_absolute_gradients[masked-37-0.05-1]",
    "statistics.py::test_contributions[True-1]", "statistics.py::test_median[True-1]",
    "statistics.py::test_nothing_is_drawn",
    "project.py::test_projection_and_its_gradient[perspective-True-1]",
    "project.py::test_projection_and_its_gradient[orthographic-False-1]",
    "project.py::test_tile_lists[1]", "project.py::test_no_gaussians", "project.py::test_one_pixel_image",
    "harmonics.py::test_colours_and_gradients[True-3-1-1]", "harmonics.py::test_no_gaussians",
    "training.py::test_l1_ssim[size0-1]", "training.py::test_l1_ssim[size2-1]",
    "training.py::test_adam_matches_torch_and_leaves_unseen_rows[True]",
    "training.py::test_anchor_decoder[21-1]", "training.py::test_momentum_consistency[False-1]",
))  # fmt: skip
"""Tests that together call every kernel, with sizes that no block size divides."""


def build(name, sources, *flags, races=False):
    """Compile ``sources`` with the emulator into build/simt/<hash>/<name>; a build of the same sources is reused.

    With ``races`` every access of the kernels to shared memory is watched.
    """
    command = ["g++", "-O2", "-std=c++20", "-fPIC", "-Wno-unknown-pragmas", f"-I{ROOT / 'cuda'}", *flags]
    digest = hashlib.sha256(" ".join([*command, str(races)]).encode())
    for path in (*sources, *SIMT, *HEADERS):
        digest.update(path.read_bytes())
    target = ROOT / "build/simt" / digest.hexdigest()[:16] / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, ThreadPoolExecutor(2) as pool:

        def compile_group(number, group, *more):
            part = f"{folder}/{number}.o"
            plain = [flag for flag in command if flag != "-shared"]
            run = [*plain, *more, "-r", "-nostdlib", "-o", part, "-x", "c++", *map(str, group)]
            subprocess.run(run, check=True, timeout=600)
            return part

        watch = WATCH if races else ()  # of the kernels alone, without the thread sanitizer's library
        groups = [(sources[::2], *watch), (sources[1::2], *watch), (SIMT,)]
        parts = [pool.submit(compile_group, k, *group) for k, group in enumerate(groups) if group[0]]
        linked = f"{folder}/{name}"
        subprocess.run([*command, "-o", linked, *(part.result() for part in parts)], check=True, timeout=60)
        os.replace(linked, target)
    return target


WATCH = ("-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0", "-fno-threadsafe-statics")
SANITIZE = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g1", "-O1")


@functools.cache
def emulated_library(watch=None):
    """All kernels; ``watch`` = "addresses" instruments them for a process that runs with the address sanitizer, "races"
    for the emulator's own watch over shared memory."""
    flags = SANITIZE if watch == "addresses" else ()
    sources = sorted((ROOT / "cuda/gpu").glob("*.cu"))
    return build("scene_distill_simt.so", sources, "-shared", *flags, races=watch == "races")


def kernels(device, seed, limits=native.LIMITS):
    """The kernels for tensors on ``device``; on the CPU with the thread order of ``seed``."""
    if device.type == "cuda":
        return cuda.CudaKernels(cuda.library_path(), limits)
    library = emulated_library(os.environ.get("SCENE_DISTILL_WATCH"))
    ctypes.CDLL(str(library)).simt_set_seed(seed)
    return cuda.CudaKernels(library, limits)
