"""Codebooks: few values, or few vectors, that stand for many, by k-means (Lloyd 1982; Linde, Buzo and Gray 1980)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SCALAR_ROUNDS = 60
SCALAR_SAMPLE = 1_000_000
"""Values that a scalar codebook is fitted to."""

VECTOR_ROUNDS = 6
VECTOR_SAMPLE = 1 << 16
"""Vectors that the coarse clusters are fitted to."""

SAMPLES_PER_ENTRY = 16
BLOCK_ROWS = 1 << 14


def scalar_codebook(values: np.ndarray, size: int = 256) -> np.ndarray:
    """Ascending codebook [size] float32 with a small mean squared error for ``values`` [n], exact when there are no
    more than ``size`` different ones."""
    distinct = np.unique(values[: 4 * SCALAR_SAMPLE])
    if len(distinct) <= size and len(values) <= 4 * SCALAR_SAMPLE:
        return np.concatenate([distinct, np.repeat(distinct[-1:], size - len(distinct))]).astype(np.float32)
    sample = np.sort(values[:: max(1, len(values) // SCALAR_SAMPLE)].astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(sample)])
    # Half of the entries follow the values' density, half their range: both ends of a long tail get some.
    quantiles = sample[np.linspace(0, len(sample) - 1, size // 2).astype(int)]
    codebook = np.sort(np.concatenate([quantiles, np.linspace(sample[0], sample[-1], size - size // 2)]))
    for _ in range(SCALAR_ROUNDS):
        ends = np.searchsorted(sample, (codebook[1:] + codebook[:-1]) / 2)
        edges = np.concatenate([[0], ends, [len(sample)]])
        counts = np.diff(edges)
        codebook = np.where(counts > 0, np.diff(sums[edges]) / counts.clip(1), codebook)
        codebook.sort()
    return codebook.astype(np.float32)


def nearest_entries(values: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Index (uint8) of the entry of an ascending codebook of at most 256 that is nearest to each value."""
    middles = (codebook[1:].astype(np.float64) + codebook[:-1]) / 2
    return np.searchsorted(middles, values).astype(np.uint8)


def vector_codebook(
    rows: Callable[[Tensor], Tensor], count: int, size: int, seed: int = 0
) -> tuple[Tensor, np.ndarray]:
    """Codebook [size, D] for ``count`` vectors, and the entry [count] uint16 of each, in two levels.

    ``rows(index)`` gives the vectors [n, D] float32 at ``index``, so that they are never all in memory. Coarse
    clusters are fitted to a sample; each is then split on its own into a share of the entries that grows with its
    size and spread, which costs count * sqrt(size) distances instead of count * size. ``size`` is at most 65,536.
    """
    generator = torch.Generator().manual_seed(seed)
    if count <= size:
        return rows(torch.arange(count)), np.arange(count, dtype=np.uint16)
    sample = rows(torch.randperm(count, generator=generator)[:VECTOR_SAMPLE])
    coarse = _fitted(sample, max(1, math.isqrt(size)), generator)
    owners, spreads = np.empty(count, np.int32), np.zeros(len(coarse))
    for start in range(0, count, BLOCK_ROWS):
        index = torch.arange(start, min(start + BLOCK_ROWS, count))
        labels, errors = _nearest(rows(index), coarse)
        owners[start : start + len(index)] = labels.numpy()
        np.add.at(spreads, labels.numpy(), errors.double().numpy())
    members = np.bincount(owners, minlength=len(coarse))
    shares = _shares(members, spreads, size)
    order = np.argsort(owners, kind="stable")
    starts = np.concatenate([[0], np.cumsum(members)])
    entries, codes = [], np.zeros(count, np.uint16)
    used = 0
    for cluster, share in enumerate(shares):
        own = torch.from_numpy(order[starts[cluster] : starts[cluster + 1]])
        if len(own) == 0:
            continue
        chosen = own[torch.randperm(len(own), generator=generator)[: SAMPLES_PER_ENTRY * share]]
        fine = _fitted(rows(chosen), share, generator)
        for block in own.split(BLOCK_ROWS):
            codes[block.numpy()] = (_nearest(rows(block), fine)[0] + used).numpy().astype(np.uint16)
        entries.append(fine)
        used += len(fine)
    return torch.cat(entries), codes


def _shares(members: np.ndarray, spreads: np.ndarray, size: int) -> np.ndarray:
    """Entries [clusters] that each cluster gets: at least one, at most its members, ``size`` in all at most."""
    weights = np.sqrt(members * (spreads + 1e-12))
    shares = np.floor(weights / max(weights.sum(), 1e-30) * (size - len(members))).astype(int) + 1
    shares = np.minimum(shares, members.clip(1))
    spare = size - int(shares.sum())
    for cluster in np.argsort(-weights):
        more = min(spare, int(members[cluster] - shares[cluster]))
        if more > 0:
            shares[cluster] += more
            spare -= more
    return shares


def _fitted(vectors: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Centres [size or fewer, D] of vectors [n, D]."""
    if len(vectors) <= size:
        return vectors.clone()
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:size]].clone()
    for _ in range(VECTOR_ROUNDS):
        sums, counts = torch.zeros_like(centres), torch.zeros(size)
        for block in vectors.split(BLOCK_ROWS):
            labels, _ = _nearest(block, centres)
            sums.index_add_(0, labels, block)
            counts += torch.bincount(labels, minlength=size)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), centres)
    return centres


def _nearest(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Index [n] of the nearest centre, and the squared distance [n] to it."""
    scores = torch.addmm((centres * centres).sum(1), vectors, centres.T, alpha=-2)
    best, labels = scores.min(1)
    return labels, (best + (vectors * vectors).sum(1)).clamp_min(0)
