"""The native CPU library: finding it, choosing its instruction set, and one function per C function of cuda/bindings.h.

Tensors here are float32, contiguous and on the CPU; `ops` checks that. Nothing in this file knows autograd.

Threads: the library has a small pool of its own (`set_threads`, by default every core this process may use). It
shares the cores with torch's OpenMP pool, whose workers keep spinning for a while after each parallel torch operation:
drawing case A of the benchmark on two cores takes 4.7 ms alone, 8.1 ms right after a torch operation on two threads,
and 4.9 ms after one under ``OMP_WAIT_POLICY=passive`` (set before torch is imported) or ``torch.set_num_threads(1)``.
A training loop wants one of the two.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene_distill.core import conventions
from scene_distill.core.errors import UserError

ISAS = ("avx512", "avx2", "portable")
"""Builds inside the library, best first."""

FRUSTUM_MARGIN = 0.3
"""x/z, y/z in the projection's Jacobian are clamped to the frustum widened by this part of its half size (gsplat)."""


MATRIX_PATHS = ("amx", "vector")
"""Exact matrix products for wide pictures, best first; "amx_bfloat16" is the inexact one (`set_matrix`)."""


class Limits(ctypes.Structure):
    """``sd_limits``: the constants of core/conventions.py as the kernels take them."""

    _fields_ = [
        ("alpha_min", c_float),
        ("alpha_max", c_float),
        ("transmittance_min", c_float),
        ("eps2d", c_float),
        ("near_m", c_float),
        ("frustum_margin", c_float),
    ]


LIMITS = Limits(
    conventions.ALPHA_MIN,
    conventions.ALPHA_MAX,
    conventions.TRANSMITTANCE_MIN,
    conventions.EPS2D_PX2,
    conventions.NEAR_M,
    FRUSTUM_MARGIN,
)


class View(ctypes.Structure):
    """``sd_view``: pose, intrinsics and size of one camera."""

    _fields_ = [
        ("cam_from_world", c_void_p),
        ("intrinsics", c_void_p),
        ("width", c_int32),
        ("height", c_int32),
        ("antialiased", c_int32),
        ("orthographic", c_int32),
    ]


class Screen(ctypes.Structure):
    """``sd_screen``: Gaussians on the screen."""

    _fields_ = [("count", c_int64), ("means2d", c_void_p), ("conics", c_void_p), ("opacities2d", c_void_p)]


class Frame(ctypes.Structure):
    """``sd_image``: what is drawn with which tile lists."""

    _fields_ = [
        ("width", c_int32),
        ("height", c_int32),
        ("channels", c_int32),
        ("features", c_void_p),
        ("background", c_void_p),
        ("tile_offsets", c_void_p),
        ("pair_gaussian", c_void_p),
        ("mask", c_void_p),
    ]


_P, _L, _V, _S, _I = c_void_p, POINTER(Limits), POINTER(View), POINTER(Screen), POINTER(Frame)
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "sd_project_forward": (c_int64, [c_int64, _P, _P, _P, _P, _V, _L, _P, _P, _P, _P, _P]),
    "sd_project_backward": (None, [c_int64, _P, _P, _P, _P, _V, _L] + [_P] * 11),
    "sd_bin_count": (c_int64, [_S, _P, _P, c_int32, c_int32, _L, _P, POINTER(c_void_p)]),
    "sd_bin_fill": (None, [_P, _P]),
    "sd_raster_forward": (None, [_S, _I, _L, _P, _P]),
    "sd_raster_backward": (None, [_S, _I, _L] + [_P] * 9),
    "sd_l1_ssim_forward": (None, [_P, _P, c_int32, c_int32, _P, _P, _P]),
    "sd_l1_ssim_backward": (None, [_P, _P, _P, c_int64, c_float, c_float, _P]),
    "sd_decode_forward": (None, [_P] * 3),
    "sd_decode_backward": (None, [_P] * 8),
    "sd_consistency_forward": (c_float, [c_int64, _P, _P]),
    "sd_consistency_backward": (None, [c_int64, _P, _P, c_float, _P, _P]),
    "sd_raster_backward_probed": (None, [_S, _I, _L] + [_P] * 9 + [c_float, _P]),
    "sd_raster_contributions": (c_int64, [_S, _I, _L] + [_P] * 3),
    "sd_raster_median": (None, [_S, _I, _L, _P]),
    "sd_harmonics_forward": (None, [_P, _P]),
    "sd_harmonics_backward": (None, [_P] * 6),
    "sd_multiply_add_chains": (c_float, [c_int64, c_int64]),
    "sd_memory_read": (c_float, [_P, c_int64]),
    "sd_memory_update": (None, [_P, c_int64]),
    "sd_lanes": (c_int32, []),
    "sd_matrix_multiply_adds": (c_double, [c_int64, c_int64]),
    "sd_splats_forward": (c_int64, [_P, _V, _L, _P]),
    "sd_splats_backward": (None, [_P, _V, _L, _P, _P, _P]),
    "sd_take_rows": (c_int64, [_P] * 3),
    "sd_adam_rows": (c_int64, [_P] * 5 + [c_int64] + [c_float] * 4 + [c_int64, c_int64, c_float]),
    "sd_adam": (None, [_P, _P, _P, _P, c_int64, c_int64, _P, c_float, c_float, c_float, c_float, c_int64]),
}


