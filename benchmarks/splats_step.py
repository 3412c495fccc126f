"""Milliseconds of a real training step of the method `splats`, stage by stage; prints JSON.

    chrt -f 50 python benchmarks/splats_step.py

One block with the Gaussians, the camera and the target of case A of `scene-distill bench step`, harmonics of degree 3
from the first step on, no growth. The minimum of the repetitions counts, of each stage and of the whole.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch

from scene_distill.core.cameras import Camera
from scene_distill.methods.splats import block
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.renderers.benchmark import CASES
from scene_distill.renderers.step_benchmark import SplatStep
from scene_distill.representations.splat_densification import DensificationRules
from scene_distill.representations.splats import Splats
from scene_distill.training.loop import use_native_threads
from scene_distill.training.scene_blocks import View


def block_of(case: Any) -> block.BlockTraining:
    """A block open for a visit, with the state and the one view of a synthetic case."""
    step = SplatStep(case)
    given = {name: tensor.detach().clone() for name, tensor in step.parameters.items()}
    focal, width, height = float(case.width), case.width, case.height
    camera = Camera(width, height, focal, focal, width / 2, height / 2, np.eye(4))
    config = SplatsConfig(iterations=1_000_000, growth_events=0, grow_until=0.0, sh_rise=1e-9)
    state = block.first_block_state(Splats(**given), 3, 100.0)
    for name, tensor in given.items():
        state[f"splats.{name}"] = tensor
    setting = block.BlockSetting(
        0, (View(0, camera, lambda: step.target),), DensificationRules(1.0, 1.0, 1e9, 0.0, 1, case.gaussians), 0.01,
        lambda means: torch.ones(len(means), dtype=torch.bool),
    )  # fmt: skip
    return block.BlockTraining(config, setting, state)


def timed(call: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """``call``, which adds its seconds to ``spent``."""

    def run(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=24)
    repetitions = parser.parse_args().repetitions
    use_native_threads(0)
    training = block_of(CASES[0])
    spent: dict[str, float] = {}
    best: dict[str, float] = {}
    stages = [(block, name) for name in ("drawn_rows", "take", "render")]
    stages += [(block.photometric, "reconstruction"), (torch.Tensor, "backward"), (training, "_apply")]
    for owner, name in stages:
        mock.patch.object(owner, name, timed(getattr(owner, name), name, spent)).start()
    for step in range(repetitions + 3):
        spent.clear()
        start = time.perf_counter()
        training.step(10 + step)
        spent["step"] = time.perf_counter() - start
        if step >= 3:
            best = {name: min(seconds, best.get(name, seconds)) for name, seconds in spent.items()}
    mock.patch.stopall()
    print(json.dumps({f"{name.strip('_')}_ms": round(1e3 * seconds, 2) for name, seconds in best.items()}, indent=2))


if __name__ == "__main__":
    main()
