"""Bootstrap intervals hold the truth about as often as they say, and pairing takes the views' difficulty away."""

import numpy as np
import pytest

from scene_distill.training.confidence import mean_interval, paired_interval


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = [(found := mean_interval(rng.normal(25.0, 2.0, 22))).low <= 25.0 <= found.high for _ in range(300)]
    assert 0.88 < np.mean(held) < 0.97, "the percentile bootstrap of 22 values is a little narrow"


def test_the_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(0, 3.0, 200)
    found = mean_interval(values)
    assert (found.high - found.low) == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.05)
    assert found == mean_interval(values), "the same values give the same interval"
    assert mean_interval(values + 7).mean == pytest.approx(found.mean + 7)


def test_pairing_finds_a_small_difference_between_hard_and_easy_views():
    rng = np.random.default_rng(2)
    difficulty, noise = rng.normal(25, 3, 20), rng.normal(0, 0.05, 20)
    first, second = difficulty, difficulty + 0.2 + noise
    apart = mean_interval(first), mean_interval(second)
    assert apart[0].high > apart[1].low, "alone they overlap"
    paired = paired_interval(second, first)
    assert paired.excludes_zero and 0.15 < paired.low < paired.mean < paired.high < 0.25
    assert not paired_interval(first + noise - noise.mean(), first).excludes_zero
    other_way = paired_interval(first, second)
    assert (other_way.mean, other_way.low) == pytest.approx((-paired.mean, -paired.high))


def test_a_single_view_has_no_spread_and_none_is_refused():
    found = mean_interval([24.5])
    assert (found.mean, found.low, found.high) == (24.5, 24.5, 24.5)
    with pytest.raises(ValueError):
        mean_interval([])
    with pytest.raises(ValueError):
        paired_interval([1.0, 2.0], [1.0])
