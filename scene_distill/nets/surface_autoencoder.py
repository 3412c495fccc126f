"""What an object's surface looks like as one vector: the surface latent of the small world, and its decoders.

The encoder sees samples of the shell (place, signed distance, colour) as a set. A decoder answers for one voxel at a
time: it sees the voxel's place, the occupancy of its 27 neighbours and, through adaptive scales, the surface latent and
the structure latent. Two of them: distance and colour (a mesh follows), and a Gaussian for every voxel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from scene_distill.core.spherical_harmonics import constant_coefficients
from scene_distill.representations.splats import Splats

OCTAVES = 5
"""Frequencies pi, 2 pi, ... of a place's embedding."""

PLACE = 3 + 6 * OCTAVES

NEIGHBOURS = 27

MESH_CHANNELS, GAUSSIAN_CHANNELS = 4, 14

_WIDEST, _USUAL, _CLEAR = 1.2, 0.55, 2.0
"""Spread of log-scales, usual size of a Gaussian in voxels, usual opacity logit."""


@dataclass(frozen=True)
class SurfaceConfig:
    """Sizes; ``structure`` is the length of the structure latent, ``seeing`` the width of the encoder and ``hidden``
    that of the decoders."""

    resolution: int = 32
    dimensions: int = 48
    structure: int = 64
    seeing: int = 192
    hidden: int = 96
    layers: int = 3


class SurfaceEncoder(nn.Module):
    """Samples of a shell to the mean and log-variance of the surface latent."""

    def __init__(self, config: SurfaceConfig) -> None:
        super().__init__()
        self.config, width = config, config.seeing
        self.each = nn.Sequential(nn.Linear(PLACE + 4, width), nn.GELU(), nn.Linear(width, 2 * width), nn.GELU())
        self.whole = nn.Sequential(nn.Linear(4 * width, 2 * width), nn.GELU(),
                                   nn.Linear(2 * width, 2 * config.dimensions))  # fmt: skip

    def forward(self, index: Tensor, distance: Tensor, color: Tensor) -> tuple[Tensor, Tensor]:
        """index [B, P] int64 voxel numbers, distance [B, P] in voxels, color [B, P, 3]: mean, log-variance [B, Z]."""
        seen = [embedded_places(index, self.config.resolution), distance[..., None], 2 * color - 1]
        each = self.each(torch.cat(seen, dim=-1))
        mean, log_variance = self.whole(torch.cat([each.mean(1), each.amax(1)], dim=1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)


class VoxelDecoder(nn.Module):
    """Channels [B, P, out] of voxels, under the latents of their objects."""

    def __init__(self, config: SurfaceConfig, channels: int) -> None:
        super().__init__()
        self.config, hidden = config, config.hidden
        self.enter = nn.Linear(PLACE + NEIGHBOURS, hidden)
        modulations = [nn.Linear(config.dimensions + config.structure, 2 * hidden) for _ in range(config.layers)]
        self.modulations = nn.ModuleList(modulations)
        self.layers = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(config.layers)])
        self.leave = nn.Linear(hidden, channels)
        for modulation in modulations:
            nn.init.normal_(modulation.weight, std=0.3 / math.sqrt(modulation.in_features))
            nn.init.zeros_(modulation.bias)

    def forward(self, index: Tensor, grids: Tensor, surface: Tensor, structure: Tensor) -> Tensor:
        """index [B, P] int64; grids [B, R, R, R] bool; latents [B, Z] and [B, S]."""
        seen = [embedded_places(index, self.config.resolution), neighbourhoods(grids, index)]
        h = self.enter(torch.cat(seen, dim=-1))
        latent = torch.cat([surface, structure], dim=1)
        for modulation, layer in zip(self.modulations, self.layers, strict=True):
            scale, shift = modulation(latent)[:, None].chunk(2, dim=2)
            h = h + functional.gelu(layer(h * (1 + scale) + shift))
        return self.leave(functional.layer_norm(h, h.shape[-1:]))


def places(index: Tensor, resolution: int) -> Tensor:
    """Centres [..., 3] float32 in [-0.5, 0.5] of voxel numbers x R^2 + y R + z."""
    axes = torch.stack([index // resolution**2, index // resolution % resolution, index % resolution], dim=-1)
    return (axes.float() + 0.5) / resolution - 0.5


def embedded_places(index: Tensor, resolution: int) -> Tensor:
    """Places with their sines and cosines, [..., PLACE]."""
    place = places(index, resolution)
    frequency = math.pi * 2.0 ** torch.arange(OCTAVES, device=place.device)
    angle = (place[..., None] * frequency).flatten(-2)
    return torch.cat([2 * place, angle.sin(), angle.cos()], dim=-1)


def neighbourhoods(grids: Tensor, index: Tensor) -> Tensor:
    """Occupancy (0 or 1) of voxels and their neighbours, [B, P, 27]; nothing is outside of the grid."""
    count, side = len(grids), grids.shape[1] + 2
    padded = functional.pad(grids.to(torch.uint8), (1,) * 6).reshape(count, -1)
    line = torch.arange(3)
    offsets = (line[:, None, None] * side + line[None, :, None]) * side + line
    size = side - 2
    first = ((index // size**2) * side + index // size % size) * side + index % size
    rows = first[..., None] + offsets.reshape(-1)
    return padded.gather(1, rows.flatten(1)).reshape(rows.shape).float()


def distances_and_colors(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Signed distances [..., ] in voxels and colours [..., 3] in [0, 1] of mesh channels [..., 4]."""
    return channels[..., 0], channels[..., 1:4].sigmoid()


def splats_of_channels(channels: Tensor, index: Tensor, resolution: int) -> Splats:
    """Gaussians in the cube's frame of channels [M, 14] at voxels [M]: offset, log-scale, rotation, opacity, colour."""
    offset, scale, rotation, opacity, color = channels.split((3, 3, 4, 1, 3), dim=1)
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0], device=channels.device)
    return Splats(
        means=places(index, resolution) + offset.tanh() / resolution,
        log_scales=math.log(_USUAL / resolution) + _WIDEST * scale.tanh(),
        quats=functional.normalize(identity + 0.5 * rotation, dim=1),
        opacity_logits=opacity[:, 0] + _CLEAR,
        sh=constant_coefficients(color.sigmoid()),
    )
