import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.priors.gaussian import GaussianPrior
from scene_distill.priors.guidance import Alone, Guided, PerpNeg, Request, ask, standard_scale
from scene_distill.priors.prior import Counted, levels_of
from scene_distill.priors.schedules import scaled_linear

DOUBLE = {"dtype": torch.float64}


def draws(seed: int, *names: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 4, 2, 2, generator=generator, **DOUBLE) for name in names}


@given(st.floats(-20, 120), st.integers(0, 5))
def test_guidance_has_the_standard_form(scale, seed):
    eps = draws(seed, "wanted", "unwanted")
    expected = (1 - scale) * eps["unwanted"] + scale * eps["wanted"]
    torch.testing.assert_close(Guided(scale).combine(eps), expected, rtol=1e-10, atol=1e-10)


def test_zero_is_the_reference_and_one_the_prompt_at_the_cost_of_one():
    eps = draws(0, "wanted", "unwanted")
    assert torch.equal(Guided(0.0).combine(eps), eps["unwanted"]) and Guided(0.0).roles == ("unwanted",)
    assert torch.equal(Guided(1.0).combine(eps), eps["wanted"]) and Guided(1.0).roles == ("wanted",)
    assert Guided(7.5, "empty").roles == ("empty", "wanted")


@given(st.floats(-20, 120))
def test_equal_conditions_make_the_scale_irrelevant(scale):
    eps = draws(1, "wanted")["wanted"]
    assert torch.equal(Guided(scale).combine({"wanted": eps, "unwanted": eps}), eps)


def test_the_threestudio_scale_is_one_less():
    eps = draws(2, "wanted", "unwanted")
    theirs = eps["wanted"] + 100 * (eps["wanted"] - eps["unwanted"])
    torch.testing.assert_close(Guided(standard_scale(100, "threestudio")).combine(eps), theirs, rtol=1e-10, atol=1e-10)
    assert standard_scale(7.5, "standard") == 7.5
    with pytest.raises(UserError):
        standard_scale(1, "mine")


def test_rescaling_restores_the_spread_of_the_prompt():
    eps = draws(3, "wanted", "unwanted")
    full = Guided(50.0, rescale=1.0).combine(eps)
    torch.testing.assert_close(full.flatten(1).std(1), eps["wanted"].flatten(1).std(1), rtol=1e-10, atol=0)
    plain, half = Guided(50.0).combine(eps), Guided(50.0, rescale=0.5).combine(eps)
    torch.testing.assert_close(half, (full + plain) / 2, rtol=1e-10, atol=1e-10)


def test_perp_neg_adds_only_what_is_orthogonal_to_the_main_direction():
    """Identity 16."""
    eps = draws(4, "wanted", "unwanted", "negative 0", "negative 1")
    weights = (torch.tensor([-2.0, -1.0, 0.5], **DOUBLE), -0.3)
    guided = Guided(7.5).combine(eps)
    added = PerpNeg(7.5, weights).combine(eps) - guided
    main = eps["wanted"] - eps["unwanted"]
    assert float(added.abs().min()) > 0
    torch.testing.assert_close((added * main).sum((1, 2, 3)), torch.zeros(3, **DOUBLE), rtol=0, atol=1e-10)
    assert torch.equal(PerpNeg(7.5, (0.0, 0.0)).combine(eps), guided)


def test_perp_neg_with_a_vanishing_main_direction_stays_finite():
    eps = draws(5, "wanted", "negative 0")
    eps["unwanted"] = eps["wanted"].clone()
    assert bool(torch.isfinite(PerpNeg(7.5, (-2.0,)).combine(eps)).all())


def test_requests_share_one_call_and_keep_their_roles_apart():
    means = {name: torch.full((2,), value, **DOUBLE) for name, value in (("", 0.0), ("y", 1.0), ("bad", -3.0))}
    prior = Counted(GaussianPrior(means, 0.4, scaled_linear()))
    prompts = {"empty": prior.describe([""]), "wanted": prior.describe(["y"]), "unwanted": prior.describe(["bad"])}
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), **DOUBLE)
    high, low = levels_of(700, z), torch.tensor([100, 200, 300])
    guided, null = ask(prior, prompts, [Request(z, high, Guided(7.5)), Request(z[:2], low[:2], Alone("empty"))])
    assert (prior.calls, prior.evaluations) == (1, 8)
    sigma = prior.schedule.sigma(high, z)
    mean = means["bad"] + 7.5 * (means["y"] - means["bad"])
    torch.testing.assert_close(guided, sigma * (z - mean) / (0.16 + sigma**2), rtol=1e-10, atol=1e-10)
    sigma = prior.schedule.sigma(low[:2], z)
    torch.testing.assert_close(null, sigma * z[:2] / (0.16 + sigma**2), rtol=1e-10, atol=1e-10)
    with pytest.raises(UserError, match="negative 0"):
        ask(prior, prompts, [Request(z, high, PerpNeg(7.5, (-1.0,)))])
