"""Flow over structured latents: features on occupied voxels, pooled once, seen by a transformer, and unpooled.

    Linear -> residual blocks, the last of which pools to half the grid -> + place embedding -> transformer over all
    voxels of an item -> residual blocks that mirror the first, unpool and see the mirrored outputs -> norm -> Linear

Constructor arguments and parameter names are those of TRELLIS's files (`SLatFlowModel`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.nets.sparse_convolution import SparseConvolution
from scene_distill.nets.sparse_resampling import Family, family, pooled, unpooled
from scene_distill.nets.sparse_structure_flow import require_place_mode
from scene_distill.nets.sparse_tensor import SparseTensor
from scene_distill.nets.token_attention import item_groups
from scene_distill.nets.transformer_blocks import (
    NORM_EPS,
    ModulatedBlock,
    TimeEmbedding,
    WideLayerNorm,
    modulation,
    place_waves,
    set_torso_type,
    start_weights,
    through,
    times_of_items,
    typed_for,
)


class TimedResidualBlock(nn.Module):
    """h = conv(SiLU(LN x)); skip(x) + conv(SiLU(LN(h) (1 + scale) + shift)), after pooling or unpooling x.

    (scale, shift) come from the time embedding [B, ``embedding``], scale first; the last convolution starts at zero.
    """

    def __init__(self, inputs: int, embedding: int, outputs: int, downsample: bool = False, upsample: bool = False):
        super().__init__()
        self.downsample, self.upsample = downsample, upsample
        self.norm1 = WideLayerNorm(inputs, NORM_EPS)
        self.norm2 = WideLayerNorm(outputs, NORM_EPS, elementwise_affine=False)
        self.conv1 = SparseConvolution(inputs, outputs)
        self.conv2 = SparseConvolution(outputs, outputs)
        nn.init.zeros_(self.conv2.conv.weight)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        self.skip_connection = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: SparseTensor, time: Tensor, tree: Family | None = None) -> SparseTensor:
        """``tree`` says how to pool or unpool, for the blocks that do."""
        if tree is not None and (self.downsample or self.upsample):
            x = pooled(x, tree) if self.downsample else unpooled(x, tree)
        scale, shift = self.emb_layers(typed_for(time, self.emb_layers[1])).chunk(2, 1)
        item = x.voxels.item
        h = self.conv1(x.with_features(functional.silu(self.norm1(x.features))))
        moved = self.norm2(h.features.to(x.features.dtype)) * (1 + scale.to(x.features.dtype)[item])
        h = self.conv2(x.with_features(functional.silu(moved + shift.to(x.features.dtype)[item])))
        skip = x.features
        if isinstance(self.skip_connection, nn.Linear):
            skip = self.skip_connection(typed_for(skip, self.skip_connection))
        return x.with_features(skip.to(x.features.dtype) + h.features.to(x.features.dtype))


class SLatFlowModel(nn.Module):
    """Velocity of noisy structured latents. Arguments as in `SparseStructureFlowModel`; ``io_block_channels`` None: no
    residual blocks, the transformer works on the voxels as they are."""

    recompute = False
    """Whether blocks make their activations again in the backward pass instead of keeping them."""

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4,
        patch_size: int = 2,
        num_io_res_blocks: int = 2,
        io_block_channels: Sequence[int] | None = None,
        pe_mode: str = "ape",
        use_fp16: bool = False,
        use_skip_connection: bool = True,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ):
        super().__init__()
        require_place_mode(pe_mode)
        widths = list(io_block_channels or [])
        if patch_size != 2 ** len(widths):
            raise UserError(
                f"patch_size {patch_size} needs {patch_size.bit_length() - 1} io_block_channels, got {widths}"
            )
        heads = num_heads or model_channels // num_head_channels
        self.resolution, self.in_channels, self.pe_mode = resolution, in_channels, pe_mode
        self.use_skip_connection, self.share_mod = use_skip_connection, share_mod
        self.t_embedder = TimeEmbedding(model_channels)
        self.input_layer = nn.Linear(in_channels, (widths or [model_channels])[0])
        self.input_blocks = nn.ModuleList()
        for width, following in zip(widths, [*widths[1:], model_channels], strict=True):
            for _ in range(num_io_res_blocks - 1):
                self.input_blocks.append(TimedResidualBlock(width, model_channels, width))
            self.input_blocks.append(TimedResidualBlock(width, model_channels, following, downsample=True))
        block = (model_channels, heads, cond_channels, mlp_ratio, qk_rms_norm, qk_rms_norm_cross, share_mod)
        self.blocks = nn.ModuleList(ModulatedBlock(*block, rotary=pe_mode == "rope") for _ in range(num_blocks))
        if share_mod:
            self.adaLN_modulation = modulation(model_channels)
        self.out_blocks = nn.ModuleList()
        seen = 2 if use_skip_connection else 1
        for width, before in zip(widths[::-1], [model_channels, *widths[:0:-1]], strict=True):
            self.out_blocks.append(TimedResidualBlock(seen * before, model_channels, width, upsample=True))
            for _ in range(num_io_res_blocks - 1):
                self.out_blocks.append(TimedResidualBlock(seen * width, model_channels, width))
        self.out_layer = nn.Linear((widths or [model_channels])[0], out_channels)
        start_weights(self)
        if use_fp16:
            set_torso_type(self.torso(), torch.float16)

    def torso(self) -> Iterator[nn.Module]:
        """The parts that are half precision in the published files."""
        yield from (self.input_blocks, self.blocks, self.out_blocks)
        if self.share_mod:
            yield self.adaLN_modulation

    def forward(self, x: SparseTensor, t: Tensor, context: Tensor) -> SparseTensor:
        """v on the voxels of x [N, in], at times t (in [0, 1], one number or [B]) under a context [B or 1, S, cond]."""
        items = len(x.voxels.counts)
        time = self.t_embedder(times_of_items(t, items).to(x.features.device))
        h = x.with_features(self.input_layer(typed_for(x.features, self.input_layer)))
        outputs: list[Tensor] = []
        trees: list[Family] = []
        for block in self.input_blocks:
            if block.downsample:
                trees.append(family(h.voxels, 2))
            h = block(h, time, trees[-1] if block.downsample else None)
            outputs.append(h.features)
        h = self._seen(h, time, context.expand(items, -1, -1))
        for block in self.out_blocks:
            if self.use_skip_connection:
                h = h.with_features(torch.cat([h.features, outputs.pop()], 1))
            h = block(h, time, trees.pop() if block.upsample else None)
        features = functional.layer_norm(h.features.float(), h.features.shape[1:])
        return x.with_features(self.out_layer(typed_for(features, self.out_layer)).to(x.features.dtype))

    def _seen(self, h: SparseTensor, time: Tensor, context: Tensor) -> SparseTensor:
        """Through the transformer."""
        tokens, groups = h.features, item_groups(h.voxels)
        places = h.voxels.places if self.pe_mode == "rope" else None
        if self.pe_mode == "ape":
            tokens = tokens + place_waves(h.voxels.places, tokens.shape[1]).to(tokens)
        if self.share_mod:
            time = self.adaLN_modulation(typed_for(time, self.adaLN_modulation[1]))
        for block in self.blocks:
            tokens = through(block, self.recompute, tokens, time, context, groups, places)
        return h.with_features(tokens)
