"""The small world's networks together: autoencoders, teachers and students of two flows; in a file, and in use.

From words to an object: structure latent (flow 1) -> occupancy -> surface latent (flow 2, which sees the structure
latent) -> at every shell voxel a signed distance with a colour, or a Gaussian.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.data.shape_world import RESOLUTION, SLOTS, shell
from scene_distill.nets.structure_autoencoder import StructureConfig, StructureDecoder, StructureEncoder
from scene_distill.nets.surface_autoencoder import (
    SurfaceConfig,
    SurfaceEncoder,
    VoxelDecoder,
    distances_and_colors,
    splats_of_channels,
)
from scene_distill.nets.vector_flow import VectorFlow, VectorFlowConfig
from scene_distill.nets.weight_files import read_weights, save_weights
from scene_distill.priors.flow import FlowSteps, Guidance, fresh_noise, sample
from scene_distill.representations.splats import Splats

KIND = "shape model"
FlowName = Literal["structure", "latent"]
FLOWS: tuple[FlowName, ...] = ("structure", "latent")
Role = Literal["teacher", "student"]


@dataclass(frozen=True)
class ShapeSizes:
    """What decides the shapes of all networks."""

    width: int = 256
    depth: int = 4
    highest_frequency: float = 64.0
    resolution: int = RESOLUTION
    structure: int = 64
    surface: int = 48

    def structure_config(self) -> StructureConfig:
        """Of the structure autoencoder."""
        return StructureConfig(self.resolution, self.structure)

    def surface_config(self) -> SurfaceConfig:
        """Of the surface autoencoder and the decoders."""
        return SurfaceConfig(self.resolution, self.surface, self.structure)

    def flow_config(self, flow: FlowName) -> VectorFlowConfig:
        """Of a flow; the surface's is conditioned on the structure latent and on all words."""
        if flow == "structure":
            return VectorFlowConfig(self.structure, SLOTS[:1], 0, self.width, self.depth,
                                    highest_frequency=self.highest_frequency)  # fmt: skip
        return VectorFlowConfig(self.surface, SLOTS, self.structure, 3 * self.width // 4, self.depth,
                                highest_frequency=self.highest_frequency)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Whitening:
    """Latents as flows see them: (z - mean) / spread. ``mean`` [D]; ``spread`` [1], one for all dimensions, so that
    those in which the encoder says nothing stay small."""

    mean: Tensor
    spread: Tensor

    def apply(self, latent: Tensor) -> Tensor:
        """Latents of an encoder as a flow's states."""
        return (latent - self.mean) / self.spread

    def undo(self, state: Tensor) -> Tensor:
        """A flow's states as latents of a decoder."""
        return state * self.spread + self.mean


@dataclass(frozen=True)
class Walk:
    """How objects are sampled. ``role`` None: the student up to four steps, the teacher above."""

    steps: int = 1
    sampler: Literal["euler", "renoise"] = "euler"
    guidance: float = 0.0
    rescale_t: float = 1.0
    role: Role | None = None

    @property
    def network(self) -> Role:
        """Whose velocity is followed."""
        return self.role or ("student" if self.steps <= 4 else "teacher")


@dataclass(frozen=True)
class StudentNotes:
    """How a student wants to be walked. ``phases``: 1 for students of transport to t = 0, which renoise between steps;
    more for those of phased consistency, which take Euler's steps, one a phase or equally many in each. ``guided``:
    whether it kept the guidance, and can be asked for some."""

    phases: int = 1
    guided: bool = False


@dataclass(frozen=True, eq=False)
class Shapes:
    """Sampled objects: whitened latents [B, ...], decoder latents, and occupancy [B, R, R, R] bool."""

    structure_state: Tensor
    surface_state: Tensor
    structure: Tensor
    surface: Tensor
    grids: Tensor


