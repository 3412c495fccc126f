"""Our CUDA kernels behind the op set: a ctypes binding of the launchers in cuda/gpu/launchers.h.

`CudaKernels` has one method per op of `ops`, with the op's schema, on torch tensors: it allocates results and scratch
with torch, passes plain pointers and the current stream, and never waits for the device, except in `bin`, whose result
has a size that only the device knows. `register` offers the methods for CUDA tensors; the library is loaded when the
first one arrives, so importing this module needs neither a GPU nor the library. The same class drives the emulated
kernels (cuda/simt) on CPU tensors in the tests.

Gaussians with NaN or infinite numbers are culled by `project` and reported by `bin`, which waits anyway: the CPU's
`UserError`, one op later. The order of atomic additions leaves the last bits of the raster gradients open; all other
results are reproducible.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_float, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.conventions import TILE
from scene_distill.core.errors import UserError
from scene_distill.renderers import cuda_splats
from scene_distill.renderers.cuda_structures import (
    Adam,
    AnchorGradients,
    Anchors,
    BinInputs,
    BinOrder,
    BinPairs,
    Contributions,
    Decoded,
    Harmonics,
    HarmonicsGradients,
    Images,
    Pictures,
    Projected,
    ProjectedGradients,
    RasterGradients,
    RasterInputs,
    RasterScratch,
    Similarity,
    Slots,
    WorldGaussians,
    WorldGradients,
)
from scene_distill.renderers.native import LIMITS, Limits, not_finite
from scene_distill.renderers.native import library_path as newest_library

_ANCHOR_SLOTS = 10


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _tile_count(width: int, height: int) -> int:
    return -(-width // TILE) * -(-height // TILE)


def _optional(inputs: Sequence[Any], index: int) -> Any:
    return inputs[index] if len(inputs) > index else None  # torch leaves arguments out that equal their default


class _Arguments:
    """Addresses of tensors for one launch; keeps contiguous copies alive until the launch has been queued."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def __call__(self, *tensors: Tensor | None) -> list[int | None]:
        dense = [None if t is None else t.contiguous() for t in tensors]
        self._kept += [t for t in dense if t is not None]
        return [_address(t) for t in dense]


