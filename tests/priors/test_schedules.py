import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.priors import schedules

ALL = {
    "cosine": schedules.cosine(),
    "scaled_linear": schedules.scaled_linear(),
    "linear": schedules.linear(),
    "sdxl": schedules.scaled_linear(steps_offset=1),
}


@pytest.mark.parametrize("name", ALL)
def test_signal_and_noise_add_up(name):
    schedule = ALL[name]
    levels = torch.arange(schedule.n_levels)
    abar, sigma = schedule.abar(levels), schedule.sigma(levels)
    torch.testing.assert_close(abar * (1 + sigma**2), torch.ones_like(abar), rtol=1e-12, atol=0)
    assert bool((sigma.diff() > 0).all())


def test_published_values_of_stable_diffusion():
    """sigma runs from 0.029 to 14.6 (Karras et al. quote 14.61 for this schedule)."""
    sigma = ALL["scaled_linear"].sigma(torch.tensor([0, 999]))
    assert sigma.tolist() == pytest.approx([0.02917, 14.6146], rel=1e-3)


def test_cosine_follows_its_formula():
    levels = torch.tensor([0, 99, 499, 899])
    expected = [
        math.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        for t in levels.tolist()
    ]
    assert ALL["cosine"].abar(levels).tolist() == pytest.approx(expected, rel=1e-10)


def test_the_offset_shifts_levels_against_timesteps():
    plain, shifted = ALL["scaled_linear"], ALL["sdxl"]
    levels = torch.tensor([0, 20, 998])
    assert shifted.n_levels == 999
    assert torch.equal(shifted.timestep(levels), levels + 1)
    assert torch.equal(shifted.sigma(levels), plain.sigma(levels + 1))


@given(st.sampled_from(sorted(ALL)), st.integers(0, 998))
def test_level_of_sigma_inverts_sigma(name, level):
    schedule = ALL[name]
    assert schedule.level_of_sigma(float(schedule.sigma(torch.tensor([level]))[0])) == level


@pytest.mark.parametrize("level", [-1, 1000])
def test_levels_outside_the_table_are_refused(level):
    with pytest.raises(IndexError, match="run from 0 to 999"):
        ALL["cosine"].sigma(torch.tensor([level]))


@pytest.mark.parametrize(
    "table", [[0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [0.5]], ids=["rising", "noise-free", "signal-free", "short"]
)
def test_a_table_that_is_no_schedule_is_refused(table):
    with pytest.raises(UserError):
        schedules.NoiseSchedule(torch.tensor(table, dtype=torch.float64))


def test_values_come_shaped_and_typed_like_the_state():
    z = torch.zeros(2, 3, 4, 4)
    sigma = ALL["cosine"].sigma(torch.tensor([3, 700]), z)
    assert sigma.shape == (2, 1, 1, 1) and sigma.dtype == torch.float32
