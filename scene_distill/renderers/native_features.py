"""Native kernels beside the plain picture: view-dependent colours, probed gradients, contributions, medians.

One function per C function, as in `native`; tensors are float32, contiguous and on the CPU.
"""

from __future__ import annotations

import ctypes
import math
import time
from ctypes import byref, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from scene_distill.renderers.native import LIMITS, Limits, _address, _frame, _screen, load


class Harmonics(ctypes.Structure):
    """``sd_harmonics``: coefficients and where they are seen from."""

    _fields_ = [
        ("count", c_int64),
        ("bases", c_int32),
        ("degree", c_int32),
        ("means", c_void_p),
        ("coefficients", c_void_p),
        ("camera_center", c_void_p),
        ("extents", c_void_p),
    ]


def _harmonics(
    means: Tensor, coefficients: Tensor, camera_center: Tensor, degree: int, extents: Tensor | None
) -> Harmonics:
    count, bases, _ = coefficients.shape
    return Harmonics(
        count, bases, degree, means.data_ptr(), coefficients.data_ptr(), camera_center.data_ptr(), _address(extents)
    )


def spherical_harmonics(
    means: Tensor, coefficients: Tensor, camera_center: Tensor, degree: int, extents: Tensor | None
) -> Tensor:
    """Colours [N, 3]; see `ops.spherical_harmonics`."""
    colors = torch.empty_like(means)
    seen = _harmonics(means, coefficients, camera_center, degree, extents)
    load().functions["sd_harmonics_forward"](byref(seen), colors.data_ptr())
    return colors


def spherical_harmonics_backward(
    inputs: tuple[Tensor, Tensor, Tensor, int, Tensor | None], colors: Tensor, v_colors: Tensor, center_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of means, coefficients and camera_center (zeros without ``center_grad``)."""
    means, coefficients, camera_center = inputs[:3]
    out = (torch.empty_like(means), torch.empty_like(coefficients), torch.zeros_like(camera_center))
    load().functions["sd_harmonics_backward"](
        byref(_harmonics(*inputs)), colors.data_ptr(), v_colors.data_ptr(), out[0].data_ptr(), out[1].data_ptr(),
        out[2].data_ptr() if center_grad else None,
    )  # fmt: skip
    return out


def raster_probed_backward(
    screen: tuple[Tensor, Tensor, Tensor],
    drawn: tuple[Tensor, Tensor, Tensor, Tensor],
    lists: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor | None],
    gradient_bound: float,
    absolute: bool,
    mask: Tensor | None,
    limits: Limits = LIMITS,
) -> tuple[Tensor, ...]:
    """`native.raster_backward` with clipped pixels, and sum |dL/d means2d| [N, 2] (zeros without ``absolute``).

    ``drawn`` = (features, background, image, alpha).
    """
    features, background, image, alpha = drawn
    size = (image.shape[1], image.shape[0])
    out = (*(torch.empty_like(t) for t in screen), torch.empty_like(features), torch.empty_like(background))
    probe = torch.zeros_like(screen[0])
    load().functions["sd_raster_backward_probed"](
        byref(_screen(*screen)), byref(_frame(size, features, background, lists, mask)), byref(limits),
        image.data_ptr(), alpha.data_ptr(), grads[0].data_ptr(), _address(grads[1]), *(t.data_ptr() for t in out),
        gradient_bound, probe.data_ptr() if absolute else None,
    )  # fmt: skip
    return *out, probe


def raster_contributions(
    screen: tuple[Tensor, Tensor, Tensor],
    lists: tuple[Tensor, Tensor],
    mask: Tensor | None,
    size: tuple[int, int],
    limits: Limits = LIMITS,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """weight_sum [N], weight_max [N], pixels [N] int32, and how many pixel evaluations the kernels made for them."""
    weight_sum, weight_max = torch.empty_like(screen[2]), torch.empty_like(screen[2])
    pixels = torch.empty_like(screen[2], dtype=torch.int32)
    nothing = screen[2].new_empty((len(screen[2]), 0))
    library = load()
    blocks = library.functions["sd_raster_contributions"](
        byref(_screen(*screen)), byref(_frame(size, nothing, nothing, lists, mask)), byref(limits),
        weight_sum.data_ptr(), weight_max.data_ptr(), pixels.data_ptr(),
    )  # fmt: skip
    return weight_sum, weight_max, pixels, blocks * library.functions["sd_lanes"]()


def raster_median(
    screen: tuple[Tensor, Tensor, Tensor],
    lists: tuple[Tensor, Tensor],
    mask: Tensor | None,
    size: tuple[int, int],
    limits: Limits = LIMITS,
) -> Tensor:
    """median [H, W] int32; see `ops.raster_median`."""
    nothing = screen[2].new_empty((len(screen[2]), 0))
    median = screen[2].new_empty((size[1], size[0]), dtype=torch.int32)
    load().functions["sd_raster_median"](
        byref(_screen(*screen)), byref(_frame(size, nothing, nothing, lists, mask)), byref(limits), median.data_ptr()
    )
    return median


def vector_rate(repetitions: int = 12) -> float:
    """Vector multiply-adds per second that this machine starts on all threads: independent chains in registers.

    About 1 ms of work per repetition, the fastest counts: the others met an interruption or a sleeping core.
    """
    items, rounds, chains = 64, 20_000, 16
    run = load().functions["sd_multiply_add_chains"]
    best = math.inf
    for _ in range(repetitions):
        start = time.perf_counter()
        run(items, rounds)
        best = min(best, time.perf_counter() - start)
    return items * rounds * chains / best


def lanes() -> int:
    """Floats in one vector of the chosen instruction set."""
    return load().functions["sd_lanes"]()
