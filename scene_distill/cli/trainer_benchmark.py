"""Held-out PSNR after minutes of training on a real scene: `scene-distill bench trainer`.

What is measured: for every budget one run from the start, whose schedule is as long as the budget, so that each figure
is what a user gets who has that much time. (One long run looked at on the way would be worse at every mark but the
last, because its learning rates are still high.) The number of steps is the budget divided by the seconds per step of
the run before, the first one's by those of a short pilot run. The clock is that of the training loop; reading the data
and measuring do not count. Every figure says how many seconds its run really took.

A run that is finished is kept and not repeated; one that was cut off is resumed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scene_distill.core.console import say
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json
from scene_distill.methods import find_method
from scene_distill.training.run_folder import RunFolder

PILOT_STEPS = 600
"""Steps of the pilot, all blocks together: long enough that reading every photo once does not dominate."""

RESERVE = 0.97
"""Part of a budget that is planned, so that a run ends inside it when steps take a little longer than before."""

SCENE = "aerial_sheffield"


@dataclass(frozen=True)
class TrainerCase:
    """A method on a scene, photos ``image_width`` pixels wide; every run gets a folder below ``output_dir``."""

    method: str
    data: Path
    image_width: int
    output_dir: Path

    @property
    def blocks(self) -> int:
        """Blocks of the method's defaults, which the runs use."""
        return find_method(self.method).config().blocks

    def folder(self, name: str) -> RunFolder:
        """Folder of a run."""
        return RunFolder(self.output_dir / f"{self.data.name}-{self.image_width}px-{self.method}" / name)


Train = Callable[[TrainerCase, RunFolder, int], None]
"""Trains (or resumes) a run in a folder with so many steps per block and leaves its metrics.json there."""


def benchmark_trainer(case: TrainerCase, minutes: Sequence[float], train: Train | None = None) -> dict[str, Any]:
    """Figures per budget in minutes: psnr and ssim (raw, held-out), steps, seconds of the training loop, primitives."""
    train = train or train_in_own_process
    before = _finished(case, case.folder("pilot"), max(PILOT_STEPS // case.blocks, 1), train)
    figures: dict[str, Any] = {}
    for budget in sorted(minutes):
        steps = RESERVE * 60 * budget * before["steps"] / before["seconds"]
        before = _finished(case, case.folder(f"{budget:g}min"), max(int(steps / case.blocks), 1), train)
        figures[f"{budget:g}"] = {
            "psnr": before["results"]["psnr"],
            "ssim": before["results"]["ssim"],
            "psnr_corrected": before["results"]["psnr_corrected"],
            **{key: before[key] for key in ("steps", "seconds", "primitives", "views", "peak_memory_bytes")},
        }
        say(f"{budget:g} min: PSNR {before['results']['psnr']:.2f} dB held-out after {before['seconds']:.0f} s")
    return {
        "method": case.method, "scene": case.data.name, "image_width": before["image_width"],
        "cores": len(os.sched_getaffinity(0)), "initial_points_psnr": before["initial_points_psnr"],
        "definition": "one run per budget with a schedule of that length; seconds are those of the training loop",
        "minutes": figures,
    }  # fmt: skip


def _finished(case: TrainerCase, folder: RunFolder, iterations: int, train: Train) -> dict[str, Any]:
    """The report of a run, trained now unless it is there; one that was begun goes on with its own steps."""
    if not folder.metrics.exists():
        if folder.config.exists():
            iterations = folder.saved_config(find_method(case.method).config, case.method).iterations
        train(case, folder, iterations)
    return read_json(folder.metrics)


def train_in_own_process(case: TrainerCase, folder: RunFolder, iterations: int) -> None:
    """`scene-distill train` in a process of its own, so that no run profits from the one before."""
    command = [
        sys.executable, "-m", "scene_distill", "train", case.method, "--data", str(case.data), "--image-width",
        str(case.image_width), "--iterations", str(iterations), "--output-dir", str(folder.path), "--resume",
    ]  # fmt: skip
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"training in {folder.path} failed; its message is above, and the same command continues")


def default_scene() -> Path:
    """The aerial scene in SCENE_DISTILL_DATA, or in shared/data beside the repository."""
    root = Path(os.environ.get("SCENE_DISTILL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (root / SCENE).is_dir():
        raise UserError(f"no scene to train on: {root / SCENE} is missing; add --data or set SCENE_DISTILL_DATA")
    return root / SCENE
