"""Rectified flows: conventions, times, guidance and samplers against closed forms."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.priors import flow
from scene_distill.priors.flow import FlowSteps, Guidance


def gaussian_velocity(mean: float, spread: float):
    """v(x, t) of x0 ~ N(mean, spread^2), for sigma_min = 0: E[n - x0 | x_t]."""

    def field(x, t, condition):
        variance = (1 - t) ** 2 * spread**2 + t**2
        slope = (t - (1 - t) * spread**2) / variance
        return slope * (x - (1 - t) * mean) - mean

    return field


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(0, 99))
def test_state_velocity_clean_and_noise_agree(times, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, len(times), 3, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor(times, dtype=torch.float64)
    x, v = flow.state(x0, noise, t), flow.velocity(x0, noise)
    assert torch.allclose(flow.clean(x, v, t), x0, atol=1e-9)
    assert torch.allclose(flow.noise_of(x, v, t), noise, atol=1e-9)
    derivative = (flow.state(x0, noise, t + 1e-4) - flow.state(x0, noise, t - 1e-4)) / 2e-4
    assert torch.allclose(derivative, v, atol=1e-6)


def test_times_at_two_steps_are_the_published_ones():
    assert FlowSteps(2, rescale_t=3.0).times == pytest.approx((1, 0.75, 0))
    assert FlowSteps(2).times == pytest.approx((1, 0.5, 0))
    for steps in (1, 3, 25):
        times = FlowSteps(steps, 3.0).times
        assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0
        assert all(a > b for a, b in itertools.pairwise(times))


def test_the_interval_is_guided_with_both_ends_and_counts_its_evaluations():
    text = Guidance(("c",), "n", 7.5, (0.5, 0.95))
    assert not text.guides(1.0) and text.guides(0.95) and text.guides(0.5) and not text.guides(0.4999)
    image = Guidance(("c",), "n", 5.0, (0.5, 1.0))
    assert image.evaluations(FlowSteps(25, 3.0).times) == 44  # 19 guided and 6 plain steps
    assert Guidance(("c",)).evaluations(FlowSteps(25).times) == 25


def test_guidance_is_one_plus_w():
    answers = {"c": 2.0, "n": 5.0}
    calls = []

    def field(x, t, condition):
        calls.append((condition, float(t)))
        return torch.full_like(x, answers[condition])

    guidance = Guidance(("c",), "n", 3.0, (0.5, 1.0))
    assert guidance.velocity(field, torch.zeros(1, 1), 0.5).item() == 4 * 2.0 - 3 * 5.0
    assert guidance.velocity(field, torch.zeros(1, 1), 0.4).item() == 2.0
    assert [name for name, _ in calls] == ["c", "n", "c"]


def test_several_conditions_are_averaged_or_take_turns():
    def field(x, t, condition):
        return torch.full_like(x, condition)

    mean, cycle = Guidance((1.0, 3.0)), Guidance((1.0, 3.0), combine="cycle")
    assert [mean.velocity(field, torch.zeros(1), 1.0, i).item() for i in range(2)] == [2.0, 2.0]
    assert [cycle.velocity(field, torch.zeros(1), 1.0, i).item() for i in range(3)] == [1.0, 3.0, 1.0]
    assert mean.evaluations(FlowSteps(4).times) == 8 and cycle.evaluations(FlowSteps(4).times) == 4


def test_euler_converges_to_the_exact_flow_of_a_gaussian():
    noise = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = 2.0 + 0.5 * noise
    errors = []
    for steps in (8, 16, 32, 64):
        got = flow.sample(gaussian_velocity(2.0, 0.5), noise, Guidance((None,)), FlowSteps(steps))
        errors.append((got - exact).abs().mean().item())
    assert all(b < 0.65 * a for a, b in itertools.pairwise(errors)) and errors[-1] < 0.02


def test_renoise_keeps_the_spread_of_an_average_velocity_where_euler_loses_it():
    mean, spread = 2.0, 0.5

    def average(x, t, condition):  # (x - x0 of the exact flow) / t
        deviation = (x - (1 - t) * mean) / ((1 - t) ** 2 * spread**2 + t**2).sqrt()
        return (x - mean - spread * deviation) / t

    noise = torch.randn(20000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = flow.sample(average, noise, Guidance((None,)), FlowSteps(1))
    assert torch.allclose(one, mean + spread * noise, atol=1e-6)
    generator = torch.Generator().manual_seed(2)
    renoised = flow.sample(average, noise, Guidance((None,)), FlowSteps(4, sampler="renoise"), generator)
    euler = flow.sample(average, noise, Guidance((None,)), FlowSteps(4))
    assert renoised.std().item() == pytest.approx(spread, rel=0.03)
    assert abs(euler.std().item() - spread) > 0.08


def test_one_step_is_the_same_for_both_samplers_and_watch_sees_the_clean_state():
    noise, seen = torch.randn(3, 2), []
    arguments = (gaussian_velocity(1.0, 0.3), noise, Guidance((None,)))
    a = flow.sample(*arguments, FlowSteps(1), watch=lambda i, t, x: seen.append((i, t, x)))
    b = flow.sample(*arguments, FlowSteps(1, sampler="renoise"))
    assert torch.equal(a, b) and len(seen) == 1 and torch.allclose(seen[0][2], a)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlowSteps(0), "at least 1 step"),
        (lambda: FlowSteps(2, rescale_t=0.0), "rescale_t"),
        (lambda: FlowSteps(2, sampler="heun"), "heun"),  # type: ignore[arg-type]
        (lambda: Guidance(()), "at least one condition"),
        (lambda: Guidance(("c",), weight=2.0), "negative"),
        (lambda: Guidance(("c",), interval=(0.9, 0.1)), "low to high"),
        (lambda: Guidance(("c",), combine="sum"), "sum"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_be_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_training_times_are_logit_normal():
    logits = flow.logit_normal_times(20000, generator=torch.Generator().manual_seed(0)).logit()
    assert logits.mean().item() == pytest.approx(1, abs=0.03) and logits.std().item() == pytest.approx(1, abs=0.03)


def test_with_a_generator_for_every_row_renoising_does_not_depend_on_company() -> None:
    def field(x, t, condition):
        return 0.3 * x

    def walked(rows):
        noise = flow.fresh_noise(torch.empty(len(rows), 4), [torch.Generator().manual_seed(row) for row in rows])
        again = [torch.Generator().manual_seed(100 + row) for row in rows]
        return flow.sample(field, noise, Guidance((None,)), FlowSteps(3, sampler="renoise"), again)

    together = walked(range(3))
    assert torch.equal(together, torch.cat([walked(range(1)), walked(range(1, 3))]))
    assert not torch.allclose(together[0], together[1])
    noise = flow.fresh_noise(torch.empty(1, 4), torch.Generator().manual_seed(0))
    one = torch.Generator().manual_seed(100)
    alone = flow.sample(field, noise, Guidance((None,)), FlowSteps(3, sampler="renoise"), one)
    assert torch.equal(together[:1], alone)
