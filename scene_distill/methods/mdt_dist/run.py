"""A run of the small world from nothing to students: world, autoencoders, latents, teachers, students, one model file.

Every stage learns one network through `blocks.runtime` and leaves ``weights/<stage>.safetensors``; a stage whose
weights are there is not run again, so a run that was stopped goes on in the middle of the stage it was in. Later stages
read the weights from that file, in half precision, whether or not the run was stopped between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from scene_distill.blocks.workers import Workers
from scene_distill.core.configs import (
    HOW_TO_RUN,
    changed_fields,
    from_plain,
    read_yaml,
    save_config,
    to_plain,
    with_absolute_paths,
)
from scene_distill.core.console import progress
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json, sha256, write_atomically, write_json
from scene_distill.core.seeds import key, torch_generator
from scene_distill.data.shape_shards import ShapeSet, read_shard, write_shards
from scene_distill.methods.mdt_dist.autoencoders import (
    GaussianLesson,
    StructureAutoencoder,
    StructureLesson,
    SurfaceAutoencoder,
    SurfaceLesson,
    gaussian_decoder,
    surface_latents,
)
from scene_distill.methods.mdt_dist.config import TINY, MDTConfig
from scene_distill.methods.mdt_dist.flows import FlowLesson, LatentFiles, StudentLesson
from scene_distill.methods.mdt_dist.model import FLOWS, FlowName, ShapeModel, ShapeSizes, StudentNotes, Whitening
from scene_distill.methods.mdt_dist.stages import Stage, learn, student_learning
from scene_distill.methods.mdt_dist.trellis import is_trellis, trellis_sha256
from scene_distill.methods.mdt_dist.wall_clock import WallClock
from scene_distill.nets.vector_flow import VectorFlow
from scene_distill.nets.weight_files import read_weights
from scene_distill.training.sharded_learning import Learning

METHOD = "mdt"


def open_folder(config: MDTConfig) -> None:
    """Make the run folder and write the config, or check that a run to be resumed has the same one."""
    path = config.output_dir / "config.yaml"
    if not path.exists():
        if config.teacher != TINY:
            write_json(config.output_dir / "teacher.json", {"sha256": teacher_sha256(config)})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: save_config(with_absolute_paths(config), temporary, METHOD))
        return
    if not config.resume:
        raise UserError(
            f"{config.output_dir} already holds a run; add --resume to go on or choose another --output-dir"
        )
    old = saved_config(config.output_dir)
    changed = changed_fields(old, config)
    if changed:
        was, now = getattr(old, changed[0]), getattr(config, changed[0])
        raise UserError(
            f"{config.output_dir} was started with --{changed[0].replace('_', '-')} {was}, not {now}; resume with the "
            "same settings, or distil its teacher again into another folder with --teacher"
        )
    if config.teacher != TINY and taught_by(config.output_dir) != teacher_sha256(config):
        raise UserError(
            f"{config.teacher} has changed since {config.output_dir} was started from it; distil it into "
            "another --output-dir"
        )


def teacher_sha256(config: MDTConfig) -> str:
    """`model_sha256` of a run that is the teacher, or `trellis_sha256`."""
    folder = Path(config.teacher)
    return trellis_sha256(config) if is_trellis(config.teacher) else model_sha256(folder)


def model_sha256(folder: Path) -> str:
    """SHA-256 of a finished run's model, in hexadecimal; `UserError` when the folder holds none."""
    saved_config(folder)
    path = folder / "model.safetensors"
    if not path.exists():
        raise UserError(f"{folder} has no model.safetensors yet; finish that run first, with --resume")
    return sha256(path)


def taught_by(folder: Path) -> str:
    """`model_sha256` of the teacher that a run was started from; '' where the folder does not tell."""
    path = folder / "teacher.json"
    return str(read_json(path)["sha256"]) if path.exists() else ""


def saved_config(folder: Path) -> MDTConfig:
    """The config a run was started with; `UserError` when the folder holds no such run."""
    path = folder / "config.yaml"
    if not path.exists() or path.read_text().split("\n", 1)[0] != f"method: {METHOD}":
        raise UserError(f"{folder} is no run of scene-distill distill mdt (no config.yaml of one in it)")
    return from_plain(MDTConfig, read_yaml(path), str(path))


def world_of(folder: Path) -> Path:
    """The folder of the run that made the world which a run learned from: itself, or its teacher's, and so on."""
    config = saved_config(folder)
    return folder if config.teacher == TINY else world_of(Path(config.teacher))


