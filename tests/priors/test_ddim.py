import pytest
import torch

from scene_distill.core.errors import UserError
from scene_distill.priors.ddim import invert, sample, spaced
from scene_distill.priors.gaussian import GaussianPrior
from scene_distill.priors.guidance import Alone, Guided
from scene_distill.priors.mixture import MixturePrior
from scene_distill.priors.prior import Counted, levels_of
from scene_distill.priors.schedules import scaled_linear

DOUBLE = {"dtype": torch.float64}
SCHEDULE = scaled_linear()
STD = 0.35
MEANS = {"": torch.tensor([0.5, -1.0], **DOUBLE), "y": torch.tensor([2.0, 1.0], **DOUBLE)}


def gaussian():
    prior = Counted(GaussianPrior(MEANS, STD, SCHEDULE))
    return prior, {role: prior.describe([text]) for role, text in (("empty", ""), ("unwanted", ""), ("wanted", "y"))}


def sigma(level: int) -> float:
    return float(SCHEDULE.sigma(torch.tensor([level]))[0])


def test_a_step_of_inversion_has_its_closed_form():
    """Identity 5: distance to the mean grows by (s^2 + ab) / (s^2 + a^2) per step."""
    prior, prompts = gaussian()
    z = torch.tensor([[1.0, 2.0], [-3.0, 0.1]], **DOUBLE)
    a, b = sigma(100), sigma(350)
    up = invert(prior, prompts, Alone("empty"), z, levels_of(100, z), levels_of(350, z), 250)
    factor = (STD**2 + a * b) / (STD**2 + a * a)
    torch.testing.assert_close(up, MEANS[""] + factor * (z - MEANS[""]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("stride", "published"), [(200, 1.98), (100, 2.54), (50, 2.92), (10, 3.33)])
def test_coarse_inversion_falls_short_of_the_flow_by_the_known_factors(stride, published):
    """From clean to level 400 the exact flow stretches by 3.47; large steps reach less (Gaussian, s = 0.35)."""
    prior, prompts = gaussian()
    z = MEANS[""] + torch.ones(1, 2, **DOUBLE)
    up = invert(prior, prompts, Alone("empty"), z, levels_of(0, z), levels_of(400, z), stride)
    factor, exact = 1.0, (STD**2 + sigma(400) ** 2) ** 0.5 / (STD**2 + sigma(0) ** 2) ** 0.5
    for level in range(0, 400, stride):
        a, b = sigma(level), sigma(level + stride)
        factor *= (STD**2 + a * b) / (STD**2 + a * a)
    torch.testing.assert_close(up - MEANS[""], factor * torch.ones(1, 2, **DOUBLE), rtol=1e-10, atol=0)
    assert factor == pytest.approx(published, abs=0.01) and factor < exact == pytest.approx(3.46, abs=0.02)


def test_rows_stop_where_they_should_and_cost_what_they_take():
    prior, prompts = gaussian()
    z = torch.zeros(3, 2, **DOUBLE)
    invert(prior, prompts, Alone("empty"), z, levels_of(0, z), torch.tensor([0, 150, 450]), 200)
    assert prior.evaluations == 0 + 1 + 3
    alone = invert(prior, prompts, Guided(-7.5), z[2:], levels_of(0, z[2:]), torch.tensor([450]), 200)
    together = invert(prior, prompts, Guided(-7.5), z, levels_of(0, z), torch.tensor([0, 150, 450]), 200)
    torch.testing.assert_close(together[2:], alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(together[0], z[0])


def test_sampling_a_gaussian_has_its_closed_form():
    prior, prompts = gaussian()
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), **DOUBLE)
    levels = spaced(999, 0, 20)
    out = sample(prior, prompts, Guided(3.0), noise, levels)
    mean = MEANS[""] + 3.0 * (MEANS["y"] - MEANS[""])
    offset = noise * (1 + sigma(999) ** 2) ** 0.5 - mean
    for a, b in zip(levels, [*levels[1:], None], strict=True):
        up, down = sigma(a), 0.0 if b is None else sigma(b)
        offset = offset * (STD**2 + up * down) / (STD**2 + up * up)
    torch.testing.assert_close(out, mean + offset, rtol=1e-10, atol=1e-10)


def test_many_steps_reproduce_the_prior():
    """A Gaussian, up to what a finite start leaves: the flow shrinks distances by s / sqrt(s^2 + top^2)."""
    prior, prompts = gaussian()
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(4), **DOUBLE)
    out = sample(prior, prompts, Guided(1.0), noise, spaced(999, 0, 300))
    shrink = STD / (STD**2 + sigma(999) ** 2) ** 0.5
    drawn = (1 + sigma(999) ** 2) ** 0.5 * noise - MEANS["y"]
    torch.testing.assert_close(out, MEANS["y"] + shrink * drawn, rtol=0, atol=0.05)
    torch.testing.assert_close(out.std(0), torch.full((2,), STD, **DOUBLE), rtol=0.05, atol=0)


def test_sampling_a_mixture_lands_on_its_modes_in_their_proportions():
    centres = torch.tensor([[4.0, 0.0], [0.0, 4.0], [-4.0, 0.0]], **DOUBLE)
    weights = {"": torch.full((3,), 1 / 3, **DOUBLE), "y": torch.tensor([0.25, 0.75, 0.0], **DOUBLE)}
    prior = Counted(MixturePrior(centres, weights, STD, SCHEDULE))
    prompts = {"wanted": prior.describe(["y"]), "unwanted": prior.describe([""])}
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(5), **DOUBLE)
    out = sample(prior, prompts, Guided(1.0), noise, spaced(999, 0, 60))
    nearest = torch.cdist(out, centres).argmin(1)
    share = torch.bincount(nearest, minlength=3) / 2000
    assert share.tolist() == pytest.approx([0.25, 0.75, 0.0], abs=0.03)
    assert float((out - centres[nearest]).std()) == pytest.approx(STD, rel=0.1)


def test_up_and_down_again_comes_back():
    prior, prompts = gaussian()
    z = torch.tensor([[1.0, 0.3]], **DOUBLE)
    up = invert(prior, prompts, Alone("empty"), z, levels_of(0, z), levels_of(240, z), 2)
    noise = up / (1 + sigma(240) ** 2) ** 0.5
    seen, levels = [], list(range(240, -1, -2))
    down = sample(prior, prompts, Alone("empty"), noise, levels, lambda level, _: seen.append(level))
    assert seen == levels
    assert float((up - z).norm()) > 0.5
    torch.testing.assert_close(down, z, rtol=0, atol=0.03)


def test_levels_that_make_no_sense_are_refused():
    prior, prompts = gaussian()
    z = torch.zeros(1, 2, **DOUBLE)
    with pytest.raises(UserError, match="falling"):
        sample(prior, prompts, Guided(1.0), z, [10, 20])
    with pytest.raises(UserError, match="goes up"):
        invert(prior, prompts, Alone("empty"), z, levels_of(20, z), levels_of(10, z), 5)
    with pytest.raises(UserError, match="distinct"):
        spaced(3, 0, 9)
