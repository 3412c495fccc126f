"""Which photos to match with which: neighbours by GPS, all pairs of few photos, or photos that look alike.

Matching costs the same for every pair, so the pairs decide how long structure from motion takes: n (n - 1) / 2 when all
are tried, about 30 n otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

Pairs = list[tuple[int, int]]

NEIGHBOURS = 40
"""GPS neighbours of a photo, as the aerial set of the tests was registered."""

ALIKE = 20
NEXT = 10
"""Without GPS: so many photos that look alike, and so many that follow by name."""

EXHAUSTIVE_MAX = 80
"""Up to this many photos every pair is tried."""

_WORDS = 64
_TRAINING_DESCRIPTORS = 20_000


def all_pairs(count: int) -> Pairs:
    """Every pair (i, j), i < j, of ``count`` photos."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def near_pairs(positions: np.ndarray, neighbours: int = NEIGHBOURS) -> Pairs:
    """Pairs of each photo with its nearest ``neighbours`` by horizontal distance; positions [C, 2] in metres."""
    nearest = cKDTree(positions).query(positions, k=min(neighbours + 1, len(positions)))[1]
    return _unique((i, int(j)) for i, row in enumerate(nearest) for j in row)


def alike_pairs(descriptors: list[np.ndarray], generator: np.random.Generator) -> Pairs:
    """Pairs of each photo with those that look most like it and those that follow it.

    descriptors: per photo [K_c, 128] uint8 local features. Photos are compared by VLAD (Jégou et al., "Aggregating
    local descriptors into a compact image representation", 2010): residuals to 64 words summed per word, signed square
    root, unit length.
    """
    sample = np.concatenate([d[:: max(1, len(d) // 200)] for d in descriptors]).astype(np.float32)
    sample = sample[generator.permutation(len(sample))[:_TRAINING_DESCRIPTORS]]
    words, _ = kmeans2(sample, min(_WORDS, len(sample)), iter=10, minit="++", seed=generator)
    tree = cKDTree(words)
    vectors = np.stack([_vlad(d.astype(np.float32), words, tree) for d in descriptors])
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    alike = np.argsort(-similarity, axis=1, kind="stable")[:, :ALIKE]
    count = len(descriptors)
    following = [(i, j) for i in range(count) for j in range(i + 1, min(i + 1 + NEXT, count))]
    return _unique([*following, *((i, int(j)) for i, row in enumerate(alike) for j in row)])


def _vlad(descriptors: np.ndarray, words: np.ndarray, tree: cKDTree) -> np.ndarray:
    """The VLAD vector [64 * 128] of descriptors [K, 128]; zero without any."""
    sums = np.zeros_like(words)
    if len(descriptors):
        nearest = tree.query(descriptors[:1500])[1]
        np.add.at(sums, nearest, descriptors[:1500] - words[nearest])
    rooted = np.sign(sums) * np.sqrt(np.abs(sums))
    return (rooted / max(float(np.linalg.norm(rooted)), 1e-12)).ravel()


def _unique(pairs: Iterable[tuple[int, int]]) -> Pairs:
    return sorted({(min(i, j), max(i, j)) for i, j in pairs if i != j})
