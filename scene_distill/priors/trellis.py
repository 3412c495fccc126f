"""TRELLIS from a local folder: picture or text -> occupied voxels -> structured latents -> Gaussians, mesh, field.

Teacher:  two rectified flows (`flow`): over structure latents, dense, and over features on the occupied voxels, sparse.
          Each is a `flow.VelocityField`, so students of transport can take their place (``networks``).
Memory:   a network is loaded when its stage begins and dropped when it ends, unless ``keep``.
Seeds:    the noise of sample number i, that of renoising too, depends on (seed, stage, i) alone: not on its company.
Frame:    the object in [-1/2, 1/2]^3, z up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.nets.sparse_structure_vae import occupied_voxels
from scene_distill.nets.sparse_tensor import SparseTensor, Voxels
from scene_distill.priors import flow
from scene_distill.priors.trellis_conditions import (
    Conditioner,
    conditioner_folder,
    load_image_conditioner,
    load_text_conditioner,
)
from scene_distill.priors.trellis_files import DECODERS, FlowSettings, TrellisFiles, guidance_of, read_trellis_folder

UP = (0.0, 0.0, 1.0)
"""The objects' up axis."""

Watch = Callable[[str, int, int], None]
"""Told (stage, step, steps) before every step."""


@dataclass(frozen=True, eq=False)
class StructureField:
    """A structure flow as a `flow.VelocityField` on latents [B, C, R, R, R]; conditions are tokens [B or 1, S, D]."""

    network: nn.Module

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocities shaped as x."""
        return self.network(x, t, condition)


@dataclass(frozen=True, eq=False)
class LatentField:
    """A latent flow as a `flow.VelocityField` on features [N, C] of these voxels."""

    network: nn.Module
    voxels: Voxels

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Velocities shaped as x."""
        return self.network(SparseTensor(x, self.voxels), t, condition).features


@dataclass(frozen=True, eq=False)
class Described:
    """Tokens [1, S, D] of one or several descriptions of one object, and of their opposite."""

    conditions: tuple[Tensor, ...]
    opposite: Tensor


