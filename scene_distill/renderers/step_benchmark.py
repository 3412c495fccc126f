"""How long one training step of plain splats takes on this machine: ``scene-distill bench step``.

The step is a whole one, Python included: activations, projection and spherical harmonics of degree 3, depth order and
binning, raster, 0.8 L1 + 0.2 (1 - SSIM), the backward pass of all of it, and Adam over the 59 parameters of every
Gaussian. Scenes are those of `benchmark`.

Issue bound: a row step, 16 pixels of one Gaussian with exp2 as a polynomial, takes about 24 vector operations forward
and 45 backward. The rate of vector operations is that of independent multiply-adds on all threads, measured in the
same run.

Two ways to count the steps, both printed. ``row_evaluations_per_pixel`` counts rows of 16 x 1 pixels from the first to
the last row of a splat in a tile, without an early stop: it depends on the scene alone, the reference case has 134, and
``fraction_forward`` and ``fraction_backward`` are its bound over the time. ``evaluations_per_pixel`` counts what the
kernels evaluated, blocks of 8 x 2 pixels without those that were finished; ``occupation_forward`` and
``occupation_backward`` are its bound over the time, and say how busy the vector ports were with useful operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.conventions import SH_C0, TILE
from scene_distill.core.seeds import torch_generator
from scene_distill.renderers import native, native_features, ops
from scene_distill.renderers.benchmark import CASES, BenchCase, best_ms, synthetic_gaussians
from scene_distill.renderers.kernel_bounds import StepSizes, kernel_bounds, measure_rates

FORWARD_OPERATIONS, BACKWARD_OPERATIONS = 24, 45
"""Vector operations of a row step of 16 pixels."""

ROW_PIXELS = 16
RATES = {"means": 1.6e-4, "log_scales": 5e-3, "quats": 1e-3, "opacity_logits": 5e-2, "sh": 2.5e-3}
"""Learning rates of 3DGS; the figures do not depend on them."""


class SplatStep:
    """Parameters, moments and one picture of a synthetic case; calling it makes one training step."""

    def __init__(self, case: BenchCase) -> None:
        gaussians, self.pose, self.intrinsics = synthetic_gaussians(case)
        self.size = (case.width, case.height)
        generator = torch_generator("benchmark", case.name, "harmonics")
        harmonics = 0.05 * torch.randn((case.gaussians, 16, 3), generator=generator)
        harmonics[:, 0] = (gaussians.features - 0.5) / SH_C0
        self.parameters = {
            "means": gaussians.means.clone(), "log_scales": gaussians.scales.log(), "quats": gaussians.quats.clone(),
            "opacity_logits": gaussians.opacities.logit(), "sh": harmonics,
        }  # fmt: skip
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self.moments = {
            name: (torch.zeros_like(parameter), torch.zeros_like(parameter))
            for name, parameter in self.parameters.items()
        }
        self.background, self.steps = torch.zeros(3), 0
        with torch.no_grad():
            self.target = self.draw()[0].flip(1).contiguous()

    def stored(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """means, quats, log_scales, opacity_logits, sh."""
        own = self.parameters
        return own["means"], own["quats"], own["log_scales"], own["opacity_logits"], own["sh"]

    def draw(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The picture, and projected Gaussians, colours and lists that it was made from."""
        means2d, conics, depths, opacities2d, extents, colors = ops.project_splats(
            self.stored(), self.pose, self.intrinsics, self.size
        )
        screen = (means2d.detach(), conics.detach(), opacities2d.detach())
        lists = ops.bin(*screen, depths.detach(), extents, *self.size)
        image, alpha = ops.raster(means2d, conics, opacities2d, colors, self.background, *lists, *self.size)
        return image, (*screen, depths.detach(), extents, colors.detach(), *lists, image.detach(), alpha.detach())

    def update(self) -> None:
        """Adam over all parameters, with their present gradients."""
        self.steps += 1
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                ops.adam_(parameter, parameter.grad, *self.moments[name], RATES[name], 0.9, 0.999, 1e-15, self.steps)

    def __call__(self) -> None:
        """One training step."""
        image, _ = self.draw()
        l1, ssim = ops.l1_ssim(image, self.target)
        (0.8 * l1 + 0.2 * (1.0 - ssim)).backward()
        self.update()
        for parameter in self.parameters.values():
            parameter.grad = None


def row_evaluations(means2d: Tensor, extents: Tensor, lists: tuple[Tensor, Tensor], size: tuple[int, int]) -> float:
    """Pixel evaluations per pixel in 16 x 1 rows from first to last row of every splat, without an early stop."""
    offsets, pair_gaussian = lists[0].long(), lists[1].long()
    tiles_x = -(-size[0] // TILE)
    top = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff()) // tiles_x * TILE
    low = torch.ceil(means2d - extents - 0.5)[pair_gaussian, 1]
    high = torch.floor(means2d + extents - 0.5)[pair_gaussian, 1]
    rows = (high - top).clamp(0, TILE - 1) - (low - top).clamp(0, TILE - 1) + 1
    return float(rows.sum()) * ROW_PIXELS / (size[0] * size[1])


