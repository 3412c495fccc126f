"""`scene-distill bench rasterizer|step|trainer [--json FILE]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from scene_distill.core.console import say


@dataclass(frozen=True)
class Bench:
    """Time the kernels, or a trainer, on this machine."""

    what: tyro.conf.Positional[Literal["rasterizer", "step", "trainer"]]
    """What to time: the kernels one by one, the whole training step of plain splats, or training on a real scene."""
    repetitions: int = 12
    """Repetitions of kernels and steps; the minimum counts."""
    minutes: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0)
    """Trainer: minutes of training after which held-out PSNR is measured, each in a run of its own."""
    method: str = "splats"
    """Trainer: the method."""
    data: Path | None = None
    """Trainer: the scene; default: aerial_sheffield of SCENE_DISTILL_DATA."""
    image_width: int = 395
    """Trainer: width in pixels of the photos."""
    output_dir: Path = Path("outputs/bench_trainer")
    """Trainer: folder for its runs; finished ones are kept, one that was cut off is resumed."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its figures."""
    options = tyro.cli(Bench, args=arguments, prog="scene-distill bench")
    from scene_distill.core.files import check_writable, write_json

    if options.json:
        check_writable(options.json)
    report = measured(options)
    _print(report)
    if options.json:
        write_json(options.json, report)


def measured(options: Bench) -> dict[str, Any]:
    """The figures that were asked for."""
    if options.what == "trainer":
        from scene_distill.cli.trainer_benchmark import TrainerCase, benchmark_trainer, default_scene

        data = options.data or default_scene()
        case = TrainerCase(options.method, data, options.image_width, options.output_dir)
        return benchmark_trainer(case, options.minutes)
    from scene_distill.renderers.benchmark import benchmark_rasterizer
    from scene_distill.renderers.feature_benchmark import bench_features
    from scene_distill.renderers.step_benchmark import benchmark_step

    if options.what == "step":
        return benchmark_step(options.repetitions)
    return benchmark_rasterizer(options.repetitions) | {"features": bench_features(options.repetitions)}


def _print(report: dict[str, Any], indent: str = "") -> None:
    for name, value in report.items():
        if isinstance(value, dict):
            say(f"{indent}{name}:")
            _print(value, indent + "  ")
        else:
            say(f"{indent}{name}: {f'{value:.4g}' if isinstance(value, float) else value}")
