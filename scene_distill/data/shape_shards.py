"""Objects of the small world in files: a shard holds some of them, as much as is read at a time.

A shard is one .safetensors file of n objects with M shell voxels in all: ``words`` [n, 3] uint8 (`shape_world.SLOTS`),
``occupancy`` [n, R^3 / 8] uint8 (bits, first voxel highest), ``starts`` [n + 1] int64 into the rows ``index`` [M]
int32, ``distance`` [M] int8 (of `shape_world.TRUNCATION` / 127 voxels) and ``color`` [M, 3] uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.core.shard_files import numbers_of, read_shard_file
from scene_distill.data.shape_world import RESOLUTION, TRUNCATION, draw_shape, voxelise


@dataclass(frozen=True)
class ShapeSet:
    """``count`` objects for a purpose ('train', 'test'), in ``shards`` shards as equal as they can be."""

    purpose: str
    count: int
    shards: int = 1
    seed: int = 0
    resolution: int = RESOLUTION

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= self.count:
            raise UserError(f"{self.count} objects cannot be cut into {self.shards} shards; every shard needs one")

    def numbers(self, shard: int) -> range:
        """The numbers of a shard's objects."""
        return numbers_of(shard, self.shards, self.count)

    def path(self, folder: Path, shard: int) -> Path:
        """A shard's file."""
        name = f"{self.purpose}-{self.seed}-{self.count}-{self.resolution}-{shard:04d}of{self.shards:04d}.safetensors"
        return folder / name


@dataclass(frozen=True, eq=False)
class ShapeShard:
    """The objects of a shard in memory; see the head of this file. ``resolution`` is R."""

    resolution: int
    words: Tensor
    occupancy: Tensor
    starts: Tensor
    index: Tensor
    distance: Tensor
    color: Tensor

    def __len__(self) -> int:
        return len(self.words)

    def grids(self, rows: Tensor) -> Tensor:
        """Occupancy [B, R, R, R] bool of objects ``rows`` [B]."""
        bits = np.unpackbits(self.occupancy[rows].numpy(), axis=1)
        return torch.from_numpy(bits).bool().reshape(-1, *(self.resolution,) * 3)

    def shell(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of an object's shell voxels: numbers [m] int64, distances [m] in voxels, colours [m, 3] in [0, 1]."""
        rows = slice(int(self.starts[row]), int(self.starts[row + 1]))
        distance = self.distance[rows].float() * (TRUNCATION / 127)
        return self.index[rows].long(), distance, self.color[rows].float() / 255

    def sampled(self, rows: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The same [B, count], [B, count], [B, count, 3] of ``count`` random shell voxels of each, with repetition."""
        first, last = self.starts[rows, None], self.starts[rows + 1, None]
        draw = torch.rand(len(rows), count, generator=generator, dtype=torch.float64)
        place = (first + draw * (last - first)).long()
        distance = self.distance[place].float() * (TRUNCATION / 127)
        return self.index[place].long(), distance, self.color[place].float() / 255


def make_shard(wanted: ShapeSet, shard: int) -> dict[str, Tensor]:
    """The tensors of a shard's file. About 15 ms an object."""
    words, bits, index, distance, color = [], [], [], [], []
    for number in wanted.numbers(shard):
        recipe = draw_shape(wanted.seed, wanted.purpose, number)
        voxels = voxelise(recipe, wanted.resolution)
        words.append(recipe.words)
        bits.append(np.packbits(voxels.occupancy.reshape(-1)))
        index.append(voxels.index.astype(np.int32))
        distance.append(np.rint(voxels.distance * (127 / TRUNCATION)).astype(np.int8))
        color.append(voxels.color)
    starts = np.cumsum([0, *map(len, index)])
    arrays = {
        "words": np.array(words, np.uint8), "occupancy": np.stack(bits), "starts": starts.astype(np.int64),
        "index": np.concatenate(index), "distance": np.concatenate(distance), "color": np.concatenate(color),
    }  # fmt: skip
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def write_shards(wanted: ShapeSet, folder: Path, told: Callable[[int, int], None] = lambda done, total: None,
                 rank: int = 0, ranks: int = 1) -> None:  # fmt: skip
    """Make the shards that are not there; with several processes every ``ranks``-th one, from ``rank`` on."""
    from safetensors.torch import save_file

    mine = range(rank, wanted.shards, ranks)
    for done, shard in enumerate(mine, start=1):
        path = wanted.path(folder, shard)
        if not path.exists():
            tensors = make_shard(wanted, shard)
            write_atomically(path, lambda temporary: save_file(tensors, temporary))
        told(done, len(mine))


def read_shard(wanted: ShapeSet, folder: Path, shard: int) -> ShapeShard:
    """A shard from its file; `UserError` when that is missing or damaged."""
    path = wanted.path(folder, shard)
    names = [field.name for field in fields(ShapeShard) if field.name != "resolution"]
    found = ShapeShard(wanted.resolution, **read_shard_file(path, names))
    if len(found) != len(wanted.numbers(shard)) or found.occupancy.shape[1] * 8 != wanted.resolution**3:
        raise UserError(f"the shard {path} holds other objects than its name says; delete it, and it is made again")
    return found


def read_all(wanted: ShapeSet, folder: Path) -> ShapeShard:
    """All shards of a set as one."""
    parts = [read_shard(wanted, folder, shard) for shard in range(wanted.shards)]
    offsets = np.cumsum([0, *(len(part.index) for part in parts)])
    starts = [part.starts[:-1] + int(offset) for part, offset in zip(parts, offsets, strict=False)]
    joined = {name: torch.cat([getattr(part, name) for part in parts])
              for name in ("words", "occupancy", "index", "distance", "color")}  # fmt: skip
    return ShapeShard(wanted.resolution, starts=torch.cat([*starts, torch.tensor([int(offsets[-1])])]), **joined)
