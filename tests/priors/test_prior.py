import pytest
import torch

from scene_distill.core.errors import UserError
from scene_distill.priors.gaussian import GaussianPrior
from scene_distill.priors.network import NetworkPrior, noise_of
from scene_distill.priors.pixels import PixelCodec
from scene_distill.priors.prior import Condition, Counted, NoisePrior, joined, levels_of
from scene_distill.priors.schedules import cosine, scaled_linear


def condition(rows: int, start: float = 0.0) -> Condition:
    rising = torch.arange(rows, dtype=torch.float64).reshape(rows, 1) + start
    return Condition(rising.reshape(rows, 1, 1).expand(rows, 2, 3), rising, {"time_ids": rising * 10})


def test_conditions_repeat_select_join_and_mix_in_every_part():
    one, two = condition(1, 5.0), condition(2)
    assert one.repeated(4).rows == 4
    both = joined([one, two])
    assert both.pooled.flatten().tolist() == [5.0, 0.0, 1.0]
    assert both.select(torch.tensor([2, 0])).extra["time_ids"].flatten().tolist() == [10.0, 50.0]
    mixed = two.mixed(one.repeated(2), torch.tensor([0.0, 0.5]))
    assert mixed.pooled.flatten().tolist() == [0.0, 3.0]
    assert mixed.tokens.shape == (2, 2, 3) and float(mixed.tokens[1, 0, 0]) == 3.0


def test_conditions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="same tensors"):
        joined([condition(1), Condition(pooled=torch.zeros(1, 1))])
    with pytest.raises(ValueError, match="cannot mix"):
        condition(1).mixed(Condition(pooled=torch.zeros(1, 1)), 0.5)
    with pytest.raises(ValueError, match="cannot describe"):
        condition(2).repeated(3)


def gaussian() -> GaussianPrior:
    means = {"": torch.zeros(3, dtype=torch.float64), "a": torch.ones(3, dtype=torch.float64)}
    return GaussianPrior(means, 0.5, cosine())


def test_counting_sees_every_picture_and_every_call():
    prior = Counted(gaussian())
    assert isinstance(prior, NoisePrior)
    z = torch.zeros(4, 3, dtype=torch.float64)
    prior.eps(z, levels_of(10, z), prior.describe([""]).repeated(4))
    prior.eps(z[:1], levels_of(10, z[:1]), prior.describe(["a"]))
    assert (prior.evaluations, prior.calls) == (5, 2)


def test_nothing_that_went_through_a_prior_takes_gradient():
    prior = Counted(gaussian())
    z = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    assert not prior.eps(z, levels_of(10, z), prior.describe([""])).requires_grad


def test_shapes_that_do_not_fit_are_refused():
    prior = Counted(gaussian())
    z = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="do not fit"):
        prior.eps(z, levels_of(1, z), prior.describe([""]))


def test_unknown_and_malformed_prompts_are_refused():
    for prompts in (["b"], "a", []):
        with pytest.raises(UserError):
            gaussian().describe(prompts)


@pytest.mark.parametrize("predicts", ["epsilon", "v", "x0"])
def test_a_network_gives_the_same_noise_whatever_it_predicts(predicts):
    """A Gaussian written as an epsilon-, v- and x0-network, fed VP states, equals the Gaussian in VE."""
    schedule = scaled_linear(steps_offset=1)
    mean, std = 0.3, 0.6

    def network(x_t, timestep, _):
        abar = schedule.abars[timestep].reshape(-1, 1, 1, 1)
        eps = (1 - abar).sqrt() * (x_t - abar.sqrt() * mean) / (abar * std**2 + 1 - abar)
        clean = (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()
        return {"epsilon": eps, "x0": clean, "v": abar.sqrt() * eps - (1 - abar).sqrt() * clean}[predicts]

    def describe(prompts):
        return Condition(pooled=torch.zeros(len(prompts), 1))

    prior = NetworkPrior(network, schedule, PixelCodec(4, 4), describe, predicts, torch.float64)
    z = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = torch.tensor([0, 400, 900])
    sigma = schedule.sigma(level, z)
    expected = sigma * (z - mean) / (std**2 + sigma**2)
    torch.testing.assert_close(prior.eps(z, level, prior.describe(["x"] * 3)), expected, rtol=1e-9, atol=1e-10)


def test_velocity_and_clean_predictions_agree_with_their_definitions():
    abar = torch.tensor(0.37, dtype=torch.float64)
    clean, noise = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x_t = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
    for prediction, kind in ((noise, "epsilon"), (velocity, "v"), (clean, "x0")):
        torch.testing.assert_close(noise_of(prediction, x_t, abar, kind), noise, rtol=1e-12, atol=1e-12)


def test_pixels_go_to_states_and_back_with_gradient():
    codec = PixelCodec(8, 8)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(codec.decode(codec.encode(images)), images)
    large = torch.rand(1, 3, 20, 12, requires_grad=True)
    codec.encode(large).sum().backward()
    assert large.grad is not None and float(large.grad.sum()) == pytest.approx(2 * 3 * 64, rel=1e-4)
    twice = torch.rand(1, 3, 16, 16)
    means = twice.reshape(1, 3, 8, 2, 8, 2).mean((3, 5))
    torch.testing.assert_close(codec.decode(codec.encode(twice)), means)
    with pytest.raises(UserError, match="takes images"):
        codec.encode(images[:, :1])