@dataclass
class TrellisPrior:
    """A folder of TRELLIS models, ready to sample. Built by `load_trellis`.

    ``structure``, ``latent``: settings of the two flows, the folder's unless changed. ``combine``: how several pictures
    of one object are used (`flow.Guidance`). ``networks``: networks in place of the folder's, by role.
    """

    files: TrellisFiles
    conditioner: Conditioner
    structure: FlowSettings
    latent: FlowSettings
    device: str = "cpu"
    dtype: torch.dtype | None = None
    keep: bool = False
    combine: Literal["mean", "cycle"] = "mean"
    watch: Watch | None = None
    networks: dict[str, nn.Module] = field(default_factory=dict)

    def describe(self, descriptions: Sequence[Any]) -> Described:
        """One or several descriptions of the same object: pictures with alpha, or texts, as the folder wants."""
        tokens = self.conditioner(descriptions).to(self.device)
        return Described(
            tuple(tokens[i : i + 1] for i in range(len(tokens))), self.conditioner.opposite().to(self.device)
        )

    def structure_latents(self, described: Described, seed: int, count: int = 1) -> Tensor:
        """What the structure flow ends at: latents [count, C, R, R, R]."""
        network = self._network("sparse_structure_flow_model")
        shape = (network.in_channels, *[network.resolution] * 3)
        noise = torch.stack([_noise(seed, "structure", i, shape) for i in range(count)]).to(self.device)  # type: ignore[arg-type]
        rows = [1] * count
        latents = self._walked(StructureField(network), noise, rows, described, self.structure, "structure", seed)
        del network
        self._drop("sparse_structure_flow_model")
        return latents

    def occupied(self, latents: Tensor) -> Voxels:
        """Occupied voxels of structure latents. Raises `UserError` when a sample has none."""
        with torch.no_grad():
            coords = occupied_voxels(self._network("sparse_structure_decoder")(latents))
        self._drop("sparse_structure_decoder")
        return Voxels(coords)

    def sample_structure(self, described: Described, seed: int, count: int = 1) -> Voxels:
        """Occupied voxels of ``count`` samples. Raises `UserError` when a sample has none."""
        return self.occupied(self.structure_latents(described, seed, count))

    def latent_states(self, described: Described, voxels: Voxels, seed: int) -> Tensor:
        """What the latent flow ends at: features [N, C] of the voxels, mean 0 and spread 1 over TRELLIS's objects."""
        network = self._network("slat_flow_model")
        width: int = network.in_channels  # type: ignore[assignment]
        if len(self.files.mean) != width:
            raise UserError(
                f"{self.files.folder}: slat_normalization has {len(self.files.mean)} numbers for {width} channels"
            )
        noise = torch.cat([_noise(seed, "latent", i, (n, width)) for i, n in enumerate(voxels.counts)]).to(self.device)
        x = self._walked(LatentField(network, voxels), noise, voxels.counts, described, self.latent, "latent", seed)
        del network
        self._drop("slat_flow_model")
        return x

    def sample_latent(self, described: Described, voxels: Voxels, seed: int) -> SparseTensor:
        """Latents [N, C] on the voxels, in the decoders' units."""
        x = self.latent_states(described, voxels, seed)
        return SparseTensor(x * x.new_tensor(self.files.std) + x.new_tensor(self.files.mean), voxels)

    def decode(self, latent: SparseTensor, formats: Sequence[str]) -> dict[str, list[Any]]:
        """For every format its objects, one a sample: 'gaussians' `Splats`, 'mesh' `flexible_cubes.Surface`, 'radiance'
        `TrivectorField`. Raises `UserError` for other formats, or those that the folder has no decoder for."""
        unknown = [name for name in formats if name not in DECODERS]
        if unknown:
            raise UserError(f"latents can become {', '.join(DECODERS)}, not {', '.join(unknown)}")
        made = {}
        for name in formats:
            with torch.no_grad():
                made[name] = self._network(DECODERS[name]).decode(latent)  # type: ignore[operator]
            self._drop(DECODERS[name])
        return made

    def generate(
        self, descriptions: Sequence[Any], formats: Sequence[str], seed: int = 0, count: int = 1
    ) -> dict[str, list[Any]]:
        """All stages: ``count`` samples of one object that the descriptions show, in every format (`decode`)."""
        described = self.describe(descriptions)
        voxels = self.sample_structure(described, seed, count)
        return self.decode(self.sample_latent(described, voxels, seed), formats)

    def with_settings(self, **changes: Any) -> TrellisPrior:
        """The same prior with other fields."""
        return replace(self, **changes)

    def _walked(
        self,
        velocity: flow.VelocityField,
        noise: Tensor,
        rows: Sequence[int],
        described: Described,
        settings: FlowSettings,
        stage: str,
        seed: int,
    ) -> Tensor:
        guidance = guidance_of(settings, described.conditions, described.opposite, self.combine)
        watch = self.watch
        told = None if watch is None else lambda i, t, x: watch(stage, i, settings.steps.steps)
        again = [torch_generator(seed, stage, "renoise", i) for i in range(len(rows))]
        return flow.sample(velocity, noise, guidance, settings.steps, again, told, rows)

    def _network(self, role: str) -> nn.Module:
        if role not in self.networks:
            self.networks[role] = self.files.network(role, self.device, self.dtype)
            self._loaded.add(role)
        return self.networks[role]

    def _drop(self, role: str) -> None:
        if not self.keep and role in self._loaded:
            self._loaded.discard(role)
            del self.networks[role]

    def __post_init__(self) -> None:
        self._loaded: set[str] = set()
        self.networks = dict(self.networks)


def load_trellis(
    folder: str | Path,
    models_root: Path | None = None,
    conditioner: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> TrellisPrior:
    """The models of a folder (`trellis_files`), checked but not yet loaded, and its conditioner, loaded.

    ``conditioner``: the folder of the DINOv2 or CLIP model, looked for beside the models otherwise. Raises `UserError`
    for anything that is missing or does not fit.
    """
    folder = Path(folder).expanduser()
    files = read_trellis_folder(folder, models_root)
    place = conditioner_folder(files.conditioner, folder, models_root, conditioner)
    reader: Mapping[str, Callable[..., Conditioner]]
    reader = {"image": load_image_conditioner, "text": load_text_conditioner}
    read = reader[files.conditioned_by](place, device)
    return TrellisPrior(files, read, files.structure, files.latent, str(device), dtype)


def _noise(seed: int, stage: str, item: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, stage, item))