def stages_of(step: SplatStep) -> dict[str, Callable[[], Any]]:
    """The kernels of a step, one by one, on the data of one picture."""
    kernels = torch.ops.scene_distill
    with torch.no_grad():
        _, (means2d, conics, opacities2d, depths, extents, colors, *rest) = step.draw()
        stored = tuple(t.detach() for t in step.stored())
    lists, image, alpha = rest[:2], rest[2], rest[3]
    seen = (*stored, step.pose, step.intrinsics, *step.size, 3, False)
    drawn = (means2d, conics, opacities2d, colors, step.background, *lists)
    one, ssim_gradient = torch.ones(()), kernels.l1_ssim(image, step.target, True)[2]
    v_image = kernels.l1_ssim_backward(image, step.target, ssim_gradient, 0.8 * one, -0.2 * one)
    pulled = kernels.raster_backward(*drawn, image, alpha, v_image, None)
    v_screen = (pulled[0], pulled[1], None, pulled[2], pulled[3])
    columns = [torch.rand((len(means2d), 59)) for _ in range(4)]
    return {
        "project_forward": lambda: kernels.project_splats(*seen),
        "project_backward": lambda: kernels.project_splats_backward(*seen, extents, colors, *v_screen),
        "bin": lambda: kernels.bin(means2d, conics, opacities2d, depths, extents, *step.size),
        "raster_forward": lambda: kernels.raster(*drawn, *step.size),
        "raster_backward": lambda: kernels.raster_backward(*drawn, image, alpha, v_image, None),
        "l1_ssim_forward": lambda: kernels.l1_ssim(image, step.target, True),
        "l1_ssim_backward": lambda: kernels.l1_ssim_backward(image, step.target, ssim_gradient, one, one),
        "adam": lambda: kernels.adam_(*columns, 1e-3, 0.9, 0.999, 1e-15, 10, None),
    }


def bench_step(case: BenchCase, repetitions: int) -> dict[str, Any]:
    """Milliseconds of the step and its stages on one case, pairs and evaluations, and fractions of the issue bound."""
    step = SplatStep(case)
    with torch.no_grad():
        _, (means2d, conics, opacities2d, _, extents, _, *rest) = step.draw()
    lists, screen = (rest[0], rest[1]), (means2d, conics, opacities2d)
    shares = native_features.raster_contributions(screen, lists, None, step.size)
    evaluations, useful, pixels = shares[3], int(shares[2].sum()), case.width * case.height
    times = {name: best_ms(call, repetitions) for name, call in stages_of(step).items()}
    step_ms = best_ms(step, repetitions)
    rates = measure_rates(repetitions)
    rows = row_evaluations(means2d, extents, lists, step.size) * pixels
    forward, backward = times["raster_forward"], times["raster_backward"]

    def operations_for(evaluated: float) -> dict[str, float]:
        vectors = evaluated / native_features.lanes()
        return {"raster_forward": vectors * FORWARD_OPERATIONS, "raster_backward": vectors * BACKWARD_OPERATIONS}

    drawn = int((extents[:, 0] > 0).sum())
    sizes = StepSizes(case.gaussians, drawn, len(lists[1]), 3 * pixels)
    bounds = kernel_bounds(times, sizes, operations_for(rows), rates)
    busy = kernel_bounds(times, sizes, operations_for(evaluations), rates)

    return {
        "width": case.width, "height": case.height, "gaussians": case.gaussians, "step_ms": step_ms,
        "forward_ms": forward, "backward_ms": backward,
        "fraction_forward": bounds["raster_forward"]["fraction"],
        "fraction_backward": bounds["raster_backward"]["fraction"],
        "occupation_forward": busy["raster_forward"]["fraction"],
        "occupation_backward": busy["raster_backward"]["fraction"],
        "pairs": len(lists[1]), "row_evaluations_per_pixel": rows / pixels,
        "evaluations_per_pixel": evaluations / pixels, "useful_lanes": useful / evaluations,
        "vector_rate": rates.vector, "read_gb_per_s": rates.read / 1e9, "write_gb_per_s": rates.write / 1e9,
        "project_and_harmonics_ms": sum(ms for name, ms in times.items() if name.startswith("project")),
        "stages_ms": times, "bounds": bounds,
    }  # fmt: skip


def benchmark_step(repetitions: int = 12) -> dict[str, Any]:
    """Cases A (512 x 512, 100 000 Gaussians), B (1024 x 1024, 300 000), C (256 x 256, 20 000), and growth against A.

    Torch works on one thread meanwhile, as in a training run, so that its pool does not spin beside the kernels. The
    minimum of ``repetitions`` (at least 12) counts; on a busy machine give the process priority (``chrt -f 50``).
    """
    repetitions = max(repetitions, 12)
    kept, threads = native.keep_freed_memory(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report: dict[str, Any] = {"isa": native.load().isa, "threads": native.get_threads(), "keeps_freed_memory": kept}
        for case in CASES:
            if case.name in ("A", "B", "C"):
                report[f"case_{case.name.lower()}"] = bench_step(case, repetitions)
    finally:
        torch.set_num_threads(threads)
    reference = report["case_a"]
    report["growth"] = {
        name: {
            "gaussians": report[name]["gaussians"] / reference["gaussians"],
            "pixels": report[name]["width"] * report[name]["height"] / (reference["width"] * reference["height"]),
            "step": report[name]["step_ms"] / reference["step_ms"],
        }
        for name in ("case_b", "case_c")
    }
    return report
