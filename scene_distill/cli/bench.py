"""`scene-distill bench rasterizer|step [--json FILE]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from scene_distill.core.console import say


@dataclass(frozen=True)
class Bench:
    """Time the kernels on this machine."""

    what: tyro.conf.Positional[Literal["rasterizer", "step"]]
    """What to time: the kernels one by one, or the whole training step of plain splats."""
    repetitions: int = 12
    """Repetitions; the minimum counts."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its figures."""
    options = tyro.cli(Bench, args=arguments, prog="scene-distill bench")
    from scene_distill.core.files import write_json
    from scene_distill.renderers.benchmark import benchmark_rasterizer
    from scene_distill.renderers.step_benchmark import benchmark_step

    report = {"rasterizer": benchmark_rasterizer, "step": benchmark_step}[options.what](options.repetitions)
    _print(report)
    if options.json:
        write_json(options.json, report)


def _print(report: dict[str, Any], indent: str = "") -> None:
    for name, value in report.items():
        if isinstance(value, dict):
            say(f"{indent}{name}:")
            _print(value, indent + "  ")
        else:
            say(f"{indent}{name}: {f'{value:.4g}' if isinstance(value, float) else value}")
