"""Flow over sparse-structure latents: a dense transformer, one token per patch of the latent grid.

Constructor arguments and parameter names are those of TRELLIS's files (`SparseStructureFlowModel`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.nets.token_attention import dense_groups
from scene_distill.nets.transformer_blocks import (
    ModulatedBlock,
    TimeEmbedding,
    modulation,
    place_waves,
    set_torso_type,
    start_weights,
    through,
    times_of_items,
    typed_for,
)


class SparseStructureFlowModel(nn.Module):
    """Velocity of noisy structure latents.

    ``pe_mode``: 'ape' adds place embeddings to the tokens, 'rope' turns queries and keys instead (no published file
    does). ``share_mod``: one modulation for all blocks. ``qk_rms_norm_cross``: also norms in cross-attention (XL).
    """

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
        pe_mode: str = "ape",
        use_fp16: bool = False,
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ):
        super().__init__()
        require_place_mode(pe_mode)
        if resolution % patch_size:
            raise UserError(f"a latent grid of {resolution} does not divide into patches of {patch_size}")
        self.resolution, self.in_channels, self.patch, self.pe_mode = resolution, in_channels, patch_size, pe_mode
        heads = num_heads or model_channels // num_head_channels
        self.t_embedder = TimeEmbedding(model_channels)
        if pe_mode == "ape":
            self.register_buffer("pos_emb", torch.empty((resolution // patch_size) ** 3, model_channels))
            if not self.pos_emb.is_meta:
                self.pos_emb.copy_(self.place_embedding())
        self.input_layer = nn.Linear(in_channels * patch_size**3, model_channels)
        rotary = pe_mode == "rope"
        self.blocks = nn.ModuleList(
            ModulatedBlock(
                model_channels, heads, cond_channels, mlp_ratio, qk_rms_norm, qk_rms_norm_cross, share_mod, rotary
            )
            for _ in range(num_blocks)
        )
        if share_mod:
            self.adaLN_modulation = modulation(model_channels)
        self.share_mod = share_mod
        self.out_layer = nn.Linear(model_channels, out_channels * patch_size**3)
        start_weights(self)
        if use_fp16:
            set_torso_type(self.torso(), torch.float16)

    pos_emb: Tensor

    def place_embedding(self) -> Tensor:
        """What the buffer pos_emb [L, C] holds; the published files hold it too."""
        return place_waves(self.places(torch.device("cpu")), self.pos_emb.shape[1])

    def torso(self) -> Iterator[nn.Module]:
        """The parts that are half precision in the published files."""
        yield from ([self.blocks, self.adaLN_modulation] if self.share_mod else [self.blocks])

    def places(self, device: torch.device | None = None) -> Tensor:
        """(i, j, k) of every token, int64 [L, 3]."""
        side = self.resolution // self.patch
        return torch.tensor(list(itertools.product(range(side), repeat=3)), device=device)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """v [B, out, R, R, R] of latents x [B, in, R, R, R] at times t (in [0, 1], one number or [B]) under a context
        [B or 1, S, cond]. Raises `ValueError` for other sizes."""
        if x.shape[1:] != (self.in_channels, *[self.resolution] * 3):
            raise ValueError(f"this flow walks latents of {self.in_channels} x {self.resolution}^3, not {x.shape[1:]}")
        h = self.input_layer(typed_for(patches(x, self.patch), self.input_layer))
        batch, length, width = h.shape
        places = self.places(x.device).repeat(batch, 1) if self.pe_mode == "rope" else None
        if self.pe_mode == "ape":
            h = h + self.pos_emb.to(h)
        groups = dense_groups(batch, length, x.device)
        time = self.t_embedder(times_of_items(t, batch).to(x.device))
        if self.share_mod:
            time = self.adaLN_modulation(typed_for(time, self.adaLN_modulation[1]))
        context = context.expand(batch, -1, -1)
        tokens = h.flatten(0, 1)
        for block in self.blocks:
            tokens = through(block, self.recompute, tokens, time, context, groups, places)
        tokens = typed_for(functional.layer_norm(tokens.float(), (width,)), self.out_layer)
        return unpatched(self.out_layer(tokens).unflatten(0, (batch, length)), self.patch, self.resolution).to(x.dtype)


def require_place_mode(pe_mode: str) -> None:
    """Raises `UserError` for an unknown way of telling tokens their places."""
    if pe_mode not in ("ape", "rope"):
        raise UserError(f"pe_mode is 'ape' or 'rope', not {pe_mode!r}")


def patches(x: Tensor, size: int) -> Tensor:
    """Tokens [B, L, C size^3] of a grid [B, C, R, R, R]; channel c size^3 + (px size + py) size + pz."""
    batch, channels, side = x.shape[:3]
    count = side // size
    x = x.reshape(batch, channels, count, size, count, size, count, size).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(batch, count**3, channels * size**3)


def unpatched(tokens: Tensor, size: int, side: int) -> Tensor:
    """Inverse of `patches`: a grid of ``side`` voxels a side."""
    count = side // size
    x = tokens.reshape(len(tokens), count, count, count, -1, size, size, size).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(len(tokens), -1, side, side, side)
