"""Sparse-structure autoencoder: an occupancy grid of 64 voxels a side and 16 x 16 x 16 latents of 8 channels.

Dense 3D convolutions; residual blocks with norms over channels (not groups); a convolution of stride 2 goes down, a
3D pixel shuffle up. The latents are not normalised. Constructor arguments and parameter names are those of TRELLIS's
files (`SparseStructureEncoder`, `SparseStructureDecoder`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.nets.transformer_blocks import set_torso_type


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, X, Y, Z], computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Shaped and typed as x."""
        return super().forward(x.movedim(1, -1).float()).movedim(-1, 1).to(x.dtype)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm x))))) on [B, C, X, Y, Z]; the last convolution starts at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        if self.conv2.bias is not None:
            nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shaped as x."""
        h = self.conv1(functional.silu(self.norm1(x)).to(self.conv1.weight.dtype))
        return x + self.conv2(functional.silu(self.norm2(h)).to(self.conv2.weight.dtype))


class Down(nn.Module):
    """Half as many voxels a side."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, X/2, Y/2, Z/2]."""
        return self.conv(x.to(self.conv.weight.dtype)).to(x.dtype)


class Up(nn.Module):
    """Twice as many voxels a side."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv3d(inputs, 8 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, 2X, 2Y, 2Z]."""
        return pixel_shuffle(self.conv(x.to(self.conv.weight.dtype))).to(x.dtype)


def pixel_shuffle(x: Tensor) -> Tensor:
    """[B, C, 2X, 2Y, 2Z] of [B, 8C, X, Y, Z]: channel 8 c + 4 dx + 2 dy + dz goes to voxel (2x + dx, ...)."""
    batch, channels, *size = x.shape
    x = x.reshape(batch, channels // 8, 2, 2, 2, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels // 8, *(2 * side for side in size))


def _layers(channels: Sequence[int], count: int, change: type[Down] | type[Up]) -> nn.ModuleList:
    """``count`` residual blocks on every level, a change of size between levels; one flat list."""
    layers: list[nn.Module] = []
    for level, width in enumerate(channels):
        layers += [ResidualBlock(width) for _ in range(count)]
        if level + 1 < len(channels):
            layers.append(change(width, channels[level + 1]))
    return nn.ModuleList(layers)


def _require_layer_norm(norm_type: str) -> None:
    if norm_type != "layer":
        raise UserError(f"structure autoencoders here have norm_type 'layer', not {norm_type!r}")


class SparseStructureEncoder(nn.Module):
    """Latent distribution of occupancy grids."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
        use_fp16: bool = False,
    ):
        super().__init__()
        _require_layer_norm(norm_type)
        self.input_layer = nn.Conv3d(in_channels, channels[0], 3, padding=1)
        self.blocks = _layers(channels, num_res_blocks, Down)
        self.middle_block = nn.Sequential(*(ResidualBlock(channels[-1]) for _ in range(num_res_blocks_middle)))
        last = nn.Conv3d(channels[-1], 2 * latent_channels, 3, padding=1)
        self.out_layer = nn.Sequential(ChannelNorm(channels[-1]), nn.SiLU(), last)
        if use_fp16:
            set_torso_type(self.torso(), torch.float16)

    def torso(self) -> Iterator[nn.Module]:
        """The parts that are half precision in the published files."""
        yield from (self.blocks, self.middle_block)

    def forward(self, occupancy: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, latent, x, y, z] of grids [B, in, X, Y, Z] of zeros and ones."""
        h = self.input_layer(occupancy.to(self.input_layer.weight.dtype))
        for block in self.blocks:
            h = block(h)
        mean, log_variance = self.out_layer(self.middle_block(h).float()).chunk(2, 1)
        return mean, log_variance


class SparseStructureDecoder(nn.Module):
    """Occupancy logits of latents; a voxel is occupied where its logit is positive."""

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
        use_fp16: bool = False,
    ):
        super().__init__()
        _require_layer_norm(norm_type)
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*(ResidualBlock(channels[0]) for _ in range(num_res_blocks_middle)))
        self.blocks = _layers(channels, num_res_blocks, Up)
        last = nn.Conv3d(channels[-1], out_channels, 3, padding=1)
        self.out_layer = nn.Sequential(ChannelNorm(channels[-1]), nn.SiLU(), last)
        if use_fp16:
            set_torso_type(self.torso(), torch.float16)

    def torso(self) -> Iterator[nn.Module]:
        """The parts that are half precision in the published files."""
        yield from (self.blocks, self.middle_block)

    def forward(self, latent: Tensor) -> Tensor:
        """Logits float32 [B, out, X, Y, Z] of latents [B, latent, x, y, z]."""
        h = self.middle_block(self.input_layer(latent.to(self.input_layer.weight.dtype)))
        for block in self.blocks:
            h = block(h)
        return self.out_layer(h.float())


class NoVoxel(UserError):
    """A sample without an occupied voxel."""


def occupied_voxels(logits: Tensor) -> Tensor:
    """Coordinates int32 [N, 4] (item, x, y, z) of positive logits [B, 1, X, Y, Z].

    Raises `NoVoxel` when an item has none.
    """
    coords = torch.nonzero(logits[:, 0] > 0).int()
    empty = sorted(set(range(len(logits))) - set(coords[:, 0].unique().tolist()))
    if empty:
        raise NoVoxel(
            f"the structure stage left no occupied voxel in sample {', '.join(map(str, empty))} of {len(logits)}; take "
            "another seed, more steps or another guidance weight"
        )
    return coords
