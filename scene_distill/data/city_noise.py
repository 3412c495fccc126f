"""Patterns that procedural textures are made of: value noise, random cells, and box-filtered stripes.

Everything is float32 and vectorised over n samples. Stripes are integrated over the width of a sample instead of being
looked up at its centre, so a pattern fades to its mean where a photograph cannot resolve it.
"""

from __future__ import annotations

import numpy as np

_SIDE = 256


class Noise:
    """Seeded random numbers on a 256 x 256 lattice that repeats."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._table = rng.random(_SIDE * _SIDE, dtype=np.float32)

    def cells(self, i: np.ndarray, j: np.ndarray, salt: np.ndarray | int = 0) -> np.ndarray:
        """A number in [0, 1) for every integer cell (i, j); ``salt`` gives independent numbers for the same cells."""
        row = np.floor(i).astype(np.int32) + np.asarray(salt, np.int32) * 37
        column = np.floor(j).astype(np.int32) + np.asarray(salt, np.int32) * 101
        return self._table[((row & (_SIDE - 1)) << 8) | (column & (_SIDE - 1))]

    def smooth(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Value noise in [0, 1] with features of size one, cubic between lattice points."""
        i, j = np.floor(x), np.floor(y)
        s, t = x - i, y - j
        s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
        i0, j0 = i.astype(np.int32) & (_SIDE - 1), j.astype(np.int32) & (_SIDE - 1)
        i1, j1 = ((i0 + 1) & (_SIDE - 1)) << 8, (j0 + 1) & (_SIDE - 1)
        i0 <<= 8
        low = self._table[i0 | j0] * (1 - s) + self._table[i1 | j0] * s
        high = self._table[i0 | j1] * (1 - s) + self._table[i1 | j1] * s
        return low + (high - low) * t


def stripes(
    x: np.ndarray, period: np.ndarray | float, width: np.ndarray | float, blur: np.ndarray | float
) -> np.ndarray:
    """Coverage in [0, 1] of stripes centred on multiples of ``period``, ``width`` wide, averaged over ``blur`` metres.

    The average of the periodic pulse over [x - blur/2, x + blur/2], exact for any blur.
    """
    half = 0.5 * np.maximum(blur, 1e-3)
    start = x + 0.5 * width
    ahead, behind = (start + half) / period, (start - half) / period
    duty = np.minimum(width / period, 1.0)
    whole_ahead, whole_behind = np.floor(ahead), np.floor(behind)
    covered = (whole_ahead - whole_behind) * duty
    covered += np.minimum(ahead - whole_ahead, duty) - np.minimum(behind - whole_behind, duty)
    return covered * (period / (2 * half))


def band(x: np.ndarray, low: np.ndarray | float, high: np.ndarray | float, blur: np.ndarray | float) -> np.ndarray:
    """Coverage in [0, 1] of the interval [low, high], averaged over ``blur`` metres around x."""
    half = 0.5 * np.maximum(blur, 1e-3)
    return np.maximum(np.minimum(x + half, high) - np.maximum(x - half, low), 0.0) / (2 * half)


def mix(base: np.ndarray, over: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Colours [n, 3] of ``over`` (n or 1 rows) laid on ``base`` with ``coverage`` [n]."""
    return base + (over - base) * coverage[:, None]
