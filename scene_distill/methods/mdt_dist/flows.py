"""Lessons of the flows: teachers from latents, students from teachers.

Teacher:   of a flow, the straight paths between latents and noise; of a student, the frozen flow, guided or not.
Student:   the same network; a student starts from the teacher's weights.
Gradient:  mean squared velocity error; for students one of `objectives.transport`'s losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from scene_distill.core.shard_files import read_shard_file
from scene_distill.methods.mdt_dist.config import MDTConfig
from scene_distill.methods.mdt_dist.model import FlowName, Whitening
from scene_distill.nets.vector_flow import VectorFlow
from scene_distill.objectives.transport import (
    Derivative,
    Transported,
    Velocity,
    velocity_distillation,
    velocity_matching,
)
from scene_distill.objectives.transport_consistency import (
    consistency_distillation,
    continuous_consistency,
    phased_consistency,
)
from scene_distill.objectives.transport_items import DENSE, Items
from scene_distill.objectives.transport_times import TimeBins, TransportTimes
from scene_distill.priors.flow import fresh_noise, state, velocity
from scene_distill.training.sharded_learning import Outcome

BINS = TimeBins(8)


@dataclass(frozen=True, eq=False)
class Latents:
    """A flow's training states [n, D], their words [n, S] and what they are conditioned on [n, G]."""

    x: Tensor
    words: Tensor
    given: Tensor | None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class LatentFiles:
    """Where the latents of the shards are: ``structure``, ``surface`` and ``words`` in a file each shard."""

    folder: Path

    def path(self, shard: int) -> Path:
        """A shard's file."""
        return self.folder / f"shard-{shard:04d}.safetensors"

    def read(self, shard: int) -> dict[str, Tensor]:
        """Encoder latents [n, D] and words [n, 3] int64; `UserError` when the file is damaged."""
        return read_shard_file(self.path(shard), ("structure", "surface", "words"))

    def latents(self, shard: int, flow: FlowName, whitening: dict[str, Whitening]) -> Latents:
        """The states that a flow learns from."""
        tensors = self.read(shard)
        structure = whitening["structure"].apply(tensors["structure"])
        if flow == "structure":
            return Latents(structure, tensors["words"][:, :1], None)
        return Latents(whitening["latent"].apply(tensors["surface"]), tensors["words"], structure)


