"""A stage of a run: one network that learns from shards through `blocks.runtime`, and leaves its weights in a file.

RUN/<stage>/ has the log and the checkpoint, RUN/weights/<stage>.safetensors the averaged weights, and the .json beside
it what the stage took. A stage that was stopped goes on from its last commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from scene_distill.blocks.runtime import Progress, Runtime
from scene_distill.blocks.workers import Workers
from scene_distill.core.console import progress, say
from scene_distill.core.files import write_json
from scene_distill.methods.mdt_dist.config import MDTConfig
from scene_distill.methods.mdt_dist.wall_clock import WallClock
from scene_distill.nets.weight_files import save_weights
from scene_distill.training.run_folder import RunFolder
from scene_distill.training.sharded_learning import Learning, Lesson, Means, ShardedLearning

LOG_EVERY = 20
"""Updates between lines of a stage's log."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A network to be learned: how it is called, made and taught, and which parts of the model it becomes."""

    name: str
    network: nn.Module
    lesson: Lesson
    learning: Learning
    parts: tuple[tuple[str, str], ...] = ()
    """(part of the model, prefix of its tensors in the network)."""
    dtype: torch.dtype = torch.float16
    """Of the weights' file."""


@runtime_checkable
class AsksTeacher(Protocol):
    """A lesson that counts the evaluations of its teacher."""

    def teacher_evaluations(self, steps: int, batch: int) -> int:
        """Of a shard's training."""
        ...


def student_learning(config: MDTConfig) -> Learning:
    """How students learn."""
    return Learning(config.student_steps, config.student_rate, config.batch, ema=config.ema, clip=config.clip,
                    window=config.clip_window, seed=config.seed)  # fmt: skip


def learn(stage: Stage, config: MDTConfig, shards: int, workers: Workers, clock: WallClock, path: Path) -> None:
    """Train a stage, or what is left of it; worker 0 writes its weights to ``path``. Every worker calls it."""
    folder = RunFolder(config.output_dir / stage.name)
    method = ShardedLearning(stage.name, stage.network, stage.lesson, stage.learning, shards, config.lanes,
                             config.visit)  # fmt: skip
    runtime = Runtime(method, method.rounds, folder.checkpoint, None, workers, config.reduction)
    runtime.resume()
    if workers.rank == 0:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.rewind_log(runtime.next_round)
    total = sum(round_.steps for round_ in method.rounds)
    done = sum(round_.steps for round_ in method.rounds[: runtime.next_round])
    with progress(stage.name.replace("_", " "), total, done) as meter:
        place, ends = {"round": runtime.next_round}, {round_.shared_step + round_.steps for round_ in method.rounds}

        def told(step: int, means: dict[str, float]) -> None:
            folder.append(place | {"step": step, **means})
            meter.update(step, f"loss {means['loss']:.4f}")
            clock.tick()

        means = Means(told, LOG_EVERY, ends, done)

        def hear(step: Progress) -> None:
            place["round"] = step.round
            means.hear([numbers for _, numbers in step.lanes])

        runtime.run(hear)
    with workers.first_before_others("worker 0 writes weights"):
        if workers.rank == 0:
            notes = {"seconds": runtime.seconds, "updates": method.learner.done, "bins": _bins(runtime, method)}
            if isinstance(stage.lesson, AsksTeacher):
                each = stage.lesson.teacher_evaluations(method.steps_of_unit, config.batch)
                notes["teacher_evaluations"] = shards * each
            write_json(path.with_suffix(".json"), notes)
            save_weights(path, method.learner.averaged(), {"kind": stage.name}, stage.dtype)
    if workers.rank == 0:
        spent = runtime.seconds / max(method.learner.done, 1)
        say(f"{stage.name}: {method.learner.done} updates in {runtime.seconds:.0f} s ({1000 * spent:.1f} ms each)")


def _bins(runtime: Runtime, method: ShardedLearning) -> dict[str, float]:
    """Mean losses by bin, over all shards and the whole training."""
    sums = [saved()["bins"] for saved in runtime.states().values()]
    return method.lesson.bins.means(sum(sums[1:], sums[0]))