def what_was_trained(config: MDTConfig) -> dict[str, Any]:
    """The settings that decide what is learned, without folders."""
    plain = {name: value for name, value in to_plain(config).items() if name not in HOW_TO_RUN}
    return plain | {"teacher": config.teacher if config.teacher == TINY else Path(config.teacher).name}


def sizes_of(config: MDTConfig) -> ShapeSizes:
    """The sizes of a config's networks."""
    return ShapeSizes(config.width, config.depth, config.highest_frequency)


class MDTRun:
    """A run on one of its workers."""

    def __init__(self, config: MDTConfig, workers: Workers) -> None:
        self.config, self.workers, self.folder = config, workers, config.output_dir
        taught = config.teacher == TINY
        self.source = self.folder if taught else Path(config.teacher)
        home = self.folder if taught else world_of(self.source)
        self.world = config if taught else saved_config(home)
        self.model = ShapeModel(sizes_of(config)) if taught else ShapeModel.load(self.source)
        self.shapes = ShapeSet("train", self.world.shapes, self.world.shards, self.world.seed)
        self.files = LatentFiles(home / "latents")
        self.clock = WallClock(self.folder / "wall_clock.json", workers.rank == 0)

    def run(self) -> ShapeModel:
        """Do what is left; the model, saved by worker 0 to model.safetensors. Every worker calls it."""
        if self.config.teacher == TINY:
            self._make_world()
            self._learn(self.structure_stage())
            self._learn(self.surface_stage())
            self._learn(self.gaussian_stage())
            self.encode_all()
            for flow in FLOWS:
                self._learn(self.teacher_stage(flow))
        else:
            self._whiten()
        for flow in FLOWS:
            if self.config.stage in ("both", flow):
                self._learn(self.student_stage(flow))
        about = {"config": what_was_trained(self.config), "shapes": asdict(self.shapes), "students": self._students()}
        self.model.about = about
        with self.workers.first_before_others("worker 0 writes the model"):
            if self.workers.rank == 0:
                self.model.save(self.folder / "model.safetensors", about)
                write_json(self.folder / "stages.json", self._notes())
        return self.model

    def _students(self) -> dict[str, dict[str, Any]]:
        """How the students of the flows want to be walked: this run's, and those of its teacher that it kept."""
        mine = asdict(StudentNotes(self.config.walked_phases, self.config.keep_guidance))
        flows = [flow for flow in FLOWS if self.config.stage in ("both", flow)]
        return self.model.about.get("students", {}) | dict.fromkeys(flows, mine)

    def _notes(self) -> dict[str, Any]:
        """What every stage of this run took, by name, and the whole of it, with making and encoding the world."""
        self.clock.write()
        stages = {path.stem: read_json(path) for path in sorted((self.folder / "weights").glob("*.json"))}
        return stages | {"whole": {"seconds": self.clock.seconds}}

    def structure_stage(self) -> Stage:
        """The structure autoencoder."""
        network = self._seeded("structure", lambda: StructureAutoencoder(self.model.sizes.structure_config()))
        lesson = StructureLesson(self.shapes, self.folder / "shapes", network)
        parts = (("structure_encoder", "encoder."), ("structure_decoder", "decoder."))
        return Stage("structure_autoencoder", network, lesson, self._decoding(self.config.structure_steps), parts)

    def surface_stage(self) -> Stage:
        """The surface encoder with the mesh decoder."""
        network = self._seeded("surface", lambda: SurfaceAutoencoder(self.model.sizes.surface_config()))
        lesson = SurfaceLesson(self.shapes, self.folder / "shapes", network, self.model.structure_encoder)
        parts = (("surface_encoder", "encoder."), ("mesh_decoder", "decoder."))
        return Stage("surface_autoencoder", network, lesson, self._decoding(self.config.surface_steps), parts)

    def gaussian_stage(self) -> Stage:
        """The Gaussian decoder."""
        network = self._seeded("gaussians", lambda: gaussian_decoder(self.model.sizes.surface_config()))
        encoders = (self.model.structure_encoder, self.model.surface_encoder)
        lesson = GaussianLesson(self.shapes, self.folder / "shapes", network, *encoders)
        learning = self._decoding(self.config.gaussian_steps)
        return Stage("gaussian_decoder", network, lesson, learning, (("gaussian_decoder", ""),))

    def teacher_stage(self, flow: FlowName) -> Stage:
        """A flow."""
        network = self._seeded(f"teacher {flow}", lambda: VectorFlow(self.model.sizes.flow_config(flow)))
        lesson = FlowLesson(self.files, flow, self.model.whitening, network, self.config)
        config = self.config
        learning = Learning(config.teacher_steps, config.teacher_rate, config.batch, ema=config.ema, clip=config.clip,
                            seed=config.seed)  # fmt: skip
        return Stage(f"teacher_{flow}", network, lesson, learning, ((f"teacher_{flow}", ""),))

    def student_stage(self, flow: FlowName) -> Stage:
        """A student of a flow, from its weights."""
        config, teacher = self.config, self.model.flow("teacher", flow)
        network = VectorFlow(self.model.sizes.flow_config(flow))
        network.load_state_dict(teacher.state_dict())
        lesson = StudentLesson(self.files, flow, self.model.whitening, network, teacher, config)
        return Stage(f"student_{flow}", network, lesson, student_learning(config), ((f"student_{flow}", ""),))

    def _decoding(self, steps: int) -> Learning:
        config = self.config
        return Learning(steps, config.autoencoder_rate, config.batch, ema=config.ema, clip=config.clip,
                        seed=config.seed)  # fmt: skip

    def _seeded(self, name: str, make: Callable[[], Any]) -> Any:
        """A network whose first weights depend on the seed and its name."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(self.config.seed, "shapes", name))
            return make()

    def _make_world(self) -> None:
        """Voxels of all shards; every worker makes some."""
        with progress("objects (shards)", -(-self.shapes.shards // self.workers.count)) as meter:

            def told(done: int, total: int) -> None:
                meter.update(done)
                self.clock.tick()

            write_shards(self.shapes, self.folder / "shapes", told, self.workers.rank, self.workers.count)
        self.workers.main.barrier("the objects are made")

    @torch.no_grad()
    def encode_all(self) -> None:
        """Latents of all shards, and their mean and spread."""
        for shard in range(self.workers.rank, self.shapes.shards, self.workers.count):
            if not self.files.path(shard).exists():
                tensors = self.encoded(shard)
                write_atomically(self.files.path(shard), lambda temporary: save_file(tensors, temporary))
                self.clock.tick()
        self.workers.main.barrier("the latents are made")
        self._whiten()

    def _whiten(self) -> None:
        every = [self.files.read(shard) for shard in range(self.shapes.shards)]
        self.model.whiten("structure", torch.cat([tensors["structure"] for tensors in every]))
        self.model.whiten("latent", torch.cat([tensors["surface"] for tensors in every]))

    def encoded(self, shard: int) -> dict[str, Tensor]:
        """Latents (posterior means) and words of a shard's objects."""
        shapes = read_shard(self.shapes, self.folder / "shapes", shard)
        structure, surface = encode(self.model, shapes, torch_generator(self.config.seed, "shell samples", shard))
        return {"structure": structure, "surface": surface, "words": shapes.words.long()}

    def _learn(self, stage: Stage) -> None:
        """Train a stage, or what is left of it, and take its weights into the model."""
        path = self.folder / "weights" / f"{stage.name}.safetensors"
        if not path.exists():
            learn(stage, self.config, self.shapes.shards, self.workers, self.clock, path)
        tensors = read_weights(path, stage.name)[0]
        for part, prefix in stage.parts:
            self.model.take(part, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})


@torch.no_grad()
def encode(model: ShapeModel, shapes: Any, generator: torch.Generator, at_once: int = 64) -> tuple[Tensor, Tensor]:
    """Posterior means [N, Z] of structure and [N, Z'] of surface, of all objects of a shard."""
    structure, surface = [], []
    for rows in torch.arange(len(shapes)).split(at_once):
        structure.append(model.structure_encoder(shapes.grids(rows).float())[0])
        surface.append(surface_latents(model.surface_encoder, shapes, rows, generator))
    return torch.cat(structure), torch.cat(surface)


def whitened(model: ShapeModel, structure: Tensor, surface: Tensor) -> dict[str, Tensor]:
    """Encoder latents as flows see them, by flow."""
    pairs: dict[str, tuple[Whitening, Tensor]] = {
        "structure": (model.whitening["structure"], structure), "latent": (model.whitening["latent"], surface),
    }  # fmt: skip
    return {flow: whitening.apply(latent) for flow, (whitening, latent) in pairs.items()}
