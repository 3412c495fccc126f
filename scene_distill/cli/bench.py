"""`scene-distill bench rasterizer [--json FILE]`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from scene_distill.core.console import say


@dataclass(frozen=True)
class Bench:
    """Time the kernels on this machine."""

    what: tyro.conf.Positional[Literal["rasterizer"]]
    """What to time."""
    repetitions: int = 12
    """Repetitions; the minimum counts."""
    json: Path | None = None
    """Also write the figures to this file."""


def main(arguments: list[str]) -> None:
    """Run the benchmark and print its figures."""
    options = tyro.cli(Bench, args=arguments, prog="scene-distill bench")
    from scene_distill.core.files import write_json
    from scene_distill.renderers.benchmark import benchmark_rasterizer

    report = benchmark_rasterizer(options.repetitions)
    for name, value in report.items():
        say(f"{name}: {value}")
    if options.json:
        write_json(options.json, report)