class ShapeModel:
    """All networks, in evaluation. ``flows``: (role, flow) -> network; a run in progress may lack some."""

    def __init__(self, sizes: ShapeSizes) -> None:
        structure, surface = sizes.structure_config(), sizes.surface_config()
        self.sizes = sizes
        self.structure_encoder, self.structure_decoder = StructureEncoder(structure), StructureDecoder(structure)
        self.surface_encoder = SurfaceEncoder(surface)
        self.mesh_decoder, self.gaussian_decoder = VoxelDecoder(surface, 4), VoxelDecoder(surface, 14)
        self.whitening: dict[str, Whitening] = {}
        self.flows: dict[tuple[str, str], VectorFlow] = {}
        self.about: dict[str, Any] = {}

    def parts(self) -> dict[str, nn.Module]:
        """Networks by the prefix of their tensors in the file."""
        fixed: dict[str, nn.Module] = {
            "structure_encoder": self.structure_encoder, "structure_decoder": self.structure_decoder,
            "surface_encoder": self.surface_encoder, "mesh_decoder": self.mesh_decoder,
            "gaussian_decoder": self.gaussian_decoder,
        }  # fmt: skip
        return fixed | {f"{role}_{flow}": network for (role, flow), network in self.flows.items()}

    def flow(self, role: str, flow: str) -> VectorFlow:
        """A flow's network; `UserError` when the model has none such."""
        if (role, flow) not in self.flows:
            raise UserError(f"this model has no {role} of the {flow} flow; train on with scene-distill distill mdt")
        return self.flows[role, flow]

    @property
    def student(self) -> StudentNotes:
        """Of both flows' students: the more phases of the two, and guided if both are."""
        notes = [StudentNotes(**kept) for kept in self.about.get("students", {}).values()] or [StudentNotes()]
        return StudentNotes(max(note.phases for note in notes), all(note.guided for note in notes))

    def take(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Fill a part; one of a flow ('teacher_structure') is made first."""
        role, _, flow = part.partition("_")
        if role in ("teacher", "student"):
            name: FlowName = "structure" if flow == "structure" else "latent"
            self.flows[role, name] = VectorFlow(self.sizes.flow_config(name))
        network = self.parts()[part]
        network.load_state_dict(dict(tensors))
        network.requires_grad_(False).eval()

    def whiten(self, flow: str, latents: Tensor) -> None:
        """Take mean and spread (root-mean-square over dimensions) from training latents [N, D]."""
        spread = latents.var(0).mean().sqrt().clamp_min(1e-3)
        self.whitening[flow] = Whitening(latents.mean(0), spread[None])

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name."""
        found = {f"{part}/{name}": t for part, network in self.parts().items()
                 for name, t in network.state_dict().items()}  # fmt: skip
        for flow, whitening in self.whitening.items():
            found |= {f"whitening_{flow}/mean": whitening.mean, f"whitening_{flow}/spread": whitening.spread}
        return found

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write everything, in half precision."""
        save_weights(
            path, self.tensors(), {"kind": KIND, "sizes": dataclasses.asdict(self.sizes), "about": dict(about)}
        )

    @staticmethod
    def load(path: Path) -> ShapeModel:
        """Read what `save` wrote; ``path`` may be a run's folder. Raises `UserError` for anything else."""
        path = path / "model.safetensors" if path.is_dir() else path
        if not path.exists():
            raise UserError(f"there is no model at {path}; train one with scene-distill distill mdt --output-dir DIR")
        tensors, description = read_weights(path, KIND)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, inner = name.partition("/")
            parts.setdefault(part, {})[inner] = tensor
        try:
            model = ShapeModel(ShapeSizes(**description["sizes"]))
            model.about = description["about"]
            for part, inside in parts.items():
                if part.startswith("whitening_"):
                    model.whitening[part.removeprefix("whitening_")] = Whitening(**inside)
                else:
                    model.take(part, inside)
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} does not hold the networks it says it does ({reason})") from error
        return model

    @torch.no_grad()
    def sample(self, words: Tensor, walk: Walk, seed: int, first: int = 0) -> Shapes:
        """Objects for words [B, 3]; object i depends on (seed, first + i) and its words alone."""
        numbers = range(first, first + len(words))
        structure_state = self.walk("structure", words[:, :1], None, walk, seed, numbers)
        structure = self.whitening["structure"].undo(structure_state)
        surface_state = self.walk("latent", words, structure_state, walk, seed, numbers)
        surface = self.whitening["latent"].undo(surface_state)
        grids = self.structure_decoder(structure) > 0
        return Shapes(structure_state, surface_state, structure, surface, grids)

    def walk(self, flow: FlowName, words: Tensor, given: Tensor | None, walk: Walk, seed: int,
             numbers: range) -> Tensor:  # fmt: skip
        """States [B, D] of a flow, from noise keyed by (seed, flow, number), that of renoising too."""
        network = self.flow(walk.network, flow)
        size = self.sizes.flow_config(flow).dimensions
        generators = [torch_generator(seed, "shape", flow, n) for n in numbers]
        noise = fresh_noise(torch.empty(len(numbers), size), generators)
        nothing = (torch.zeros_like(words), given)
        guidance = Guidance(((words, given),), nothing if walk.guidance else None, walk.guidance)
        steps = FlowSteps(walk.steps, walk.rescale_t, walk.sampler)
        again = [torch_generator(seed, "shape", flow, "renoise", n) for n in numbers]
        return sample(lambda x, t, condition: network(x, t, *condition), noise, guidance, steps, again)

    def shell_of(self, shapes: Shapes, row: int) -> Tensor:
        """Numbers [M] of an object's shell voxels; `UserError` when nothing is occupied."""
        index = torch.from_numpy(np.flatnonzero(shell(shapes.grids[row].numpy())))
        if not len(index):
            raise UserError("the sampled structure is empty; take another --seed or more --steps")
        return index

    @torch.no_grad()
    def surface_of(self, shapes: Shapes, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Shell voxels [M] of an object, their signed distances [M] in voxels and colours [M, 3]."""
        index, rows = self.shell_of(shapes, row), slice(row, row + 1)
        channels = self.mesh_decoder(index[None], shapes.grids[rows], shapes.surface[rows], shapes.structure[rows])[0]
        return index, *distances_and_colors(channels)

    @torch.no_grad()
    def splats_of(self, shapes: Shapes, row: int) -> Splats:
        """An object as Gaussians in the cube's frame."""
        index, rows = self.shell_of(shapes, row), slice(row, row + 1)
        channels = self.gaussian_decoder(index[None], shapes.grids[rows], shapes.surface[rows], shapes.structure[rows])[
            0
        ]
        return splats_of_channels(channels, index, self.sizes.resolution)
