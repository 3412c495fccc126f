"""How sure a mean over views is, and a difference between two runs on the same views.

Bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 12 and 13): the views are drawn
again with replacement, as many as there are, `RESAMPLES` times, and the interval holds the middle 95 % of the means.
Paired: both runs are measured on the same drawn views, so that what is hard about a view counts for neither. It says
how the figures would vary with other views of the same scene; what another training seed would change it cannot know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scene_distill.core import seeds

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean over views [V] and its bootstrap interval; of a single view, or equal ones, an interval of width 0.

    The same values give the same interval. Raises `ValueError` without values.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError("an interval needs at least one value")
    low, high = np.quantile(_resampled_means(array), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(array.mean()), float(low), float(high))


def paired_interval(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Mean over views [V] of values - baseline and its paired bootstrap interval. Raises `ValueError` when the two are
    not of the same length."""
    if len(values) != len(baseline):
        raise ValueError("paired values belong to the same views")
    return mean_interval(np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float))


def _resampled_means(array: np.ndarray) -> np.ndarray:
    """Means of `RESAMPLES` draws with replacement; the draws depend on the number of values only, so that intervals of
    several runs come from the same drawn views."""
    generator = seeds.numpy_generator(0, "bootstrap", len(array))
    counts = generator.multinomial(len(array), np.full(len(array), 1 / len(array)), size=RESAMPLES)
    return counts @ array / len(array)
