"""How long the kernels take on this machine: ``scene-distill bench rasterizer``.

The scene is made in screen space and lifted to the world: uniform centres, log-normal axes around ``sigma_px``,
opacities in [0.02, 0.97]. Case A (512 x 512, 100 000 Gaussians, 1.5 px) has the statistics on which OpenSplat's CPU
rasterizer, the published alternative, was timed at 988 ms forward and backward (2-core Xeon, gcc -O3 -march=native).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.conventions import TILE
from scene_distill.core.gaussians import Gaussians
from scene_distill.core.seeds import torch_generator
from scene_distill.renderers import native, ops

OPENSPLAT_CASE_A_MS = 988.0
"""OpenSplat, CPU, rasterization forward + backward of case A (measured on two cores of a Granite Rapids Xeon)."""

ADAM_COLUMNS = 59
"""Parameters of a classic Gaussian with spherical harmonics of degree 3: what the Adam figure updates per Gaussian."""


@dataclass(frozen=True)
class BenchCase:
    """One synthetic scene: image size in px, number of Gaussians, median standard deviation in px."""

    name: str
    width: int
    height: int
    gaussians: int
    sigma_px: float


CASES = (
    BenchCase("A", 512, 512, 100_000, 1.5),
    BenchCase("B", 1024, 1024, 300_000, 1.5),
    BenchCase("C", 256, 256, 20_000, 1.5),
    BenchCase("D", 512, 512, 2_000, 15.0),
)


def synthetic_gaussians(case: BenchCase) -> tuple[Gaussians, Tensor, Tensor]:
    """Gaussians, cam_from_world [4, 4] and intrinsics [4] whose projections have the statistics of the case."""
    generator = torch_generator("benchmark", case.name)
    focal = float(case.width)
    uniform = torch.rand((case.gaussians, 8), generator=generator)
    axes = case.sigma_px * torch.exp(0.7 * torch.randn((case.gaussians, 2), generator=generator))
    depth = 2.0 + 8.0 * uniform[:, 0]
    x = (uniform[:, 1] - 0.5) * case.width / focal * depth
    y = (uniform[:, 2] - 0.5) * case.height / focal * depth
    half_turn = uniform[:, 3] * math.pi
    zero = torch.zeros_like(half_turn)
    quats = torch.stack([torch.cos(half_turn), zero, zero, torch.sin(half_turn)], dim=-1)
    scales = torch.cat([axes, axes.amin(1, keepdim=True)], dim=1) * (depth / focal)[:, None]
    opacities = 0.02 + 0.95 * uniform[:, 4]
    gaussians = Gaussians(torch.stack([x, y, depth], dim=-1), quats, scales, opacities, uniform[:, 5:8].contiguous())
    intrinsics = torch.tensor([focal, focal, case.width / 2, case.height / 2])
    return gaussians, torch.eye(4), intrinsics


def best_ms(call: Callable[[], Any], repetitions: int) -> float:
    """Shortest wall time of ``call`` in milliseconds; the minimum is what a shared machine disturbs least."""
    call()
    best = math.inf
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def lane_evaluations(means2d: Tensor, extents: Tensor, lists: tuple[Tensor, Tensor], width: int, height: int) -> float:
    """Pixel-Gaussian evaluations per pixel that the 8-pixel-wide blocks of the kernels do at most (no early stop)."""
    offsets, pair_gaussian = lists[0].long(), lists[1].long()
    tiles_x = -(-width // TILE)
    tile = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    corner = torch.stack([tile % tiles_x, tile // tiles_x], dim=-1) * TILE
    low = (torch.ceil(means2d - extents - 0.5)[pair_gaussian] - corner).clamp(0, TILE - 1)
    high = (torch.floor(means2d + extents - 0.5)[pair_gaussian] - corner).clamp(0, TILE - 1)
    block = torch.tensor([8, 2 if native.load().isa == "avx512" else 1])
    blocks = (high.div(block, rounding_mode="floor") - low.div(block, rounding_mode="floor") + 1).prod(-1)
    return float(blocks.sum() * block.prod()) / (width * height)


def bench_case(case: BenchCase, repetitions: int = 12) -> dict[str, Any]:
    """Milliseconds of every stage of a training step on one synthetic scene, with its pair statistics."""
    gaussians, pose, intrinsics = synthetic_gaussians(case)
    width, height = case.width, case.height
    world = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    means2d, conics, depths, opacities2d, extents = ops.project(*world, pose, intrinsics, width, height)
    lists = ops.bin(means2d, conics, opacities2d, depths, extents, width, height)
    background = torch.zeros(3)
    drawn = (means2d, conics, opacities2d, gaussians.features, background, *lists)
    image, alpha = ops.raster(*drawn, width, height)
    target = image.flip(1).contiguous()
    v_image = torch.randn(image.shape, generator=torch_generator("benchmark", "v"))
    kernels = torch.ops.scene_distill
    pulled = kernels.raster_backward(*drawn, image, alpha, v_image, None)
    ssim_gradient = kernels.l1_ssim(image, target, True)[2]
    moments = [torch.rand((case.gaussians, ADAM_COLUMNS)) for _ in range(4)]
    one = torch.ones(())
    stages: dict[str, Callable[[], Any]] = {
        "project_forward": lambda: ops.project(*world, pose, intrinsics, width, height),
        "project_backward": lambda: kernels.project_backward(
            *world, pose, intrinsics, width, height, False, extents, pulled[0], pulled[1], None, pulled[2], False
        ),
        "bin": lambda: ops.bin(means2d, conics, opacities2d, depths, extents, width, height),
        "raster_forward": lambda: ops.raster(*drawn, width, height),
        "raster_backward": lambda: kernels.raster_backward(*drawn, image, alpha, v_image, None),
        "l1_ssim_forward": lambda: kernels.l1_ssim(image, target, True),
        "l1_ssim_backward": lambda: kernels.l1_ssim_backward(image, target, ssim_gradient, one, one),
        "adam_59": lambda: kernels.adam_(*moments, 1e-3, 0.9, 0.999, 1e-15, 10, None),
    }
    times = {name: best_ms(call, repetitions) for name, call in stages.items()}
    raster = times["raster_forward"] + times["raster_backward"]
    return {
        "width": width, "height": height, "gaussians": case.gaussians,
        "pairs": int(lists[1].shape[0]),
        "lane_evaluations_per_pixel": lane_evaluations(means2d, extents, lists, width, height),
        "ms": times, "raster_ms": raster, "raster_and_bin_ms": raster + times["bin"],
    }  # fmt: skip


def bench_anchors(anchors: int = 30_000, repetitions: int = 12) -> dict[str, Any]:
    """Milliseconds of decoding ``anchors`` visible anchors into ten slots each and of comparing two decodings."""
    generator = torch_generator("benchmark", "anchors")

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    fields = [normal(anchors, 3), normal(anchors, 32), normal(anchors, 10, 3), normal(anchors, 6)]
    weights = [normal(*shape) for out in (10, 70, 30) for shape in ((32, 35), (32,), (out, 32), (out,))]
    visible, center = torch.arange(anchors), normal(3)
    student = ops.decode_anchors(fields[0], fields[1], fields[2], fields[3], visible, center, weights)
    slots, teacher = list(student[1:]), [torch.roll(tensor, 1, 0) for tensor in student[1:]]
    kernels, one = torch.ops.scene_distill, torch.ones(())
    stages: dict[str, Callable[[], Any]] = {
        "decode_forward": lambda: kernels.decode_anchors(*fields, visible, center, weights),
        "decode_backward": lambda: kernels.decode_anchors_backward(*fields, visible, center, weights, list(student)),
        "consistency_forward": lambda: kernels.momentum_consistency(slots, teacher),
        "consistency_backward": lambda: kernels.momentum_consistency_backward(slots, teacher, one),
    }
    return {"anchors": anchors, "ms": {name: best_ms(call, repetitions) for name, call in stages.items()}}


def benchmark_rasterizer(repetitions: int = 12, cases: tuple[str, ...] = ("A",)) -> dict[str, Any]:
    """Figures of the named cases on this machine: instruction set, threads, milliseconds, and how much faster than
    OpenSplat.

    The minimum of ``repetitions`` counts. On a busy machine give the process priority (``chrt -f 50``), or the
    figures are those of the neighbours.
    """
    kept = native.keep_freed_memory()  # as a training does
    report: dict[str, Any] = {"isa": native.load().isa, "threads": native.get_threads(), "keeps_freed_memory": kept}
    for case in CASES:
        if case.name in cases:
            report[f"case_{case.name}"] = bench_case(case, repetitions)
    report["anchor_decoder"] = bench_anchors(repetitions=repetitions)
    if "case_A" in report:
        report["opensplat_ms"] = OPENSPLAT_CASE_A_MS
        report["times_faster"] = OPENSPLAT_CASE_A_MS / report["case_A"]["raster_ms"]
        report["times_faster_with_bin"] = OPENSPLAT_CASE_A_MS / report["case_A"]["raster_and_bin_ms"]
    return report
