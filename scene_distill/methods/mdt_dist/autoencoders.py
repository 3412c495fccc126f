"""Lessons of the autoencoders and decoders: structure, surface with its mesh, Gaussians from pictures.

Teacher:   the objects themselves: their voxels, samples of their shells, and their pictures.
Student:   structure encoder and decoder together; surface encoder and mesh decoder together; then, behind the frozen
           encoders, the Gaussian decoder.
Gradient:  Dice + 10 cross entropy + KL; absolute distances and colours + KL; absolute differences of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scene_distill.data.shape_shards import ShapeSet, ShapeShard, read_shard
from scene_distill.data.shape_world import draw_shape, view_camera
from scene_distill.nets.structure_autoencoder import (
    StructureConfig,
    StructureDecoder,
    StructureEncoder,
    kl_to_unit,
    sampled_latent,
    structure_loss,
)
from scene_distill.nets.surface_autoencoder import (
    GAUSSIAN_CHANNELS,
    MESH_CHANNELS,
    SurfaceConfig,
    SurfaceEncoder,
    VoxelDecoder,
    distances_and_colors,
    splats_of_channels,
)
from scene_distill.objectives.transport_times import TimeBins
from scene_distill.renderers.splat import render
from scene_distill.training.sharded_learning import Outcome

STRUCTURE_KL, SURFACE_KL = 2e-3, 1e-3
COLOR = 8
"""Weight of absolute colour errors beside those of distance: without it small parts take the wrong colour."""

SAMPLES, LOOKS = 128, 4
"""Shell voxels of an object that the surface encoder sees at a time, and how often it looks for one latent."""

ONE_BIN = TimeBins(1)

PICTURE, OBJECTS = 64, 2
"""Pixels of a picture's side, and objects a step of the Gaussian decoder draws."""