@dataclass(frozen=True, eq=False)
class Batch:
    """States, conditions, noise and times of a step."""

    x0: Tensor
    words: Tensor
    given: Tensor | None
    noise: Tensor
    generator: torch.Generator

    def bound(self, network: VectorFlow, guidance: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
        """The network as a velocity of states and times; guided, (1 + w) v_words - w v_nothing."""
        if guidance == 0:
            return lambda x, t: network(x, t, self.words, self.given)
        nothing = torch.zeros_like(self.words)
        return lambda x, t: (
            (1 + guidance) * network(x, t, self.words, self.given) - guidance * network(x, t, nothing, self.given)
        )


def draw_batch(data: Latents, count: int, unsaid: float, dropped: float, generator: torch.Generator) -> Batch:
    """Random rows with fresh noise; words lose colours with chance ``unsaid``, everything with chance ``dropped``."""
    rows = torch.randint(len(data), (count,), generator=generator)
    words = data.words[rows].clone()
    dice = torch.rand(words.shape, generator=generator)
    words[:, 1:][dice[:, 1:] < unsaid] = 0
    words[torch.rand(count, generator=generator) < dropped] = 0
    x0 = data.x[rows]
    given = None if data.given is None else data.given[rows]
    return Batch(x0, words, given, torch.randn(x0.shape, generator=generator), generator)


@dataclass(frozen=True, eq=False)
class FlowLesson:
    """A teacher: velocity of straight paths at uniform times."""

    files: LatentFiles
    flow: FlowName
    whitening: dict[str, Whitening]
    network: VectorFlow
    config: MDTConfig
    bins: TimeBins = BINS

    def read(self, shard: int) -> Latents:
        """The shard's states."""
        return self.files.latents(shard, self.flow, self.whitening)

    def outcome(self, data: object, batch: int, progress: float, generator: torch.Generator) -> Outcome:
        """Mean squared velocity error of a batch."""
        assert isinstance(data, Latents)
        drawn = draw_batch(data, batch, self.config.unsaid, self.config.dropped, generator)
        t = torch.rand(batch, generator=generator)
        found = drawn.bound(self.network)(state(drawn.x0, drawn.noise, t), t)
        each = (found - velocity(drawn.x0, drawn.noise)).square().mean(1)
        return Outcome(each.mean(), {}, each, t)


@dataclass(frozen=True, eq=False)
class StudentLesson:
    """A student of transport: the configured objective on real latents, velocity distillation on its own samples."""

    files: LatentFiles
    flow: FlowName
    whitening: dict[str, Whitening]
    network: VectorFlow
    teacher: VectorFlow
    config: MDTConfig
    bins: TimeBins = BINS

    def read(self, shard: int) -> Latents:
        """The shard's states."""
        return self.files.latents(shard, self.flow, self.whitening)

    def outcome(self, data: object, batch: int, progress: float, generator: torch.Generator) -> Outcome:
        """The loss of a batch, and of velocity distillation once it has set in."""
        assert isinstance(data, Latents)
        config = self.config
        drawn = draw_batch(data, batch, config.unsaid, config.dropped if config.keep_guidance else 0.0, generator)
        baked, pulling = baked_guidance(config)
        velocities = Velocities(
            drawn.bound(self.network), drawn.bound(self.teacher, baked), drawn.bound(self.teacher, pulling)
        )
        return student_outcome(config, velocities, drawn.x0, drawn.noise, progress, generator)

    def teacher_evaluations(self, steps: int, batch: int) -> int:
        """How often a shard's training asks the teacher about an object in ``steps`` steps of ``batch`` objects."""
        return teacher_evaluations(self.config, steps, batch)


@dataclass(frozen=True)
class Velocities:
    """The student, the teacher whose velocity it matches, and the teacher of velocity distillation."""

    student: Velocity
    teacher: Velocity
    pulling: Velocity


def baked_guidance(config: MDTConfig) -> tuple[float, float]:
    """Guidance of the teachers in `Velocities`: none where the student keeps it."""
    return (0.0, 0.0) if config.keep_guidance else (config.guidance, config.vd_guidance)


def student_outcome(config: MDTConfig, velocities: Velocities, x0: Tensor, noise: Tensor, progress: float,
                    generator: torch.Generator, items: Items = DENSE) -> Outcome:  # fmt: skip
    """The configured objective on clean states x0 and noise, and velocity distillation once it has set in.

    Only the derivative's direction and the target ask the teacher; its guided velocity serves both.
    """
    student = velocities.student
    derivative = Derivative(config.derivative, config.delta, config.d_norm)
    count = len(x0) if items.item is None else items.count
    t = TransportTimes(config.times, config.delta).draw(count, generator).to(x0.device)
    found = matched(config, student, velocities.teacher, state(x0, noise, items.rows(t)), t, items)
    loss = found.loss
    figures = {"matching": float(loss.detach())}
    if config.vd and progress >= config.vd_from:
        start = fresh_noise(x0, generator)
        again = fresh_noise(x0, generator) if config.vd_noise == "fresh" else noise
        pulled = velocity_distillation(
            student, velocities.pulling, start, again, t, derivative, config.vd_weight, items
        )
        loss = loss + config.vd * pulled.loss
        figures["distillation"] = float(pulled.loss.detach())
    return Outcome(loss, figures, found.each, t)


def matched(config: MDTConfig, student: Velocity, teacher: Velocity, x: Tensor, t: Tensor, items: Items) -> Transported:
    """The configured objective at states x and times t [B]."""
    derivative = Derivative(config.derivative, config.delta, config.d_norm)
    if config.objective == "vm":
        return velocity_matching(student, teacher, x, t, derivative, items)
    if config.objective == "scm":
        return continuous_consistency(student, teacher, x, t, derivative, config.tangent_norm, items)
    if config.objective == "pcm":
        found = phased_consistency(student, teacher, x, t, config.delta, config.phases, items)
    else:
        found = consistency_distillation(student, teacher, x, t, config.delta, items)
    return replace(found, each=found.each / config.delta) if config.per_delta else found


def teacher_evaluations(config: MDTConfig, steps: int, batch: int) -> int:
    """How often a shard's training asks the teacher about an object in ``steps`` steps of ``batch`` objects."""
    guided, pulled = (w != 0 for w in baked_guidance(config))
    late = sum(step / steps >= config.vd_from for step in range(steps)) if config.vd else 0
    return batch * (steps * (1 + guided) + late * (1 + pulled))
