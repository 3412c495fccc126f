"""Distilling a folder of TRELLIS models: samples of the teacher, students of its flows, a folder like the teacher's.

Teacher:   the folder's structure flow (dense) and latent flow (sparse), frozen, in float32 (`priors.trellis`).
Student:   the same networks, from the teacher's weights.
Gradient:  as for the small world (`flows.student_outcome`), on the teacher's own samples (`trellis_samples`); the
           published recipe uses encoded objects instead.

The run folder becomes a TRELLIS folder: students in the place of the flows, everything else the teacher's own files
(hard links where the disk allows), and a pipeline.json that samples students in one step and renoises between several,
or takes Euler's steps through the phases of pcm.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scene_distill.blocks.workers import Workers
from scene_distill.core.console import progress
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json, sha256, write_atomically, write_json
from scene_distill.methods.mdt_dist.config import MDTConfig
from scene_distill.methods.mdt_dist.flows import (
    BINS,
    Velocities,
    baked_guidance,
    student_outcome,
    teacher_evaluations,
)
from scene_distill.methods.mdt_dist.model import FLOWS, FlowName
from scene_distill.methods.mdt_dist.stages import Stage, learn, student_learning
from scene_distill.methods.mdt_dist.trellis_samples import SampleFiles, TrellisShard, opened, read_descriptions
from scene_distill.methods.mdt_dist.wall_clock import WallClock
from scene_distill.nets.sparse_convolution import use_backend
from scene_distill.objectives.transport import Velocity
from scene_distill.objectives.transport_items import DENSE, Items
from scene_distill.objectives.transport_times import TimeBins
from scene_distill.priors.flow import VelocityField, fresh_noise
from scene_distill.priors.trellis import LatentField, StructureField, load_trellis
from scene_distill.priors.trellis_conditions import conditioner_folder
from scene_distill.priors.trellis_files import TrellisFiles, read_trellis_folder
from scene_distill.training.sharded_learning import Outcome

ROLES = {"structure": "sparse_structure_flow_model", "latent": "slat_flow_model"}
SAMPLERS = {"structure": "sparse_structure_sampler", "latent": "slat_sampler"}


def is_trellis(teacher: str) -> bool:
    """Whether a teacher is a folder of TRELLIS models."""
    return (Path(teacher) / "pipeline.json").is_file()


def trellis_sha256(config: MDTConfig) -> str:
    """One hash of all that a folder's students learn from: its pipeline.json, the models it names, its conditioner, and
    the descriptions."""
    assert config.describe is not None
    folder = Path(config.teacher)
    files = read_trellis_folder(folder, config.models_root)
    stems = [stem for _, stem in sorted(files.models.items())]
    parts = [folder / "pipeline.json", *map(_description, stems), *map(_weights, stems)]
    parts += [path for path in sorted(_conditioner(config, files).rglob("*")) if path.is_file()]
    described = read_descriptions(config.describe, files.conditioned_by)
    parts += [path for path in described if isinstance(path, Path)] or [config.describe]
    return hashlib.sha256("".join(map(sha256, parts)).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class TrellisLesson:
    """A student of one of the two flows, on samples of the teacher."""

    samples: SampleFiles
    flow: FlowName
    network: nn.Module
    teacher: nn.Module
    config: MDTConfig
    device: str = "cpu"
    bins: TimeBins = BINS

    def read(self, shard: int) -> TrellisShard:
        """The shard's samples."""
        return self.samples.read(shard, self.device, self.flow == "latent")

    def outcome(self, data: object, batch: int, progress: float, generator: torch.Generator) -> Outcome:
        """The configured objective on a batch; a sparse object counts as one item, however many voxels it has."""
        assert isinstance(data, TrellisShard)
        rows = torch.randint(len(data), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < (self.config.dropped if self.config.keep_guidance else 0.0)
        opposite = data.opposite.float().expand(batch, -1, -1)
        condition = torch.where(dropped.to(self.device)[:, None, None], opposite, data.conditions(rows))
        x0, items, field_of = self._states(data, rows)
        noise = fresh_noise(x0, generator)

        def bound(network: nn.Module, guidance: float) -> Velocity:
            field = field_of(network)
            if guidance == 0:
                return lambda x, t: field(x, t, condition)
            return lambda x, t: (1 + guidance) * field(x, t, condition) - guidance * field(x, t, opposite)

        baked, pulling = baked_guidance(self.config)
        velocities = Velocities(bound(self.network, 0.0), bound(self.teacher, baked), bound(self.teacher, pulling))
        return student_outcome(self.config, velocities, x0, noise, progress, generator, items)

    def teacher_evaluations(self, steps: int, batch: int) -> int:
        """How often a shard's training asks the teacher about an object."""
        return teacher_evaluations(self.config, steps, batch)

    def _states(self, data: TrellisShard, rows: Tensor
                ) -> tuple[Tensor, Items, Callable[[nn.Module], VelocityField[Tensor]]]:  # fmt: skip
        """Clean states, what an item of them is, and networks as fields on them."""
        if self.flow == "structure":
            return data.structure[rows], DENSE, StructureField
        voxels, features = data.sparse(rows)
        return features, Items(voxels.item, len(rows)), lambda network: LatentField(network, voxels)


class TrellisRun:
    """A run on one of its workers."""

    def __init__(self, config: MDTConfig, workers: Workers) -> None:
        self.config, self.workers, self.folder = config, workers, config.output_dir
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.files = read_trellis_folder(Path(config.teacher), config.models_root)
        self.samples = SampleFiles(self.folder / "samples", config.shapes, config.shards)
        self.clock = WallClock(self.folder / "wall_clock.json", workers.rank == 0)

    @property
    def flows(self) -> tuple[FlowName, ...]:
        """Those that are distilled."""
        return tuple(flow for flow in FLOWS if self.config.stage in ("both", flow))

    def run(self) -> Path:
        """Do what is left; the run folder, which worker 0 makes a TRELLIS folder. Every worker calls it."""
        self._sample()
        for flow in self.flows:
            path = self._student(flow)
            if not path.exists():
                learn(self.stage(flow), self.config, self.config.shards, self.workers, self.clock, path)
        with self.workers.first_before_others("worker 0 writes the models"):
            if self.workers.rank == 0:
                self._write()
        return self.folder

    def stage(self, flow: FlowName) -> Stage:
        """A student of a flow, from its weights."""
        teacher, network = (self.files.network(ROLES[flow], self.device, torch.float32) for _ in range(2))
        for each in (teacher, network):
            use_backend(each, "gather")  # the same numbers in both, and a backward pass
        network.recompute = True  # type: ignore[assignment]
        lesson = TrellisLesson(self.samples, flow, network.requires_grad_(True), teacher, self.config, self.device)
        return Stage(f"student_{flow}", network, lesson, student_learning(self.config), dtype=torch.float32)

    def _sample(self) -> None:
        """The shards that this worker makes, where they are not there."""
        mine = range(self.workers.rank, self.config.shards, self.workers.count)
        missing = [shard for shard in mine if not self.samples.path(shard).exists()]
        if missing:
            config = self.config
            assert config.describe is not None
            prior = load_trellis(
                config.teacher, config.models_root, config.conditioner, self.device, torch.float32
            ).with_settings(keep=True)
            descriptions = read_descriptions(config.describe, prior.files.conditioned_by)
            self.samples.folder.mkdir(parents=True, exist_ok=True)
            total, before = sum(len(self.samples.numbers(shard)) for shard in missing), 0
            with progress("samples of the teacher", total) as meter:
                for shard in missing:

                    def told(done: int, before: int = before) -> None:
                        meter.update(before + done)
                        self.clock.tick()

                    latents = "latent" in self.flows
                    self.samples.write(shard, prior, descriptions, config.seed, latents, told)
                    before += len(self.samples.numbers(shard))
        self.workers.prepared(None, "the samples are made")

    def _student(self, flow: str) -> Path:
        return self.folder / "weights" / f"student_{flow}.safetensors"

    def _write(self) -> None:
        """ckpts/, the conditioner, and at last pipeline.json; nothing where that is there already."""
        if (self.folder / "pipeline.json").exists():
            return
        teacher = Path(self.config.teacher)
        pipeline = json.loads((teacher / "pipeline.json").read_text())
        students = {ROLES[flow]: self._student(flow) for flow in self.flows}
        for role, stem in self.files.models.items():
            description = json.loads(_description(stem).read_text())
            if role in students:
                description["args"]["use_fp16"] = False
            write_json(self.folder / "ckpts" / f"{role}.json", description)
            _linked(students.get(role, _weights(stem)), self.folder / "ckpts" / f"{role}.safetensors")
        args = pipeline["args"]
        args["models"] = {role: f"ckpts/{role}" for role in self.files.models}
        for flow in self.flows:
            params = args[SAMPLERS[flow]]["params"]
            phases = self.config.walked_phases
            params |= {"steps": phases, "rescale_t": 1.0, "sampler": "renoise" if phases == 1 else "euler"}
            params |= {"student": {"phases": phases, "guided": self.config.keep_guidance}}
            params |= {"cfg_interval": [0.0, 1.0]} if self.config.keep_guidance else {"cfg_strength": 0.0}
        self._copy_conditioner()
        self.clock.write()
        stages = {flow: read_json(self._student(flow).with_suffix(".json")) for flow in self.flows}
        notes = {f"student_{flow}": stage for flow, stage in stages.items()}
        write_json(self.folder / "stages.json", notes | {"whole": {"seconds": self.clock.seconds}})
        text = json.dumps(pipeline, indent=2)
        write_atomically(self.folder / "pipeline.json", lambda temporary: _write_text(temporary, text))

    def _copy_conditioner(self) -> None:
        place = _conditioner(self.config, self.files)
        for path in sorted(place.rglob("*")):
            if path.is_file():
                _linked(path, self.folder / Path(self.files.conditioner).name / path.relative_to(place))


def check_trellis(config: MDTConfig) -> None:
    """Refuse a TRELLIS teacher that cannot be distilled as the config says, before anything is written."""
    if config.describe is None:
        raise UserError(
            f"{config.teacher} holds TRELLIS models, whose students learn from samples of them; say of what with "
            "--describe, a file with a text a line or a folder of pictures, whichever they read"
        )
    if config.derivative == "jvp":
        raise UserError("--derivative jvp cannot go through fused attention; leave it at difference for TRELLIS models")
    files = read_trellis_folder(Path(config.teacher), config.models_root)
    for path in read_descriptions(config.describe, files.conditioned_by):
        opened(path)
    conditioner = _conditioner(config, files)
    for mine in (Path(config.teacher), conditioner):
        if mine.resolve().is_relative_to(config.output_dir.resolve()):
            raise UserError(f"--output-dir {config.output_dir} would write over {mine}; name another folder")
    settings = {"structure": files.structure, "latent": files.latent}
    for flow, setting in settings.items():
        if config.stage not in ("both", flow):
            continue
        if setting.phases:
            raise UserError(
                f"the {flow} flow of {config.teacher} is a student already; distil its teacher, or another --stage"
            )
        if setting.weight and not config.guidance and not config.keep_guidance:
            raise UserError(
                f"{config.teacher} guides its {flow} flow by {setting.weight:g}, and students would be worse without: "
                f"bake it in with --guidance {setting.weight:g} or keep it with --keep-guidance"
            )


def _conditioner(config: MDTConfig, files: TrellisFiles) -> Path:
    return conditioner_folder(files.conditioner, files.folder, config.models_root, config.conditioner)


def _description(stem: Path) -> Path:
    return stem.parent / f"{stem.name}.json"


def _weights(stem: Path) -> Path:
    return stem.parent / f"{stem.name}.safetensors"


def _linked(source: Path, target: Path) -> None:
    """The file under another name: a hard link, or a copy on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        write_atomically(target, lambda temporary: _copied(source, temporary))


def _copied(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
