"""The benchmarked training step trains, and its counts are those of a brute-force walk over the tiles."""

from __future__ import annotations

import pytest
import torch

from scene_distill.renderers import native, ops
from scene_distill.renderers.benchmark import BenchCase
from scene_distill.renderers.kernel_bounds import measure_rates
from scene_distill.renderers.step_benchmark import SplatStep, bench_step, row_evaluations

SMALL = BenchCase("small", 72, 48, 600, 1.5)


def test_the_step_trains():
    step = SplatStep(SMALL)

    def error() -> float:
        with torch.no_grad():
            return float(ops.l1_ssim(step.draw()[0], step.target)[0])

    before = error()
    for _ in range(30):
        step()
    assert error() < 0.7 * before
    assert all(moments[1].any() for moments in step.moments.values())  # every parameter got gradients


def test_the_report_has_the_agreed_keys_and_plausible_figures():
    report = bench_step(SMALL, 1)
    keys = {"step_ms", "forward_ms", "backward_ms", "fraction_forward", "fraction_backward", "pairs", "stages_ms"}
    assert keys <= set(report)
    assert report["step_ms"] > 0 and report["forward_ms"] > 0
    assert 0 < report["useful_lanes"] < 1 and report["evaluations_per_pixel"] > 1
    assert report["occupation_forward"] > 0 and report["fraction_backward"] > 0
    assert set(report["bounds"]) == set(report["stages_ms"])
    for name, bound in report["bounds"].items():
        assert ("bytes" in bound) != ("operations" in bound) and bound["bound_ms"] > 0
        assert bound["fraction"] == pytest.approx(bound["bound_ms"] / report["stages_ms"][name])
    assert report["bounds"]["adam"]["bytes"] == 600 * 59 * 28
    assert report["bounds"]["raster_forward"]["fraction"] == report["fraction_forward"]


def test_memory_rates_are_those_of_a_machine():
    rates = measure_rates(2)
    assert 1e8 < rates.write < 1e13 and 1e8 < rates.read < 1e13 and rates.vector > 1e8


def test_rows_are_counted_as_a_walk_over_the_pairs_does():
    step = SplatStep(SMALL)
    with torch.no_grad():
        _, (means2d, _, _, _, extents, _, *rest) = step.draw()
    offsets, pairs = rest[0].tolist(), rest[1].tolist()
    tiles_x, rows = -(-SMALL.width // 16), 0
    for tile in range(len(offsets) - 1):
        top = tile // tiles_x * 16
        for g in pairs[offsets[tile] : offsets[tile + 1]]:
            low, high = float(means2d[g, 1] - extents[g, 1]), float(means2d[g, 1] + extents[g, 1])
            rows += sum(low <= top + row + 0.5 <= high for row in range(16))
    expected = rows * 16 / (SMALL.width * SMALL.height)
    assert row_evaluations(means2d, extents, (rest[0], rest[1]), (72, 48)) == pytest.approx(expected, rel=0.02)


def test_a_chosen_number_of_threads_outlives_the_first_kernel_of_another_instruction_set():
    try:
        native.set_threads(1)
        native.load.cache_clear()
        for isa in native.supported_isas():
            native.load(isa)
        assert native.get_threads() == 1
    finally:
        native.set_threads(native.available_cores())
