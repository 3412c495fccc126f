"""Decoder of structured latents to meshes: voxels are cut into cubes twice, each cube says where the surface passes.

    distances   raw - 1 / R (zeros are inside)        weights   a, b = 1 + 0.99 tanh(raw), g = 0.005 + 0.99 sigmoid(raw)
    offsets, colours and normals at the corners are averaged as they are, then activated

R: cubes a side, four times the latent's resolution. The surface is `representations.flexible_cubes`. Parameter names
are those of TRELLIS's files (`SLatMeshDecoder`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scene_distill.nets.sparse_convolution import SparseConvolution
from scene_distill.nets.sparse_resampling import subdivided
from scene_distill.nets.sparse_tensor import SparseTensor
from scene_distill.nets.structured_latent_vae import WindowedTransformer
from scene_distill.representations.flexible_cubes import FlexibleCubes, Surface

GROUPS = 32
WIDTHS = {"distances": 8, "offsets": 24, "edges": 12, "corners": 8, "split": 1}
"""Numbers a cube, in the output's order; 48 more with colours: RGB and a normal for each corner."""


class ItemGroupNorm(nn.GroupNorm):
    """Group norm of sparse features [N, C], over all voxels of an item; computed in float32."""

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        """Features typed as before."""
        parts = [super(ItemGroupNorm, self).forward(part.T[None].float())[0].T for part, _ in x.items()]
        return x.with_features(torch.cat(parts).to(x.features.dtype))


class SparseSiLU(nn.Module):
    """SiLU of sparse features."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """On the same voxels."""
        return x.with_features(functional.silu(x.features))


class SubdivideBlock(nn.Module):
    """Twice as many voxels a side: children of SiLU(GN x), conv, GN, SiLU, conv (zero at the start), plus the children
    of x through a 1 x 1 x 1 convolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.act_layers = nn.Sequential(ItemGroupNorm(GROUPS, inputs), SparseSiLU())
        last = SparseConvolution(outputs, outputs)
        nn.init.zeros_(last.conv.weight)
        self.out_layers = nn.Sequential(
            SparseConvolution(inputs, outputs), ItemGroupNorm(GROUPS, outputs), SparseSiLU(), last
        )
        self.skip_connection = SparseConvolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: SparseTensor) -> SparseTensor:
        """8 N voxels, typed as x."""
        h = self.out_layers(subdivided(self.act_layers(x)))
        skip = self.skip_connection(subdivided(x))
        return h.with_features(h.features.to(x.features.dtype) + skip.features.to(x.features.dtype))


class SLatMeshDecoder(WindowedTransformer):
    """Meshes of structured latents. ``representation_config``: use_color, true in the published file."""

    out_norm = False

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        representation_config: Mapping[str, Any] | None = None,
        **trunk: object,
    ):
        self.use_color = bool((representation_config or {}).get("use_color", False))
        width = sum(WIDTHS.values()) + (48 if self.use_color else 0)
        super().__init__(latent_channels, width, model_channels, num_blocks, **trunk)  # type: ignore[arg-type]
        self.resolution = 4 * resolution

    def more_layers(self, channels: int) -> None:
        """Two subdivisions, to a quarter and an eighth of the channels."""
        self.upsample = nn.ModuleList(
            [SubdivideBlock(channels, channels // 4), SubdivideBlock(channels // 4, channels // 8)]
        )

    def last_width(self, channels: int) -> int:
        """An eighth."""
        return channels // 8

    def torso(self) -> Iterator[nn.Module]:
        """The parts that are half precision in the published file."""
        yield from (self.blocks, self.upsample)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Raw outputs float32 [64 N, 53 or 101] on the cubes."""
        h = self.trunk(x)
        for block in self.upsample:
            h = block(h)
        return h.with_features(self.out_layer(h.features.to(self.out_layer.weight.dtype)).float())

    def decode(self, latent: SparseTensor) -> list[Surface]:
        """The surface of every item; differentiable, empty where nothing is inside. With colours its attributes are RGB
        and a normal (the network's, in [0, 1])."""
        return [self.cubes(features, places).surface() for features, places in self(latent).items()]

    def cubes(self, features: Tensor, places: Tensor) -> FlexibleCubes:
        """Raw outputs [M, 53 or 101] of cubes at places [M, 3] as what they mean."""
        widths = [*WIDTHS.values(), 48 if self.use_color else 0]
        distances, offsets, edges, corners, split, colors = features.split(widths, 1)
        attributes = colors.unflatten(1, (8, -1)) if self.use_color else colors.new_zeros(len(colors), 8, 0)
        return FlexibleCubes(
            resolution=self.resolution,
            places=places,
            distances=distances - 1 / self.resolution,
            offset_logits=offsets.unflatten(1, (8, 3)),
            corner_weights=1 + 0.99 * corners.tanh(),
            edge_weights=1 + 0.99 * edges.tanh(),
            split_weights=0.005 + 0.99 * split[:, 0].sigmoid(),
            attribute_logits=attributes,
        )
