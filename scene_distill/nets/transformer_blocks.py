"""Transformer blocks of TRELLIS's networks: time and place embeddings, plain and modulated blocks.

    plain       x += attention(LN x);  x += MLP(LN x)
    modulated   x += g1 attention(LN x (1 + c1) + s1);  x += cross-attention(LN x);  x += g2 MLP(LN x (1 + c2) + s2)
                (s1, c1, g1, s2, c2, g2) = Linear(SiLU(time embedding)), one Linear a block, or one for all of them

Tokens lie in one matrix [N, C] (`token_attention`). The stream x keeps the type it came in, so that it can stay float32
while the matrices are half precision; norms are computed in float32. Parameter names are those of the published files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from scene_distill.nets.sparse_convolution import KernelWeights
from scene_distill.nets.token_attention import Attention, TokenGroups

TIME_SCALE = 1000.0
"""Networks see 1000 t."""

NORM_EPS = 1e-6
"""Added to the variance by the blocks' norms; the last norm before an output has torch's 1e-5."""


class TimeEmbedding(nn.Module):
    """Embedding [B, C] of times t [B] in [0, 1]: 256 cosines and sines of 1000 t, then an MLP."""

    WAVES = 256

    def __init__(self, channels: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.WAVES, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:
        """[B, C] in the weights' type."""
        return self.mlp(typed_for(time_waves(t, self.WAVES), self.mlp[0]))


def time_waves(t: Tensor, count: int) -> Tensor:
    """[cos | sin] of 1000 t exp(-ln(10^4) k / (count / 2)), float32 [B, count]."""
    half = count // 2
    rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = TIME_SCALE * t.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


def place_waves(places: Tensor, channels: int) -> Tensor:
    """Absolute embedding float32 [N, channels] of places [N, 3]: per axis [sin | cos] of place 10000^(-k/f) with
    f = channels // 6; x, y, z one after another, zeros at the end."""
    count = channels // 6
    rates = 10000.0 ** (-torch.arange(count, device=places.device, dtype=torch.float32) / count)
    angles = places.float()[:, :, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
    return functional.pad(waves, (0, channels - waves.shape[1]))


class WideLayerNorm(nn.LayerNorm):
    """Layer norm computed in float32 and returned in its input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """Shaped and typed as x [..., C]."""
        return super().forward(x.float()).to(x.dtype)


class FeedForward(nn.Module):
    """Two linear layers with a tanh-GELU between."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        hidden = int(channels * ratio)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU("tanh"), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] in the weights' type."""
        return self.mlp(typed_for(x, self.mlp[0]))


class PlainBlock(nn.Module):
    """A block without condition; its norms have no parameters."""

    def __init__(self, channels: int, heads: int, ratio: float, qk_norm: bool = False, rotary: bool = False):
        super().__init__()
        self.norm1 = WideLayerNorm(channels, NORM_EPS, elementwise_affine=False)
        self.attn = Attention(channels, heads, None, qk_norm, rotary)
        self.norm2 = WideLayerNorm(channels, NORM_EPS, elementwise_affine=False)
        self.mlp = FeedForward(channels, ratio)

    def forward(self, x: Tensor, groups: TokenGroups, places: Tensor | None = None) -> Tensor:
        """[N, C]."""
        x = x + self.attn(self.norm1(x), groups, places=places)
        return x + self.mlp(self.norm2(x))


def through(block: nn.Module, recompute: bool, *inputs: Any) -> Tensor:
    """A block's output; with ``recompute`` its inner activations are not kept for the backward pass but made again."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


class ModulatedBlock(nn.Module):
    """A block steered by time (modulation) and by a context (cross-attention).

    ``shared``: the modulation is made outside and handed in as ``time`` [B, 6C].
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context: int,
        ratio: float,
        qk_norm: bool = False,
        qk_norm_cross: bool = False,
        shared: bool = False,
        rotary: bool = False,
    ):
        super().__init__()
        self.norm1 = WideLayerNorm(channels, NORM_EPS, elementwise_affine=False)
        self.norm2 = WideLayerNorm(channels, NORM_EPS)
        self.norm3 = WideLayerNorm(channels, NORM_EPS, elementwise_affine=False)
        self.self_attn = Attention(channels, heads, None, qk_norm, rotary)
        self.cross_attn = Attention(channels, heads, context, qk_norm_cross)
        self.mlp = FeedForward(channels, ratio)
        self.shared = shared
        if not shared:
            self.adaLN_modulation = modulation(channels)

    def forward(
        self, x: Tensor, time: Tensor, context: Tensor, groups: TokenGroups, places: Tensor | None = None
    ) -> Tensor:
        """[N, C] of tokens [N, C]; time [B, C] (or [B, 6C], see above); context [B, S, D]; groups are whole items."""
        made = time if self.shared else self.adaLN_modulation(typed_for(time, self.adaLN_modulation[1]))
        shift1, scale1, gate1, shift2, scale2, gate2 = (_spread(part, x, groups) for part in made.chunk(6, 1))
        x = x + gate1 * self.self_attn(self.norm1(x) * (1 + scale1) + shift1, groups, places=places)
        x = x + self.cross_attn(self.norm2(x), groups, context)
        return x + gate2 * self.mlp(self.norm3(x) * (1 + scale2) + shift2)


def modulation(channels: int) -> nn.Sequential:
    """SiLU and Linear from a time embedding [B, C] to the six modulations [B, 6C]."""
    return nn.Sequential(nn.SiLU(), nn.Linear(channels, 6 * channels))


def _spread(values: Tensor, x: Tensor, groups: TokenGroups) -> Tensor:
    """Values [B, C] of items for their tokens [N, C], in the tokens' type."""
    values = values.to(x.dtype)
    if len(values) == 1:
        return values
    return groups.put([values[b.item][:, None].expand(-1, b.length, -1) for b in groups.buckets])


def start_weights(network: nn.Module) -> None:
    """Xavier-uniform linear layers with zero biases; modulations and the output zero, so that a flow starts at zero."""
    for name, part in network.named_modules():
        if isinstance(part, nn.Linear):
            if "adaLN_modulation" in name or name == "out_layer":
                nn.init.zeros_(part.weight)
            else:
                nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)


def typed_for(x: Tensor, layer: nn.Module) -> Tensor:
    """x in the type of a layer's weights."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return x.to(weight.dtype)


def set_torso_type(parts: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Matrices and kernels of these parts in a type; norms and their gains stay float32, as the published files do."""
    for part in parts:
        for layer in part.modules():
            if isinstance(layer, nn.Linear | nn.Conv3d | KernelWeights):
                layer.to(dtype)


def times_of_items(t: Tensor, items: int) -> Tensor:
    """Times float32 [B] of one number or [B]."""
    return t.float().reshape(-1).expand(items) if t.ndim == 0 or len(t) == 1 else t.float()
