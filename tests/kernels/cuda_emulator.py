"""The CUDA kernels under test: emulated on the CPU from the same sources, or the real ones with ``--device cuda``."""

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from scene_distill.renderers import cuda, native

ROOT = Path(__file__).resolve().parents[2]
SIMT = sorted((ROOT / "cuda/simt").glob("*.cpp"))
HEADERS = sorted([*(ROOT / "cuda/simt").glob("*.h"), *(ROOT / "cuda/gpu").glob("*.h")])
SEEDS = (1, 2)
"""Orders in which the emulator runs the threads of a block: results must not depend on it."""

NO_THRESHOLDS = native.Limits(1e-7, 0.9999, 1e-12, 0.3, 0.2, 0.3)
"""Limits that hardly cut: float32 and float64 then agree everywhere, not only away from the cuts."""


def build(name, sources, *flags):
    """Compile ``sources`` with the emulator into build/simt/<hash>/<name>; a build of the same sources is reused."""
    command = ["g++", "-O2", "-std=c++20", "-fPIC", "-Wno-unknown-pragmas", f"-I{ROOT / 'cuda'}", *flags]
    digest = hashlib.sha256(" ".join(command).encode())
    for path in (*sources, *SIMT, *HEADERS):
        digest.update(path.read_bytes())
    target = ROOT / "build/simt" / digest.hexdigest()[:16] / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
            pass
        subprocess.run([*command, "-o", part.name, "-x", "c++", *map(str, (*sources, *SIMT))], check=True, timeout=280)
        os.replace(part.name, target)
        target.chmod(0o755)
    return target


SANITIZE = ("-fsanitize=address", "-fno-omit-frame-pointer", "-g1", "-O1")


@functools.cache
def emulated_library():
    """All kernels; with SCENE_DISTILL_SANITIZE=1 instrumented for a process that runs with the address sanitizer."""
    flags = SANITIZE if os.environ.get("SCENE_DISTILL_SANITIZE") else ()
    return build("scene_distill_simt.so", sorted((ROOT / "cuda/gpu").glob("*.cu")), "-shared", *flags)


def kernels(device, seed, limits=native.LIMITS):
    """The kernels for tensors on ``device``; on the CPU with the thread order of ``seed``."""
    if device.type == "cuda":
        return cuda.CudaKernels(cuda.library_path(), limits)
    ctypes.CDLL(str(emulated_library())).simt_set_seed(seed)
    return cuda.CudaKernels(emulated_library(), limits)
