"""What bounds every kernel of a training step: bytes or vector operations from the problem's sizes, and measured rates.

A kernel that memory bounds takes at least max(bytes read / read rate, bytes written / write rate): reading and writing
go on side by side. Bytes are those that must move once; what a cache misses on top is the kernel's own loss. Rates are
measured on all threads over an array that no L2 holds (`MEMORY_MIB`): reading it, and writing it back in place. Vector
operations are counted for one vector and go at the rate of independent multiply-adds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from scene_distill.renderers.native import load
from scene_distill.renderers.native_features import lanes, vector_rate

MEMORY_MIB = 96
"""As large as parameters, moments and gradients of 100,000 Gaussians; beyond L2, within the L3 of a server."""

SSIM_OPERATIONS = 190
"""Vector operations for a vector of floats of the image: seven maps blurred twice with 11 taps (154), their products,
the measure and its derivatives (30), the gradient (6). Borders between panels come on top."""

PARAMETERS = 59
"""Floats of a Gaussian with harmonics of degree 3."""


@dataclass(frozen=True)
class Rates:
    """Bytes per second read, and written in place, and vector operations per second, all threads together."""

    read: float
    write: float
    vector: float


@dataclass(frozen=True)
class StepSizes:
    """Gaussians, those drawn, pairs of tile and Gaussian, and floats of the image of a step."""

    gaussians: int
    drawn: int
    pairs: int
    image_floats: int


def measure_rates(repetitions: int = 12) -> Rates:
    """Rates of this machine now; the fastest repetition counts. Lay out like a training: `native.keep_freed_memory`."""
    functions = load().functions
    data = torch.ones(MEMORY_MIB << 18)
    read = _fastest(lambda: functions["sd_memory_read"](data.data_ptr(), data.numel()), repetitions)
    write = _fastest(lambda: functions["sd_memory_update"](data.data_ptr(), data.numel()), repetitions)
    size = 4.0 * data.numel()
    return Rates(size / read, size / write, vector_rate(4 * repetitions))


def _fastest(call: Callable[[], Any], repetitions: int) -> float:
    call()
    best = math.inf
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def traffic(sizes: StepSizes) -> dict[str, tuple[int, int]]:
    """Bytes that each memory-bound kernel must read and write, with harmonics of degree 3."""
    n, drawn, pairs, image = sizes.gaussians, sizes.drawn, sizes.pairs, sizes.image_floats
    shape, harmonics = 4 * 11, 4 * 48
    return {
        # stored splats -> 9 floats of the ellipse and 3 of the colour
        "project_forward": (n * shape + drawn * harmonics, n * 4 * 12),
        # the same, extents, colours and 9 gradients -> a gradient of every parameter
        "project_backward": (n * (shape + 8) + drawn * (harmonics + 4 * 12), n * (shape + harmonics)),
        # ellipses and depths; three passes over keys and indices; the pairs
        "bin": (n * 4 * 9 + 3 * 8 * drawn, 3 * 8 * drawn + 4 * pairs),
        "l1_ssim_backward": (3 * 4 * image, 4 * image),
        # parameter, gradient and two moments
        "adam": (n * 16 * PARAMETERS, n * 12 * PARAMETERS),
    }


def kernel_bounds(
    times_ms: dict[str, float], sizes: StepSizes, raster_operations: dict[str, float], rates: Rates
) -> dict[str, dict[str, float]]:
    """Per kernel its bytes or vector operations, the least time for them in ms, and that over the measured time.

    ``raster_operations``: vector operations of the two raster kernels, which depend on the scene.
    """
    found: dict[str, dict[str, float]] = {}
    for name, (read, written) in traffic(sizes).items():
        bound_ms = 1e3 * max(read / rates.read, written / rates.write)
        found[name] = {"bytes": read + written, "bound_ms": bound_ms}
    ssim = {"l1_ssim_forward": sizes.image_floats / lanes() * SSIM_OPERATIONS}
    for name, operations in (raster_operations | ssim).items():
        found[name] = {"operations": operations, "bound_ms": 1e3 * operations / rates.vector}
    for name, bound in found.items():
        bound["fraction"] = bound["bound_ms"] / times_ms[name]
    return {name: found[name] for name in times_ms}
