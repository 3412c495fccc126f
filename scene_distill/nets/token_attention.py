"""Attention among groups of tokens: all tokens of an item, or those in one window of its grid.

Tokens of a whole batch lie in one matrix [N, C]. Who sees whom is a `TokenGroups`: groups of equal length are stacked
and go through torch's fused attention together, so nothing is padded and no token sees another group.

    windows      group = item and (place + shift) // window          shift = window / 2 in every other block
    qk norm      q <- g sqrt(d) q / |q| per head, the same for k
    weights      to_qkv rows are [q; k; v], to_kv rows [k; v], heads one after another within each
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from scene_distill.nets.sparse_tensor import Voxels


@dataclass(frozen=True, eq=False)
class Bucket:
    """G groups of L tokens: rows int64 [G, L], or None where the groups follow each other from token 0 on; the item of
    every group, int64 [G]."""

    rows: Tensor | None
    item: Tensor
    length: int

    def take(self, values: Tensor) -> Tensor:
        """[G, L, ...] of values [N, ...]."""
        if self.rows is None:
            return values.reshape(len(self.item), self.length, *values.shape[1:])
        return values[self.rows]


@dataclass(frozen=True, eq=False)
class TokenGroups:
    """A division of N tokens into groups. ``restore`` int64 [N]: where each token is in the buckets' order, or None
    where it is the tokens' own."""

    buckets: tuple[Bucket, ...]
    restore: Tensor | None

    def put(self, parts: list[Tensor]) -> Tensor:
        """Tokens [N, ...] of the buckets' results [G, L, ...]."""
        flat = [part.flatten(0, 1) for part in parts]
        joined = flat[0] if len(flat) == 1 else torch.cat(flat)
        return joined if self.restore is None else joined[self.restore]


def dense_groups(items: int, length: int, device: torch.device) -> TokenGroups:
    """All tokens of an item see each other; every item has ``length``."""
    return TokenGroups((Bucket(None, torch.arange(items, device=device), length),), None)


def item_groups(voxels: Voxels) -> TokenGroups:
    """All voxels of an item see each other."""
    if len(set(voxels.counts)) == 1:
        return dense_groups(len(voxels.counts), voxels.counts[0], voxels.device)
    return voxels.kept("items", lambda: _grouped(voxels.item, voxels.item))


def window_groups(voxels: Voxels, window: int, shift: int) -> TokenGroups:
    """Voxels of an item see each other within cubes of ``window`` voxels; cubes lie ``shift`` voxels lower."""

    def make() -> TokenGroups:
        side = (voxels.extent + shift) // window + 1
        x, y, z = ((voxels.places + shift) // window).unbind(1)
        return _grouped(((voxels.item * side + x) * side + y) * side + z, voxels.item)

    return voxels.kept(("window", window, shift), make)


def _grouped(label: Tensor, item: Tensor) -> TokenGroups:
    order = torch.argsort(label, stable=True)
    _, counts = torch.unique_consecutive(label[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    buckets = []
    for length in torch.unique(counts).tolist():
        first = starts[counts == length]
        rows = order[first[:, None] + torch.arange(length, device=label.device)]
        buckets.append(Bucket(rows, item[rows[:, 0]], length))
    taken = torch.cat([bucket.rows.flatten() for bucket in buckets if bucket.rows is not None])
    return TokenGroups(tuple(buckets), torch.argsort(taken))


class HeadNorm(nn.Module):
    """Each head's vector scaled to length sqrt(d), times gamma [H, d]."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        """Shaped and typed as x [..., H, d]."""
        return (functional.normalize(x.float(), dim=-1) * self.gamma * math.sqrt(x.shape[-1])).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention of tokens [N, C] to their own group, or to a context [B, S, ``context``] of their item.

    ``qk_norm``: `HeadNorm` on queries and keys. ``rotary``: queries and keys are turned by the tokens' places
    (`rotated`); self-attention only.
    """

    def __init__(
        self, channels: int, heads: int, context: int | None = None, qk_norm: bool = False, rotary: bool = False
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} heads")
        self.heads, self.rotary, self.crosses = heads, rotary, context is not None
        if context is None:
            self.to_qkv = nn.Linear(channels, 3 * channels)
        else:
            self.to_q = nn.Linear(channels, channels)
            self.to_kv = nn.Linear(context, 2 * channels)
        if qk_norm:
            self.q_rms_norm = HeadNorm(heads, channels // heads)
            self.k_rms_norm = HeadNorm(heads, channels // heads)
        self.qk_norm = qk_norm
        self.to_out = nn.Linear(channels, channels)

    def forward(
        self, x: Tensor, groups: TokenGroups, context: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """[N, C] in the weights' type. ``places`` [N, 3] are needed when rotary."""
        dtype = self.to_out.weight.dtype
        x = x.to(dtype)
        if self.crosses:
            if context is None:
                raise ValueError("cross-attention needs a context")
            q = self.to_q(x).unflatten(-1, (1, self.heads, -1)).squeeze(1)
            k, v = self.to_kv(context.to(dtype)).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        else:
            q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if self.qk_norm:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        if self.rotary:
            if places is None:
                raise ValueError("rotary attention needs places")
            q, k = rotated(q, places), rotated(k, places)
        parts = []
        for bucket in groups.buckets:
            keys, values = (k[bucket.item], v[bucket.item]) if self.crosses else (bucket.take(k), bucket.take(v))
            query = bucket.take(q).transpose(1, 2)
            seen = functional.scaled_dot_product_attention(query, keys.transpose(1, 2), values.transpose(1, 2))
            parts.append(seen.transpose(1, 2).flatten(2))
        return self.to_out(groups.put(parts))


def rotated(x: Tensor, places: Tensor) -> Tensor:
    """x [N, H, d] with pairs of channels turned by angles place * 10000^(-k/f), f = d // 6 pairs an axis, x, y, z one
    after another; pairs that are left over stay (Su et al. 2021, one axis after another)."""
    pairs = x.shape[-1] // 2
    count = pairs // places.shape[1]
    rates = 10000.0 ** (-torch.arange(count, device=x.device, dtype=torch.float32) / max(count, 1))
    angles = (places.float()[:, :, None] * rates).flatten(1)
    angles = functional.pad(angles, (0, pairs - angles.shape[1]))[:, None]
    a, b = x.float().unflatten(-1, (pairs, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