class CudaKernels:
    """The launchers of one compiled library as functions of torch tensors, one method per op schema of `ops`.

    ``path``: `_scene_distill_cuda.so`, or the emulator's build of the same sources, which takes CPU tensors.
    ``limits``: thresholds, by default those of core/conventions.py. A failed launch raises RuntimeError.
    """

    def __init__(self, path: Path, limits: Limits = LIMITS) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.sd_cuda_error_string.restype = c_char_p
        self._library.sd_cuda_scratch_bytes.restype = c_size_t
        self._limits = limits

    def _launch(self, name: str, device: torch.device, *arguments: Any) -> None:
        launcher = getattr(self._library, f"sd_cuda_{name}")
        if device.type == "cuda":
            with torch.cuda.device(device):
                stream = c_void_p(torch.cuda.current_stream().cuda_stream)
                error = self._library.sd_cuda_set_device(torch.cuda.current_device()) or launcher(*arguments, stream)
        else:
            error = launcher(*arguments, None)
        if error:
            raise RuntimeError(f"CUDA kernel {name}: {self._library.sd_cuda_error_string(error).decode()}")

    def _count(self, name: str, *arguments: int) -> int:
        return getattr(self._library, f"sd_cuda_{name}")(*arguments)

    def _world(self, at: _Arguments, inputs: Sequence[Any], orthographic: bool) -> WorldGaussians:
        return WorldGaussians(*at(*inputs[:6]), inputs[0].shape[0], *inputs[6:9], orthographic, self._limits)

    def project_orthographic(self, *inputs: Any) -> tuple[Tensor, ...]:
        """`project` of a camera without perspective."""
        return self.project(*inputs, orthographic=True)

    def project_orthographic_backward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """`project_backward` of a camera without perspective."""
        return self.project_backward(*inputs, orthographic=True)

    def project(self, *inputs: Any, orthographic: bool = False) -> tuple[Tensor, ...]:
        """means2d, conics, depths, opacities2d, extents; see `ops.project`. The extents of Gaussians that are not
        finite are -1: `bin` raises for them."""
        at, tensors = _Arguments(), inputs[:6]
        new, count = tensors[0].new_empty, tensors[0].shape[0]
        out = (new((count, 2)), new((count, 3)), new((count,)), new((count,)), new((count, 2)))
        world = self._world(at, inputs, orthographic)
        self._launch("project", tensors[0].device, byref(world), byref(Projected(*at(*out))))
        return out

    def project_backward(self, *inputs: Any, orthographic: bool = False) -> tuple[Tensor, ...]:
        """Gradients of the six tensors of `project`; the camera's are zero without the last input, camera_grad."""
        at, tensors = _Arguments(), inputs[:6]
        extents, *screen, camera_grad = inputs[9:]
        new, count = tensors[0].new_empty, tensors[0].shape[0]
        out = [new(tensor.shape) for tensor in tensors[:4]]
        camera = new((16,)) if camera_grad else None
        partials = new((max(self._count("project_blocks", count), 1), 16)) if camera_grad else None
        world, given = self._world(at, inputs, orthographic), ProjectedGradients(*at(*screen, extents))
        self._launch(
            "project_backward",
            tensors[0].device,
            byref(world),
            byref(given),
            byref(WorldGradients(*at(*out, camera, partials))),
        )
        pose, intrinsics = tensors[4].new_zeros((4, 4)), tensors[5].new_zeros((4,))
        if camera is not None:
            pose[:3], intrinsics = camera[:12].view(3, 4), camera[12:]
        return *out, pose, intrinsics

    def _scratch(self, count: int, like: Tensor) -> Tensor:
        return like.new_empty((max(self._library.sd_cuda_scratch_bytes(count), 1),), dtype=torch.uint8)

    def bin(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """tile_offsets [T + 1] and pair_gaussian [M], int32; see `ops.bin`. Waits for the device once, to learn M.

        Raises `UserError` when `project` met Gaussians that are not finite.
        """
        at, screen, (width, height) = _Arguments(), inputs[:5], inputs[5:7]
        count, device = screen[0].shape[0], screen[0].device

        def new(*sizes: int) -> list[Tensor]:
            return [torch.empty(size, dtype=torch.int32, device=device) for size in sizes]

        (tile_offsets,) = new(_tile_count(width, height) + 1)
        if count == 0:
            return tile_offsets.zero_(), new(0)[0]
        buffers = new(count, count, count, count, count + 1, count + 2)
        scratch = self._scratch(count + 1, screen[0])
        order = BinOrder(*at(*buffers, scratch), scratch.numel())
        given = BinInputs(*at(*screen), count, width, height, self._limits)
        self._launch("bin_count", device, byref(given), byref(order))
        pairs, wrong = buffers[5][count:].tolist()
        if wrong:
            raise not_finite(wrong, count)
        lists = new(pairs, pairs, pairs, pairs)
        pair_scratch = self._scratch(pairs, screen[0])
        filled = BinPairs(*at(*lists, tile_offsets), pairs, pair_scratch.data_ptr(), pair_scratch.numel())
        self._launch("bin_fill", device, byref(given), byref(order), byref(filled))
        return tile_offsets, lists[3]

    def _raster_inputs(
        self, at: _Arguments, tensors: Sequence[Tensor], mask: Tensor | None, size: tuple[int, int]
    ) -> RasterInputs:
        return RasterInputs(*at(*tensors, mask), tensors[3].shape[1], *size, self._limits)

    def raster(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """image [H, W, D] and alpha [H, W]; see `ops.raster`."""
        at, features, (width, height), mask = _Arguments(), inputs[3], inputs[7:9], _optional(inputs, 9)
        image, alpha = features.new_empty((height, width, features.shape[1])), features.new_empty((height, width))
        given = self._raster_inputs(at, inputs[:7], mask, (width, height))
        self._launch("raster", features.device, byref(given), *map(c_void_p, at(image, alpha)))
        return image, alpha

    def raster_backward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Gradients of means2d, conics, opacities2d, features and background; see `ops.raster`."""
        return self._raster_backward(inputs[:7], inputs[7:11], _optional(inputs, 11), None)

    def raster_probed(self, means2d: Tensor, probe: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """The picture of `raster`; only the backward pass differs. See `ops.raster_probed`."""
        return self.raster(means2d, *rest[:8], _optional(rest, 9))

    def raster_probed_backward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """`raster_backward` of clipped pixels, and sum |dL/d means2d| [N, 2] (zeros when not ``absolute``)."""
        image, alpha, v_image, v_alpha, gradient_bound, absolute = inputs[7:13]
        probe = torch.zeros_like(inputs[0], memory_format=torch.contiguous_format)
        if gradient_bound < math.inf:
            v_image = self._clipped(v_image, gradient_bound)
        pictures, mask = (image, alpha, v_image, v_alpha), _optional(inputs, 13)
        return *self._raster_backward(inputs[:7], pictures, mask, probe if absolute else None), probe

    def raster_contributions(self, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """weight_sum [N], weight_max [N] and pixels [N] int32; see `ops.raster_contributions`."""
        at, screen, lists, size, mask = _Arguments(), inputs[:3], inputs[3:5], inputs[5:7], _optional(inputs, 7)
        count, device = screen[2].shape[0], screen[2].device
        weight_sum, weight_max = screen[2].new_empty(count), screen[2].new_zeros(count)
        pixels, sums = (torch.zeros(count, dtype=kind, device=device) for kind in (torch.int32, torch.int64))
        given = RasterInputs(*at(*screen, None, None, *lists, mask), 0, *size, self._limits)
        out = Contributions(*at(weight_sum, weight_max, pixels, sums))
        self._launch("raster_contributions", device, byref(given), count, byref(out))
        return weight_sum, weight_max, pixels

    def raster_median(self, *inputs: Any) -> Tensor:
        """[H, W] int32; see `ops.raster_median`."""
        at, screen, lists, (width, height), mask = (
            _Arguments(), inputs[:3], inputs[3:5], inputs[5:7], _optional(inputs, 7),
        )  # fmt: skip
        median = torch.empty((height, width), dtype=torch.int32, device=screen[0].device)
        given = RasterInputs(*at(*screen, None, None, *lists, mask), 0, width, height, self._limits)
        self._launch("raster_median", median.device, byref(given), *map(c_void_p, at(median)))
        return median

    def _clipped(self, v_image: Tensor, bound: float) -> Tensor:
        at, out, channels = _Arguments(), v_image.new_empty(v_image.shape), v_image.shape[2]
        given, written = map(c_void_p, at(v_image, out))
        self._launch("clip_pixels", v_image.device, given, out.numel() // channels, channels, c_float(bound), written)
        return out

    def _raster_backward(
        self,
        tensors: Sequence[Tensor],
        pictures: Sequence[Tensor | None],
        mask: Tensor | None,
        probe: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """``pictures`` = (image, alpha, v_image, v_alpha); ``probe`` [N, 2] is added to."""
        image, _, v_image, v_alpha = pictures
        assert image is not None and v_image is not None
        at, (height, width, channels), new = _Arguments(), image.shape, tensors[0].new_empty
        pairs, tiles = tensors[6].numel(), _tile_count(width, height)
        buckets = self._count("raster_buckets", pairs, tiles)
        out = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in tensors[:4]] + [new((channels,))]
        scratch = RasterScratch(
            *at(
                new((buckets, TILE * TILE, 2)),
                new((buckets,), dtype=torch.int32),
                new((height, width)),
                new((tiles, channels)),
            ),
            pairs,
        )
        given = self._raster_inputs(at, tensors, mask, (width, height))
        apart = probe is not None and channels > self._count("raster_slice_channels")
        self._launch(
            "raster_backward", v_image.device, byref(given), *map(c_void_p, at(v_image, v_alpha)),
            byref(RasterGradients(*at(*out, None if apart else probe))), byref(scratch),
        )  # fmt: skip
        if apart:
            drawn = Pictures(*at(*pictures))
            self._launch("raster_absolute", image.device, byref(given), byref(drawn), *map(c_void_p, at(probe)))
        return tuple(out)

    def _harmonics(self, at: _Arguments, inputs: Sequence[Any]) -> Harmonics:
        means, coefficients, camera_center, degree, extents = inputs
        pointers = at(means, coefficients, camera_center, extents)
        return Harmonics(*pointers, *coefficients.shape[:2], degree)

    def spherical_harmonics(self, *inputs: Any) -> Tensor:
        """Colours [N, 3]; see `ops.spherical_harmonics`."""
        at, out = _Arguments(), inputs[0].new_empty(inputs[0].shape)
        harmonics = self._harmonics(at, inputs)
        self._launch("spherical_harmonics", out.device, byref(harmonics), *map(c_void_p, at(out)))
        return out

    def spherical_harmonics_backward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Gradients of means, coefficients and camera_center; the last is zero without the last input, center_grad."""
        at, (colors, v_colors, center_grad), new = _Arguments(), inputs[5:], inputs[0].new_empty
        out = [new(tensor.shape) for tensor in inputs[:2]]
        center = torch.zeros_like(inputs[2], memory_format=torch.contiguous_format)
        blocks = max(self._count("harmonics_blocks", inputs[0].shape[0]), 1)
        wanted = (center, new((blocks, 3))) if center_grad else (None, None)
        harmonics = self._harmonics(at, inputs[:5])
        self._launch(
            "spherical_harmonics_backward", colors.device, byref(harmonics), *map(c_void_p, at(colors, v_colors)),
            byref(HarmonicsGradients(*at(*out, *wanted))),
        )  # fmt: skip
        return *out, center

    def l1_ssim(self, image: Tensor, target: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
        """l1 [], ssim [] and d ssim / d image ([H, W, 3], or empty without ``with_gradient``); see `ops.l1_ssim`."""
        at, (height, width, _), new = _Arguments(), image.shape, image.new_empty
        means, partials = new((2,)), new((self._count("similarity_blocks", width, height), 2))
        gradient = new((height, width, 3) if with_gradient else (0,))
        maps = new((9, height, width)) if with_gradient else None
        out = Similarity(*at(partials, means, maps, gradient if with_gradient else None))
        self._launch("l1_ssim", image.device, byref(Images(*at(image, target), width, height)), byref(out))
        return means[0].clone(), means[1].clone(), gradient

    def l1_ssim_backward(
        self, image: Tensor, target: Tensor, ssim_gradient: Tensor, v_l1: Tensor, v_ssim: Tensor
    ) -> Tensor:
        """Gradient [H, W, 3] of v_l1 * l1 + v_ssim * ssim with respect to the image."""
        at, (height, width, _), out = _Arguments(), image.shape, image.new_empty(image.shape)
        images = Images(*at(image, target), width, height)
        self._launch(
            "l1_ssim_backward", image.device, byref(images), *map(c_void_p, at(ssim_gradient, v_l1, v_ssim, out))
        )
        return out

    def adam_(self, *inputs: Any) -> None:
        """One Adam step in place; see `ops.adam_`."""
        at, (param, grad, exp_avg, exp_avg_sq, *rates, step, visible) = _Arguments(), inputs
        rows = param.shape[0] if param.dim() else 1
        pointers = at(param, grad, exp_avg, exp_avg_sq, visible)
        step_ = Adam(*pointers, param.numel(), param.numel() // max(rows, 1), *rates, step)
        self._launch("adam", param.device, byref(step_))

    def _anchors(self, at: _Arguments, inputs: Sequence[Any]) -> Anchors:
        weights = (c_void_p * 12)(*at(*inputs[6]))
        return Anchors(*at(*inputs[:6]), weights, inputs[4].numel())

    def decode_anchors(self, *inputs: Any) -> tuple[Tensor, ...]:
        """means, scales, quats, alphas, colors of the V * 10 slots; see `ops.decode_anchors`."""
        at, new, slots = _Arguments(), inputs[0].new_empty, inputs[4].numel() * _ANCHOR_SLOTS
        out = tuple(new(shape) for shape in ((slots, 3), (slots, 3), (slots, 4), (slots,), (slots, 3)))
        self._launch("decode_anchors", inputs[0].device, byref(self._anchors(at, inputs)), byref(Decoded(*at(*out))))
        return out

    def decode_anchors_backward(self, *inputs: Any) -> list[Tensor]:
        """Gradients of the four anchor tensors, then of the twelve weights (views of one buffer)."""
        at, weights, grads = _Arguments(), inputs[6], inputs[7]
        out = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs[:4]]
        size, blocks = self._count("decoder_size"), self._count("decode_blocks", inputs[4].numel())
        packed, partials = inputs[0].new_empty((size,)), inputs[0].new_empty((max(blocks, 1), size))
        self._launch(
            "decode_anchors_backward", inputs[0].device, byref(self._anchors(at, inputs)), byref(Decoded(*at(*grads))),
            byref(AnchorGradients(*at(*out, packed, partials))),
        )  # fmt: skip
        parts = packed.split([weight.numel() for weight in weights])
        return [*out, *(part.view(weight.shape) for part, weight in zip(parts, weights, strict=True))]

    def _consistency_sums(self, at: _Arguments, student: Slots, teacher: Slots, like: Tensor) -> tuple[Tensor, Tensor]:
        count, new = like.shape[0], like.new_empty
        partials, sums, loss = new((max(self._count("consistency_blocks", count), 1), 5)), new((5,)), new(())
        self._launch(
            "momentum_consistency",
            like.device,
            byref(student),
            byref(teacher),
            count,
            *map(c_void_p, at(partials, sums, loss)),
        )
        return loss, sums

    def momentum_consistency(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """The scalar L_c of Momentum-GS; see `ops.momentum_consistency`."""
        at = _Arguments()
        return self._consistency_sums(at, Slots(*at(*student)), Slots(*at(*teacher)), student[2])[0]

    def momentum_consistency_backward(
        self, student: list[Tensor], teacher: list[Tensor], v_loss: Tensor
    ) -> list[Tensor]:
        """Gradients of the four tensors of the student, then of the teacher."""
        at, alphas = _Arguments(), student[2]
        mine, others = Slots(*at(*student)), Slots(*at(*teacher))
        _, sums = self._consistency_sums(at, mine, others, alphas)
        out = [t.new_empty(t.shape) for t in (*student, *teacher)]
        self._launch(
            "momentum_consistency_backward", alphas.device, byref(mine), byref(others), alphas.shape[0],
            *map(c_void_p, at(sums, v_loss)), byref(Slots(*at(*out[:4]))), byref(Slots(*at(*out[4:]))),
        )  # fmt: skip
        return out


def library_path() -> Path:
    """Where the compiled kernels lie. Raises `UserError` when the package was built without nvcc."""
    try:
        return newest_library("_scene_distill_cuda.so")
    except UserError:
        raise UserError(
            "tensors are on a GPU but the CUDA kernels are missing; reinstall scene-distill (pip install .) where nvcc "
            "is on PATH, or keep the tensors on the CPU"
        ) from None


@functools.cache
def load() -> CudaKernels:
    """The compiled kernels with the thresholds of core/conventions.py."""
    return CudaKernels(library_path())


OPS = (
    "project", "project_backward", "bin", "raster", "raster_backward", "l1_ssim", "l1_ssim_backward", "adam_",
    "decode_anchors", "decode_anchors_backward", "momentum_consistency", "momentum_consistency_backward",
    "raster_probed", "raster_probed_backward", "raster_contributions", "raster_median", "project_orthographic",
    "project_orthographic_backward", "spherical_harmonics", "spherical_harmonics_backward",
    *cuda_splats.COMPOSED,
)  # fmt: skip
"""Schemas of `ops` that have a CUDA kernel."""


def register(library: torch.library.Library) -> None:
    """Offer the kernels for CUDA tensors under the schemas that ``library`` defines; loads nothing yet."""
    for name in OPS:
        library.impl(name, functools.partial(_run, name), "CUDA")


def _run(name: str, *inputs: Any) -> Any:
    composed = cuda_splats.COMPOSED.get(name)
    return composed(load(), *inputs) if composed else getattr(load(), name)(*inputs)
