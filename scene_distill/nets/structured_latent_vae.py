"""Structured-latent autoencoder: a transformer in shifted windows over the occupied voxels of an object.

`WindowedTransformer` is the trunk of the encoder here and of the decoders to Gaussians, radiance fields and meshes
(`structured_latent_gaussians`, `_radiance`, `_mesh`). Constructor arguments and parameter names are those of TRELLIS's
files (`SLatEncoder`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.nets.sparse_structure_flow import require_place_mode
from scene_distill.nets.sparse_tensor import SparseTensor, Voxels
from scene_distill.nets.token_attention import TokenGroups, item_groups, window_groups
from scene_distill.nets.transformer_blocks import PlainBlock, place_waves, set_torso_type, start_weights


class WindowedTransformer(nn.Module):
    """Features [N, ``out_width``] of features [N, ``in_channels``] on voxels.

    ``attn_mode``: 'swin' sees windows of ``window_size`` voxels a side, shifted by half of it in every other block;
    'full' sees whole items. ``out_norm``: a norm without parameters before the output.
    """

    out_norm = True

    def __init__(
        self,
        in_channels: int,
        out_width: int,
        model_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4,
        attn_mode: str = "swin",
        window_size: int = 8,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        qk_rms_norm: bool = False,
    ):
        super().__init__()
        require_place_mode(pe_mode)
        if attn_mode not in ("swin", "full"):
            raise UserError(f"attn_mode is 'swin' or 'full', not {attn_mode!r}")
        heads = num_heads or model_channels // num_head_channels
        self.attn_mode, self.window, self.pe_mode = attn_mode, window_size, pe_mode
        self.input_layer = nn.Linear(in_channels, model_channels)
        self.blocks = nn.ModuleList(
            PlainBlock(model_channels, heads, mlp_ratio, qk_rms_norm, pe_mode == "rope") for _ in range(num_blocks)
        )
        self.more_layers(model_channels)
        self.out_layer = nn.Linear(self.last_width(model_channels), out_width)
        start_weights(self)
        if use_fp16:
            set_torso_type(self.torso(), torch.float16)

    def more_layers(self, channels: int) -> None:
        """Layers between the trunk and the output, for decoders that have some."""

    def last_width(self, channels: int) -> int:
        """Channels that the output layer sees."""
        return channels

    def torso(self) -> Iterator[nn.Module]:
        """The parts that are half precision in the published files."""
        yield self.blocks

    def trunk(self, x: SparseTensor) -> SparseTensor:
        """Through the blocks: [N, model_channels]."""
        voxels = x.voxels
        h = self.input_layer(x.features.to(self.input_layer.weight.dtype))
        if self.pe_mode == "ape":
            h = h + voxels.kept(("waves", h.shape[1]), lambda: place_waves(voxels.places, h.shape[1])).to(h)
        for number, block in enumerate(self.blocks):
            h = block(h, self._groups(voxels, number), voxels.places if self.pe_mode == "rope" else None)
        return x.with_features(h)

    def _groups(self, voxels: Voxels, number: int) -> TokenGroups:
        if self.attn_mode == "full":
            return item_groups(voxels)
        return window_groups(voxels, self.window, self.window // 2 * (number % 2))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Raw outputs float32 [N, out_width]."""
        h = self.trunk(x)
        features = functional.layer_norm(h.features.float(), h.features.shape[1:])
        return h.with_features(self.out_layer(features.to(self.out_layer.weight.dtype)).float())


class SLatEncoder(WindowedTransformer):
    """Latent distribution of voxels with features: the mean over views of DINOv2 patch tokens, sampled where the
    voxel's centre appears."""

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        **trunk: object,
    ):
        super().__init__(in_channels, 2 * latent_channels, model_channels, num_blocks, **trunk)  # type: ignore[arg-type]
        self.resolution = resolution

    def encode(self, x: SparseTensor, seed: int | None = None) -> tuple[SparseTensor, Tensor, Tensor]:
        """Latent [N, latent], mean and log-variance; the latent is the mean, or drawn with a ``seed``."""
        h = self(x)
        mean, log_variance = h.features.chunk(2, 1)
        latent = mean
        if seed is not None:
            noise = torch.randn(mean.shape, generator=torch_generator(seed, "structured latent")).to(mean)
            latent = mean + (0.5 * log_variance).exp() * noise
        return h.with_features(latent), mean, log_variance
