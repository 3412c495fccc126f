"""What a run costs on this machine: a few updates of every stage, timed on a small world."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from scene_distill.blocks.schedule import Visit
from scene_distill.blocks.workers import Workers
from scene_distill.data.shape_shards import ShapeSet, write_shards
from scene_distill.methods.mdt_dist.config import TINY, MDTConfig
from scene_distill.methods.mdt_dist.model import FLOWS
from scene_distill.methods.mdt_dist.run import MDTRun, saved_config, world_of
from scene_distill.methods.mdt_dist.stages import Stage
from scene_distill.training.sharded_learning import ShardedLearning

WARM, TIMED = 2, 5
"""Updates before the clock starts, and on it."""

OBJECTS = 16

SIZES = ("width", "depth", "highest_frequency")
"""What a distilled run has from the run that made its world."""


@dataclass(frozen=True)
class Cost:
    """A stage: its updates, weights, and the seconds of an update with all lanes on as many workers as configured."""

    stage: str
    updates: int
    parameters: int
    seconds: float


def measured_costs(config: MDTConfig) -> Iterator[Cost]:
    """The costs of all stages in order, the world's making first."""
    if config.teacher != TINY:
        taught = saved_config(world_of(Path(config.teacher)))
        config = replace(config, **{name: getattr(taught, name) for name in SIZES}, shards=taught.shards)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = MDTRun(replace(config, teacher=TINY, shapes=OBJECTS, shards=1, output_dir=folder), Workers())
        started = time.perf_counter()
        write_shards(ShapeSet("train", OBJECTS, 1, config.seed), folder / "shapes")
        each = (time.perf_counter() - started) / OBJECTS / config.workers
        if config.teacher == TINY:
            yield Cost("objects", config.shapes, 0, each)
            for stage in (run.structure_stage(), run.surface_stage(), run.gaussian_stage()):
                yield _cost(stage, config)
        run.encode_all()
        for flow in FLOWS:
            stage = run.teacher_stage(flow)
            if config.teacher == TINY:
                yield _cost(stage, config)
            run.model.take(f"teacher_{flow}", stage.network.state_dict())
            if config.stage in ("both", flow):
                yield _cost(run.student_stage(flow), config)


def _cost(stage: Stage, config: MDTConfig) -> Cost:
    """Steps of one lane, times the lanes that a worker has to run, and one update."""
    method = ShardedLearning(stage.name, stage.network, stage.lesson, stage.learning, 1, 1)
    unit = method.open(0, method.first_state(0), Visit(0, 0, 0, 0, 1), method.rounds[0])
    lane = update = 0.0
    for step in range(WARM + TIMED):
        started = time.perf_counter()
        gradients, _ = unit.step(method.steps_of_unit - 1 - step % 2)
        between = time.perf_counter()
        method.learner.apply(gradients or [], step)
        if step >= WARM:
            lane += (between - started) / TIMED
            update += (time.perf_counter() - between) / TIMED
    lanes = min(config.lanes, config.shards)
    seconds = lane * -(-lanes // config.workers) + update
    parameters = sum(weight.numel() for weight in stage.network.parameters())
    return Cost(stage.name, stage.learning.steps, parameters, seconds)