@dataclass(frozen=True)
class Library:
    """The loaded library and the functions of the chosen instruction set, under their names without suffix."""

    isa: str
    handle: ctypes.CDLL
    functions: dict[str, ctypes._NamedFuncPointer]


def library_path(name: str = "_scene_distill_cpu.so") -> Path:
    """Where a compiled library lies: in this package, whose folders an editable install spreads over the source tree
    and site-packages; the newest build counts. Raises `UserError` when it was not built."""
    package = importlib.import_module(__package__ or "scene_distill.renderers")
    found = [path for folder in package.__path__ if (path := Path(folder) / name).exists()]
    if not found:
        raise UserError(
            f"the compiled library {name} is missing; install the package (pip install .) or, in a source tree, run "
            "'cmake -S . -B build/dev && cmake --build build/dev', "
            "or set SCENE_DISTILL_BACKEND=reference for the slow reference"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def supported_isas() -> tuple[str, ...]:
    """Builds in the library that this processor runs, best first."""
    handle = _open()
    return tuple(isa for isa in ISAS if handle.sd_cpu_supports(isa.encode()))


@functools.cache
def _open() -> ctypes.CDLL:
    """The library, which uses as many threads as SCENE_DISTILL_THREADS says, or as this process has cores."""
    handle = ctypes.CDLL(str(library_path()))
    handle.sd_cpu_supports.argtypes = [c_char_p]
    handle.sd_set_matrix.argtypes, handle.sd_get_matrix.restype = [c_char_p], c_char_p
    handle.sd_set_threads(int(os.environ.get("SCENE_DISTILL_THREADS") or available_cores()))
    _choose_matrix(handle, os.environ.get("SCENE_DISTILL_MATRIX"))
    return handle


@functools.cache
def load(isa: str | None = None) -> Library:
    """The library with its best instruction set, or the one named by ``isa`` or the variable SCENE_DISTILL_ISA.

    Raises `UserError` when the library is missing or this processor cannot run the named build.
    """
    supported = supported_isas()
    chosen = isa or os.environ.get("SCENE_DISTILL_ISA") or supported[0]
    if chosen not in supported:
        raise UserError(f"SCENE_DISTILL_ISA={chosen} cannot run here; this processor runs {', '.join(supported)}")
    handle, functions = _open(), {}
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(handle, f"{name}_{chosen}")
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return Library(chosen, handle, functions)


def set_matrix(name: str | None = None) -> None:
    """Choose what multiplies the matrices of pictures of 17 channels and more; None: the best exact one here.

    "vector": float32 in vector registers. "amx": tiles of bfloat16 pairs, 16 bits of mantissa. "amx_bfloat16": half
    the tile products, with the blending weights and the gradient of the image rounded to bfloat16 (8 bits). A choice
    for the whole process; SCENE_DISTILL_MATRIX makes it from outside. Only the AVX-512 build knows AMX. Raises
    `UserError` where the processor or the system has none.
    """
    _choose_matrix(_open(), name)


def _choose_matrix(handle: ctypes.CDLL, name: str | None) -> None:
    if not any(handle.sd_set_matrix(choice.encode()) for choice in ([name] if name else MATRIX_PATHS)):
        raise UserError(f"SCENE_DISTILL_MATRIX={name} cannot run here; try one of {', '.join(MATRIX_PATHS)}")


def get_matrix() -> str:
    """What multiplies the matrices of wide pictures: see `set_matrix`."""
    return _open().sd_get_matrix().decode()


def supported_matrix_paths() -> tuple[str, ...]:
    """Matrix products that this machine can run and that are exact to 1e-5."""
    handle, now = _open(), _open().sd_get_matrix()
    found = tuple(path for path in MATRIX_PATHS if handle.sd_set_matrix(path.encode()))
    handle.sd_set_matrix(now)
    return found


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Use ``count`` threads in the native kernels, the calling one included; results do not depend on it."""
    if count < 1:
        raise UserError(f"the native kernels need at least one thread, not {count}")
    load().handle.sd_set_threads(count)


def get_threads() -> int:
    """Threads the native kernels use."""
    return load().handle.sd_get_threads()


def release_scratch() -> None:
    """Give the scratch memory that the kernels keep between calls back to the system."""
    load().handle.sd_release_scratch()


def keep_freed_memory() -> bool:
    """Let the process's malloc keep the memory of freed tensors, for a loop that allocates the same sizes again.

    Fresh memory costs a page fault per 4 kB: decoding 30 000 anchors takes 1.8 ms into kept and 6 ms into fresh memory.
    The price is a resident size that stays at its peak. Returns False where malloc cannot be told (not glibc).
    """
    return bool(load().handle.sd_keep_freed_memory())


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _view(camera: tuple[Tensor, Tensor], size: tuple[int, int], antialiased: bool, orthographic: bool) -> View:
    return View(camera[0].data_ptr(), camera[1].data_ptr(), *size, antialiased, orthographic)


def _screen(means2d: Tensor, conics: Tensor, opacities2d: Tensor) -> Screen:
    return Screen(means2d.shape[0], means2d.data_ptr(), conics.data_ptr(), opacities2d.data_ptr())


def not_finite(wrong: int, count: int) -> UserError:
    """The error of a projection that met ``wrong`` Gaussians that are not finite."""
    return UserError(
        f"{wrong} of {count} Gaussians have a NaN or infinite mean, quaternion, scale or opacity; "
        "lower the learning rate or remove them before rendering"
    )


def project(
    world: tuple[Tensor, Tensor, Tensor, Tensor],
    camera: tuple[Tensor, Tensor],
    size: tuple[int, int],
    antialiased: bool,
    limits: Limits = LIMITS,
    isa: str | None = None,
    orthographic: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """means2d, conics, depths, opacities2d, extents of world = (means, quats, scales, opacities); see `ops.project`."""
    count = world[0].shape[0]
    new = world[0].new_empty
    out = (new((count, 2)), new((count, 3)), new((count,)), new((count,)), new((count, 2)))
    wrong = load(isa).functions["sd_project_forward"](
        count, *(t.data_ptr() for t in world), byref(_view(camera, size, antialiased, orthographic)),
        byref(limits), *(t.data_ptr() for t in out),
    )  # fmt: skip
    if wrong:
        raise not_finite(wrong, count)
    return out


def project_backward(
    world: tuple[Tensor, Tensor, Tensor, Tensor],
    camera: tuple[Tensor, Tensor],
    size: tuple[int, int],
    antialiased: bool,
    extents: Tensor,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    camera_grad: bool,
    limits: Limits = LIMITS,
    isa: str | None = None,
    orthographic: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of the four world tensors, of cam_from_world [4, 4] and of the intrinsics [4] (zeros without
    camera_grad).

    ``grads`` are those of means2d, conics, depths, opacities2d; None counts as zero.
    """
    out = tuple(torch.empty_like(t) for t in world)
    pose, intrinsics = camera[0].new_zeros((4, 4)), camera[1].new_zeros((4,))
    load(isa).functions["sd_project_backward"](
        world[0].shape[0], *(t.data_ptr() for t in world), byref(_view(camera, size, antialiased, orthographic)),
        byref(limits), extents.data_ptr(), *(_address(g) for g in grads), *(t.data_ptr() for t in out),
        pose.data_ptr() if camera_grad else None, intrinsics.data_ptr() if camera_grad else None,
    )  # fmt: skip
    return *out, pose, intrinsics


def bin(
    screen: tuple[Tensor, Tensor, Tensor],
    depths: Tensor,
    extents: Tensor,
    size: tuple[int, int],
    limits: Limits = LIMITS,
    isa: str | None = None,
) -> tuple[Tensor, Tensor]:
    """tile_offsets [T + 1] and pair_gaussian [M], int32, of screen = (means2d, conics, opacities2d); see `ops.bin`."""
    width, height = size
    tiles = -(-width // conventions.TILE) * -(-height // conventions.TILE)
    tile_offsets = torch.empty(tiles + 1, dtype=torch.int32)
    functions, state = load(isa).functions, c_void_p()
    pairs = functions["sd_bin_count"](
        byref(_screen(*screen)), depths.data_ptr(), extents.data_ptr(), width, height, byref(limits),
        tile_offsets.data_ptr(), byref(state),
    )  # fmt: skip
    pair_gaussian = torch.empty(pairs, dtype=torch.int32)
    functions["sd_bin_fill"](state, pair_gaussian.data_ptr())
    return tile_offsets, pair_gaussian


def _frame(
    size: tuple[int, int], features: Tensor, background: Tensor, lists: tuple[Tensor, Tensor], mask: Tensor | None
) -> Frame:
    read = (features, background, *lists, mask)
    return Frame(*size, features.shape[1], *(_address(tensor) for tensor in read))


def raster(
    screen: tuple[Tensor, Tensor, Tensor],
    features: Tensor,
    background: Tensor,
    lists: tuple[Tensor, Tensor],
    size: tuple[int, int],
    limits: Limits = LIMITS,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """image [H, W, D] and alpha [H, W] with lists = (tile_offsets, pair_gaussian); see `ops.raster`."""
    width, height = size
    image = features.new_empty((height, width, features.shape[1]))
    alpha = features.new_empty((height, width))
    load().functions["sd_raster_forward"](
        byref(_screen(*screen)), byref(_frame(size, features, background, lists, mask)), byref(limits),
        image.data_ptr(), alpha.data_ptr(),
    )  # fmt: skip
    return image, alpha


def raster_backward(
    screen: tuple[Tensor, Tensor, Tensor],
    features: Tensor,
    background: Tensor,
    lists: tuple[Tensor, Tensor],
    drawn: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor | None],
    limits: Limits = LIMITS,
    mask: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of means2d, conics, opacities2d, features, background; drawn = (image, alpha) of the forward pass.

    ``grads`` are those of the image and of alpha (None counts as zero).
    """
    image, alpha = drawn
    size = (image.shape[1], image.shape[0])
    out = (*(torch.empty_like(t) for t in screen), torch.empty_like(features), torch.empty_like(background))
    load().functions["sd_raster_backward"](
        byref(_screen(*screen)), byref(_frame(size, features, background, lists, mask)), byref(limits),
        image.data_ptr(), alpha.data_ptr(), grads[0].data_ptr(), _address(grads[1]), *(t.data_ptr() for t in out),
    )  # fmt: skip
    return out


def l1_ssim(
    image: Tensor, target: Tensor, with_gradient: bool, isa: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """l1 [], ssim [] and d ssim / d image ([H, W, 3], or empty without ``with_gradient``); see `ops.l1_ssim`."""
    height, width, _ = image.shape
    l1, ssim = image.new_empty(()), image.new_empty(())
    gradient = torch.empty_like(image) if with_gradient else image.new_empty((0,))
    load(isa).functions["sd_l1_ssim_forward"](
        image.data_ptr(), target.data_ptr(), width, height, l1.data_ptr(), ssim.data_ptr(),
        gradient.data_ptr() if with_gradient else None,
    )  # fmt: skip
    return l1, ssim, gradient


def l1_ssim_backward(
    image: Tensor, target: Tensor, ssim_gradient: Tensor, v_l1: float, v_ssim: float, isa: str | None = None
) -> Tensor:
    """Gradient [H, W, 3] of v_l1 * l1 + v_ssim * ssim with respect to the image."""
    out = torch.empty_like(image)
    load(isa).functions["sd_l1_ssim_backward"](
        image.data_ptr(), target.data_ptr(), ssim_gradient.data_ptr(), image.numel(), v_l1, v_ssim, out.data_ptr()
    )
    return out


def adam_(
    state: tuple[Tensor, Tensor, Tensor, Tensor],
    rates: tuple[float, float, float, float],
    step: int,
    visible: Tensor | None,
    isa: str | None = None,
) -> None:
    """One step in place on state = (param, grad, exp_avg, exp_avg_sq), rates = (lr, beta1, beta2, eps)."""
    param = state[0]
    rows = param.shape[0] if param.dim() else 1
    load(isa).functions["sd_adam"](
        *(t.data_ptr() for t in state), rows, param.numel() // max(rows, 1), _address(visible), *rates, step
    )
