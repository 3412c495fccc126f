"""The trainer benchmark plans its runs from the ones before, and never repeats a finished one."""

import json

import pytest

from scene_distill.cli.trainer_benchmark import RESERVE, TrainerCase, benchmark_trainer
from scene_distill.core.configs import save_config
from scene_distill.methods.splats.config import SplatsConfig


class Killed(Exception):
    pass


def trainer(calls: list, seconds_per_step: float = 0.5, die_at: str = ""):
    def train(case, folder, iterations):
        calls.append((folder.path.name, iterations))
        folder.path.mkdir(parents=True, exist_ok=True)
        save_config(SplatsConfig(iterations=iterations), folder.config, case.method)
        if folder.path.name == die_at:
            raise Killed
        results = {"psnr": 20.0, "ssim": 0.5, "psnr_corrected": 21.0}
        report = {"steps": iterations, "seconds": seconds_per_step * iterations, "primitives": 9, "views": 2}
        report |= {"results": results, "image_width": 80, "peak_memory_bytes": 1, "initial_points_psnr": 9.0}
        folder.metrics.write_text(json.dumps(report))

    return train


@pytest.fixture
def case(tmp_path) -> TrainerCase:
    return TrainerCase("splats", tmp_path / "town", 80, tmp_path / "runs")


def test_each_budget_gets_a_schedule_that_fills_it(case):
    calls: list = []
    report = benchmark_trainer(case, (2.0, 1.0), trainer(calls))
    assert calls[1:] == [("1min", int(RESERVE * 120)), ("2min", int(RESERVE * 240))]
    assert list(report["minutes"]) == ["1", "2"] and report["minutes"]["2"]["seconds"] <= 120


def test_finished_runs_are_kept_and_a_cut_off_one_goes_on_with_its_own_steps(case):
    calls: list = []
    with pytest.raises(Killed):
        benchmark_trainer(case, (1.0, 2.0), trainer(calls, die_at="2min"))
    planned = calls[-1]
    calls.clear()
    benchmark_trainer(case, (1.0, 2.0), trainer(calls, seconds_per_step=3.0))
    assert calls == [planned]
