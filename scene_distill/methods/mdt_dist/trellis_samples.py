"""Samples of a TRELLIS teacher in shards: what its students learn from, so that no data set of latents is needed.

Object number i is what the teacher, sampled as its folder says, makes of description number i modulo their count,
from noise of (seed, i). A shard's file has tokens [d, S, W] of the descriptions it uses, ``described`` [n] (which of
them an object had), ``opposite`` [1, S, W], ``structure`` latents [n, C, R, R, R], and for students of the latent
flow ``voxels`` int32 [N, 4] (object of the shard, x, y, z) with features [N, C] as that flow ends (mean 0, spread 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.core.seeds import key
from scene_distill.core.shard_files import numbers_of, read_shard_file
from scene_distill.nets.sparse_structure_vae import NoVoxel
from scene_distill.nets.sparse_tensor import Voxels
from scene_distill.priors.trellis import TrellisPrior
from scene_distill.priors.trellis_conditions import object_picture, read_picture

PICTURES = (".png", ".webp")
"""Endings of pictures with transparency."""

ATTEMPTS = 4
"""Noises that are tried until a sample has a voxel."""


@dataclass(frozen=True, eq=False)
class TrellisShard:
    """A shard's tensors (see above), on the device they are used on."""

    tokens: Tensor
    described: Tensor
    opposite: Tensor
    structure: Tensor
    voxels: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.described)

    def conditions(self, rows: Tensor) -> Tensor:
        """Tokens float32 [B, S, D] of the objects ``rows`` [B]."""
        return self.tokens[self.described[rows]].float()

    def sparse(self, rows: Tensor) -> tuple[Voxels, Tensor]:
        """Voxels of the objects ``rows`` [B] as items 0 to B-1, and their features [M, C]."""
        assert self.voxels is not None and self.features is not None
        owner = self.voxels[:, 0].long()
        chosen = [torch.nonzero(owner == row).squeeze(1) for row in rows.tolist()]
        coords = [torch.cat([torch.full_like(self.voxels[c, :1], i), self.voxels[c, 1:]], 1)
                  for i, c in enumerate(chosen)]  # fmt: skip
        return Voxels(torch.cat(coords)), self.features[torch.cat(chosen)]


@dataclass(frozen=True)
class SampleFiles:
    """Where the shards of ``objects`` samples are."""

    folder: Path
    objects: int
    shards: int

    def path(self, shard: int) -> Path:
        """A shard's file."""
        return self.folder / f"shard-{shard:04d}.safetensors"

    def numbers(self, shard: int) -> range:
        """The objects of a shard."""
        return numbers_of(shard, self.shards, self.objects)

    def read(self, shard: int, device: torch.device | str = "cpu", latents: bool = True) -> TrellisShard:
        """A shard, without ``latents`` only what the structure flow needs; `UserError` when its file is damaged."""
        names = ("tokens", "described", "opposite", "structure", *(("voxels", "features") if latents else ()))
        tensors = read_shard_file(self.path(shard), names)
        return TrellisShard(**{name: tensor.to(device) for name, tensor in tensors.items()})

    def write(self, shard: int, prior: TrellisPrior, descriptions: Sequence[Any], seed: int, latents: bool,
              told: Callable[[int], None] = lambda done: None) -> None:  # fmt: skip
        """Sample a shard's objects, and with ``latents`` also what the latent flow makes of their voxels."""
        from safetensors.torch import save_file

        used = sorted({number % len(descriptions) for number in self.numbers(shard)})
        tokens, opposite = dict[int, Tensor](), torch.zeros(0)
        structure, voxels, features = [], [], []
        for row, number in enumerate(self.numbers(shard)):
            which = number % len(descriptions)
            described = prior.describe([opened(descriptions[which])])
            tokens[which], opposite = described.conditions[0].half().cpu(), described.opposite.half().cpu()
            latent, places, noise = _with_voxels(prior, described, seed, number, descriptions[which])
            structure.append(latent)
            if latents:
                coords = places.coords.clone()
                coords[:, 0] = row
                voxels.append(coords)
                features.append(prior.latent_states(described, places, noise))
            told(row + 1)
        tensors = {
            "tokens": torch.cat([tokens[which] for which in used]),
            "described": torch.tensor([used.index(number % len(descriptions)) for number in self.numbers(shard)]),
            "opposite": opposite,
            "structure": torch.cat(structure),
        }
        if latents:
            tensors |= {"voxels": torch.cat(voxels), "features": torch.cat(features)}
        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(self.path(shard), lambda temporary: save_file(stored, temporary))


def _with_voxels(prior: TrellisPrior, described: Any, seed: int, number: int, description: Any
                 ) -> tuple[Tensor, Voxels, int]:  # fmt: skip
    """Structure latents [1, ...] of an object that is not empty, its voxels, and the seed of its noise."""
    for attempt in range(ATTEMPTS):
        noise = key(seed, "teacher samples", number, attempt)
        latents = prior.structure_latents(described, noise)
        try:
            return latents, prior.occupied(latents), noise
        except NoVoxel:
            continue
    raise UserError(
        f"{ATTEMPTS} samples of the teacher for '{description}' had no voxel; leave it out of --describe, and see "
        "whether the teacher makes anything with scene-distill generate"
    )


def read_descriptions(path: Path, conditioned_by: str) -> list[str | Path]:
    """The lines of a text file, or paths of the pictures of a folder by name, whichever the teacher reads.

    Raises `UserError` for the other kind, or where there is nothing.
    """
    if conditioned_by == "text":
        if not path.is_file():
            raise UserError(f"the teacher reads texts, and --describe {path} is no file; give one with a text a line")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} cannot be read as a text in UTF-8 ({error}); give a file with a text a line"
            ) from error
        found: list[str | Path] = [line for line in lines if line]
    else:
        if not path.is_dir():
            raise UserError(f"the teacher reads pictures, and --describe {path} is no folder; give one with .png files")
        found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in PICTURES]
    if not found:
        what = "a line" if conditioned_by == "text" else f"a picture ({', '.join(PICTURES)})"
        raise UserError(f"--describe {path} has not even {what}; the teacher needs something to make")
    return found


def opened(description: str | Path) -> Any:
    """A text as it is; a path as its picture. `UserError` where there is none, or no object cut out in it."""
    if isinstance(description, str):
        return description
    picture = read_picture(description)
    object_picture(picture, str(description))
    return picture
