"""How long pictures of many channels take: the feature cases of ``scene-distill bench rasterizer``.

The scene is case A of `benchmark`. Floating-point operations are those that the picture needs: 2 D per pixel and
Gaussian that is drawn in it forward, twice as many backward (v_feature = W^T V, and the dots of feature and V). The
matrix rate is that of the product kernel alone, on a full list whose operands stay in the caches.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.seeds import torch_generator
from scene_distill.renderers import native, ops
from scene_distill.renderers.benchmark import CASES, best_ms, synthetic_gaussians

CHANNELS = (32, 64, 128, 512)


def matrix_rate(repetitions: int = 12) -> float:
    """Floating-point operations per second of the chosen matrix path alone, on all threads."""
    run = native.load().functions["sd_matrix_multiply_adds"]
    best, done = math.inf, 0.0
    for _ in range(repetitions):
        start = time.perf_counter()
        done = run(16, 50)
        best = min(best, time.perf_counter() - start)
    return 2 * done / best


@dataclass(frozen=True, eq=False)
class FeatureScene:
    """Case A: (means2d, conics, opacities2d), tile lists, (width, height), and Gaussians drawn, added over pixels."""

    screen: tuple[Tensor, Tensor, Tensor]
    lists: tuple[Tensor, Tensor]
    size: tuple[int, int]
    drawn: int


def feature_scene() -> FeatureScene:
    """The scene of every feature case."""
    case = CASES[0]
    size = (case.width, case.height)
    gaussians, pose, intrinsics = synthetic_gaussians(case)
    world = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    means2d, conics, depths, opacities2d, extents = ops.project(*world, pose, intrinsics, *size)
    screen, lists = (means2d, conics, opacities2d), ops.bin(means2d, conics, opacities2d, depths, extents, *size)
    drawn = int(ops.raster_contributions(screen, lists, size)[2].sum())
    return FeatureScene(screen, lists, size, drawn)


def picture_ms(scene: FeatureScene, channels: int, repetitions: int) -> tuple[float, float]:
    """Milliseconds forward and backward of a picture of ``channels`` channels."""
    count, generator = len(scene.screen[2]), torch_generator("benchmark", "features")
    features, background = torch.rand((count, channels), generator=generator), torch.zeros(channels)
    drawn = native.raster(scene.screen, features, background, scene.lists, scene.size)
    v_image = torch.randn(drawn[0].shape, generator=generator)
    inputs = (scene.screen, features, background, scene.lists)
    return (
        best_ms(lambda: native.raster(*inputs, scene.size), repetitions),
        best_ms(lambda: native.raster_backward(*inputs, drawn, (v_image, None)), repetitions),
    )


def bench_features(repetitions: int = 12, channels: tuple[int, ...] = CHANNELS) -> dict[str, Any]:
    """Milliseconds, GFLOP/s and fraction of the matrix rate for every number of channels and matrix path.

    ``passes_of_16``: one picture of 16 channels times D / 16, what wide pictures cost without matrix products.
    """
    native.keep_freed_memory()  # as a training does
    scene, before = feature_scene(), native.get_matrix()
    one_pass = picture_ms(scene, 16, repetitions)
    paths = native.supported_matrix_paths() if native.load().isa == "avx512" else ("vector",)
    report: dict[str, Any] = {"isa": native.load().isa, "threads": native.get_threads(),
                              "drawn_per_pixel": scene.drawn / math.prod(scene.size)}  # fmt: skip
    for width in channels:
        rounds = repetitions if width <= 128 else max(2, repetitions // 2)
        passes = [ms * width / 16 for ms in one_pass]
        found: dict[str, Any] = {"passes_of_16": {"forward_ms": passes[0], "backward_ms": passes[1]}}
        for path in (*paths, "amx_bfloat16") if "amx" in paths else paths:
            native.set_matrix(path)
            rate = matrix_rate(repetitions) * 1e-9
            forward, backward = picture_ms(scene, width, rounds)
            gflops = 2e-6 * width * scene.drawn / forward, 4e-6 * width * scene.drawn / backward
            found[path] = {"forward_ms": forward, "backward_ms": backward, "gflops_forward": gflops[0],
                           "gflops_backward": gflops[1], "matrix_gflops": rate,
                           "fraction_forward": gflops[0] / rate, "fraction_backward": gflops[1] / rate}  # fmt: skip
        report[f"channels_{width}"] = found
    native.set_matrix(before)
    return report