class StructureAutoencoder(nn.Module):
    """Both ways."""

    def __init__(self, config: StructureConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = StructureEncoder(config), StructureDecoder(config)


class SurfaceAutoencoder(nn.Module):
    """Encoder and mesh decoder."""

    def __init__(self, config: SurfaceConfig) -> None:
        super().__init__()
        self.encoder, self.decoder = SurfaceEncoder(config), VoxelDecoder(config, MESH_CHANNELS)


def gaussian_decoder(config: SurfaceConfig) -> VoxelDecoder:
    """The decoder of a Gaussian for every shell voxel."""
    return VoxelDecoder(config, GAUSSIAN_CHANNELS)


@dataclass(frozen=True, eq=False)
class StructureLesson:
    """Voxels in, voxels out."""

    shapes: ShapeSet
    folder: Path
    network: StructureAutoencoder
    bins: TimeBins = ONE_BIN

    def read(self, shard: int) -> ShapeShard:
        """The shard's objects."""
        return read_shard(self.shapes, self.folder, shard)

    def outcome(self, data: object, batch: int, progress: float, generator: torch.Generator) -> Outcome:
        """Dice + 10 cross entropy + KL of a batch."""
        assert isinstance(data, ShapeShard)
        grids = data.grids(torch.randint(len(data), (batch,), generator=generator))
        mean, log_variance = self.network.encoder(grids.float())
        noise = torch.randn(mean.shape, generator=generator)
        logits = self.network.decoder(sampled_latent(mean, log_variance, noise))
        dice, entropy = structure_loss(logits, grids)
        kl = kl_to_unit(mean, log_variance).mean()
        loss = dice.mean() + 10 * entropy.mean() + STRUCTURE_KL * kl
        return Outcome(loss, {"dice": _number(dice), "entropy": _number(entropy), "kl": _number(kl)})


@dataclass(frozen=True, eq=False)
class SurfaceLesson:
    """Samples of shells in, distances and colours at other samples out."""

    shapes: ShapeSet
    folder: Path
    network: SurfaceAutoencoder
    structure: StructureEncoder
    bins: TimeBins = ONE_BIN

    def read(self, shard: int) -> ShapeShard:
        """The shard's objects."""
        return read_shard(self.shapes, self.folder, shard)

    def outcome(self, data: object, batch: int, progress: float, generator: torch.Generator) -> Outcome:
        """Absolute errors of distance (in voxels) and colour + KL of a batch."""
        assert isinstance(data, ShapeShard)
        rows = torch.randint(len(data), (batch,), generator=generator)
        grids = data.grids(rows)
        with torch.no_grad():
            structure = self.structure(grids.float())[0]
        mean, log_variance = self.network.encoder(*data.sampled(rows, SAMPLES, generator))
        latent = sampled_latent(mean, log_variance, torch.randn(mean.shape, generator=generator))
        index, distance, color = data.sampled(rows, SAMPLES, generator)
        found, painted = distances_and_colors(self.network.decoder(index, grids, latent, structure))
        off, tint = (found - distance).abs().mean(), (painted - color).abs().mean()
        kl = kl_to_unit(mean, log_variance).mean()
        loss = off + COLOR * tint + SURFACE_KL * kl
        return Outcome(loss, {"distance": _number(off), "color": _number(tint), "kl": _number(kl)})


@torch.no_grad()
def surface_latents(encoder: SurfaceEncoder, shard: ShapeShard, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Surface latents [B, Z] of objects ``rows`` [B]: posterior means, averaged over `LOOKS` draws of `SAMPLES` voxels.

    Not one draw of more: the encoder's largest feature grows with their number, and it learned with `SAMPLES`.
    """
    looks = [encoder(*shard.sampled(rows, SAMPLES, generator))[0] for _ in range(LOOKS)]
    return torch.stack(looks).mean(0)


@dataclass(frozen=True, eq=False)
class PicturedShard:
    """A shard and which objects it holds."""

    shapes: ShapeShard
    numbers: range


@dataclass(frozen=True, eq=False)
class GaussianLesson:
    """Pictures of two objects from random sides against renders of their Gaussians."""

    shapes: ShapeSet
    folder: Path
    network: VoxelDecoder
    structure: StructureEncoder
    surface: SurfaceEncoder
    bins: TimeBins = ONE_BIN

    def read(self, shard: int) -> PicturedShard:
        """The shard's objects."""
        return PicturedShard(read_shard(self.shapes, self.folder, shard), self.shapes.numbers(shard))

    def outcome(self, data: object, batch: int, progress: float, generator: torch.Generator) -> Outcome:
        """Mean absolute error of colour over a random grey, and of coverage."""
        assert isinstance(data, PicturedShard)
        losses = []
        for row in torch.randint(len(data.shapes), (min(OBJECTS, batch),), generator=generator).tolist():
            angles = torch.rand(3, generator=generator)
            camera = view_camera(PICTURE, float(360 * angles[0]), float(70 * angles[1] - 10))
            recipe = draw_shape(self.shapes.seed, self.shapes.purpose, data.numbers[row])
            picture = torch.from_numpy(recipe.picture(camera)).float() / 255
            splats = splats_of_channels(*self._channels(data.shapes, row, generator), self.shapes.resolution)
            drawn = render(splats.gaussians(camera), camera, background=angles[2].expand(3))
            wanted = picture[..., :3] * picture[..., 3:] + angles[2] * (1 - picture[..., 3:])
            losses.append((drawn.image - wanted).abs().mean() + 0.5 * (drawn.alpha - picture[..., 3]).abs().mean())
        loss = torch.stack(losses).mean()
        return Outcome(loss, {})

    def _channels(self, shard: ShapeShard, row: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Channels [M, 14] at an object's shell, and the shell's voxels [M]."""
        index, _, _ = shard.shell(row)
        rows = torch.tensor([row])
        grids = shard.grids(rows)
        with torch.no_grad():
            structure = self.structure(grids.float())[0]
            surface = surface_latents(self.surface, shard, rows, generator)
        return self.network(index[None], grids, surface, structure)[0], index


def _number(value: Tensor) -> float:
    return float(value.detach().mean())
