"""The identities that hold the family of score distillation together, numbered as in the project's notes.

Float64 and analytic priors, 1e-10. a = sigma_s < b = sigma_t, delta = m_y - m_n, m_g = m_n + g delta.
"""

import numpy as np
import pytest
import torch
from score_rig import (
    CLEAN,
    DOUBLE,
    KAPPA,
    M_N,
    M_Y,
    PLAIN,
    PRIORS,
    S0,
    SCHEDULE,
    SHAPE,
    X0,
    At,
    S,
    T,
    close,
    draw,
    gaussian,
    mixture,
    prompts_of,
    sigma,
    step,
    teacher,
)  # fmt: skip

from scene_distill.objectives.score_cds import CDS
from scene_distill.objectives.score_csd import CSD
from scene_distill.objectives.score_ism import ISM
from scene_distill.objectives.score_noise import FixedPerView, FixedShared, Fresh, Given, RootNoise
from scene_distill.objectives.score_sdi import SDI
from scene_distill.objectives.score_sds import SDS, SJC
from scene_distill.objectives.score_tsm import TSM
from scene_distill.objectives.score_vsd import VSD
from scene_distill.priors.ddim import denoised, moved, sample
from scene_distill.priors.gaussian import GaussianPrior
from scene_distill.priors.guidance import Alone, Guided, PerpNeg, Request
from scene_distill.priors.prior import Condition, levels_of

DELTA = M_Y - M_N
A, B = sigma(S), sigma(T)
V = S0**2


def guided_mean(g: float) -> torch.Tensor:
    return M_N + g * DELTA


def inverted(x0: torch.Tensor, level: torch.Tensor, stride: int = 200) -> torch.Tensor:
    """z_s - m_n of a Gaussian: every step multiplies by (s0^2 + ab) / (s0^2 + a^2)."""
    d = x0 - M_N
    for row in range(len(x0)):
        here = 0
        while here < int(level[row]):
            there = min(here + stride, int(level[row]))
            a, b = (float(SCHEDULE.sigma(torch.tensor([k]))[0]) for k in (here, there))
            d[row] *= (V + a * b) / (V + a * a)
            here = there
    return d


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("unwanted", ["", "bad"])
def test_01_tsm_at_mu_s_is_ism(name, unwanted):
    prior = PRIORS[name]()
    tsm, ism = (step(m, prior, unwanted=unwanted, seed=3) for m in (TSM(0.0), ISM()))
    close(tsm.gradient, ism.gradient)
    assert tsm.evaluations == ism.evaluations


@pytest.mark.parametrize("name", PRIORS)
def test_01_ism_and_tsm_compare_clean_states_of_the_path_and_not_the_picture(name):
    prior, asked = PRIORS[name](), teacher(PRIORS[name]())
    z_s, e_s = CLEAN.start(X0, S, asked)
    method = TSM(0.3, inversion=CLEAN, **PLAIN)
    middle = method.middle(At().sample(None, 3, SCHEDULE, None))
    z_t, z_mu = (moved(z_s, e_s, SCHEDULE, S, level) for level in (T, middle))
    guided, empty = asked.ask(Request(z_t, T, asked.guided(method.guidance)), Request(z_mu, middle, Alone("empty")))
    d_s, d_t, d_mu = z_s - A * e_s, z_t - B * guided, z_mu - sigma(middle) * empty
    pull = (d_s - d_t) / B
    close(step(ISM(inversion=CLEAN, **PLAIN), prior).gradient, pull)
    close(step(method, prior).gradient, pull - (d_s - d_mu) / sigma(middle))


@pytest.mark.parametrize("name", PRIORS)
def test_02_tsm_at_mu_t_is_csd_at_the_inverted_state(name):
    prior, g = PRIORS[name](), 7.5
    z_s, e_s = CLEAN.start(X0, S, teacher(prior))
    z_t = moved(z_s, e_s, SCHEDULE, S, T)
    tsm = step(TSM(1.0, g, inversion=CLEAN, **PLAIN), prior)
    csd = step(CSD(g, "uniform", Given((z_t - X0) / B)), prior)
    close(tsm.gradient, csd.gradient)
    wanted, empty = (prior.eps(z_t, T, prior.describe([text] * 3)) for text in ("y", ""))
    close(csd.gradient, g * (wanted - empty))


@pytest.mark.parametrize("g", [1.0, 7.5, 101.0])
def test_03_sds_seeks_the_guided_mean(g):
    """Linear in the noise: mean b (x0 - m_g) / (s0^2 + b^2), spread s0^2 / (s0^2 + b^2)."""
    out = step(SDS(g, "uniform", Given(KAPPA)), gaussian())
    mean = B * (X0 - guided_mean(g)) / (V + B**2)
    close(out.gradient, mean - V / (V + B**2) * KAPPA)
    there = guided_mean(g).expand_as(X0)
    both = [step(SDS(g, "uniform", Given(sign * KAPPA)), gaussian(), there).gradient for sign in (1, -1)]
    close((both[0] + both[1]) / 2, torch.zeros_like(X0))


def test_03_sds_statistics_of_fresh_noise():
    level = levels_of(400, torch.zeros(4000))
    x0 = X0[:1].expand(4000, *SHAPE)
    out = step(SDS(7.5, "uniform"), gaussian(), x0, At(level, None), seed=5)
    b = float(sigma(level[:1]))
    mean = b * (X0[0] - guided_mean(7.5)) / (V + b * b)
    torch.testing.assert_close(out.gradient.mean(0), mean, rtol=0, atol=5 * V / (V + b * b) / 4000**0.5)
    torch.testing.assert_close(out.gradient.std(0), torch.full(SHAPE, V / (V + b * b), **DOUBLE), rtol=0.06, atol=0)


def test_04_sjc_is_sds_without_weight_and_its_plain_form_has_the_same_mean():
    noise = Given(KAPPA)
    sds = step(SDS(7.5, "uniform", noise), gaussian())
    close(step(SJC(7.5, True, noise), gaussian()).gradient, sds.gradient, 0)
    plain = step(SJC(7.5, False, noise), gaussian())
    close(plain.gradient, plain.a, 0)
    mean = B * (X0 - guided_mean(7.5)) / (V + B**2)
    close(plain.gradient, mean + B**2 / (V + B**2) * KAPPA)
    with_smaller, without_smaller = V < B**2, V > B**2
    assert bool((with_smaller | without_smaller).all())
    assert torch.equal((sds.gradient - mean).abs() < (plain.gradient - mean).abs(), with_smaller.expand_as(X0))


@pytest.mark.parametrize("g", [1.0, 7.5])
def test_05_ism_has_its_closed_form(g):
    d_s = inverted(X0, S)
    z_s, _ = CLEAN.start(X0, S, teacher(gaussian()))
    close(z_s - M_N, d_s)
    expected = V * (B - A) / ((V + A**2) * (V + B**2)) * d_s - g * B * DELTA / (V + B**2)
    close(step(ISM(g, inversion=CLEAN, **PLAIN), gaussian()).gradient, expected)


def test_05_fine_inversion_follows_the_flow():
    exact = torch.sqrt((V + A**2) / (V + sigma(torch.zeros_like(S)) ** 2)) * (X0 - M_N)
    error = [(inverted(X0.clone(), S, stride) - exact).norm() for stride in (20, 10, 5)]
    assert error[0] > 1.8 * error[1] > 3.2 * error[2]


def test_05_small_intervals_oversaturate():
    """The distance at which ISM rests is g b delta (s0^2 + a^2) / (s0^2 (b - a)): it grows as the interval shrinks."""
    rests = []
    for interval in (200, 100, 50):
        s = T - interval
        a = sigma(s)
        d_rest = 7.5 * B * DELTA * (V + a**2) / (V * (B - a))
        factor = inverted(torch.ones_like(X0) + M_N, s)
        out = step(ISM(7.5, inversion=CLEAN, **PLAIN), gaussian(), M_N + d_rest / factor, At(T, s))
        close(out.gradient, torch.zeros_like(X0), 1e-9)
        rests.append(float(d_rest.norm()))
    assert rests[0] < rests[1] < rests[2]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.954, 1.0])
def test_06_tsm_has_its_closed_form(fraction):
    method = TSM(fraction, 7.5, inversion=CLEAN, **PLAIN)
    times = At().sample(None, 3, SCHEDULE, None)
    mu = sigma(method.middle(times))
    d_s = inverted(X0, S)

    def h(q):
        return q * (V + A * q) / (V + q * q)

    expected = (h(B) - h(mu)) / (V + A**2) * d_s - 7.5 * B * DELTA / (V + B**2)
    close(step(method, gaussian()).gradient, expected)


@pytest.mark.parametrize("g", [1.0, 7.5, 101.0])
def test_07_cds_has_its_closed_form(g):
    out = step(CDS(g, noise=Given(KAPPA)), gaussian())
    expected = V * (B - A) / ((V + A**2) * (V + B**2)) * (X0 + B * KAPPA - guided_mean(g))
    close(out.gradient, expected, 1e-10 * max(1.0, g))


def test_07_cds_sees_only_curvature():
    """Nothing for a point mass, whose paths are straight; linear in the interval as it shrinks."""
    point = step(CDS(7.5, noise=Given(KAPPA)), gaussian(0.0))
    close(point.gradient, torch.zeros_like(X0), 1e-9)
    slopes = []
    for gap in (8, 2, 1):
        out = step(CDS(7.5, noise=Given(KAPPA)), mixture(), times=At(T, T - gap))
        slopes.append(out.gradient / (B - sigma(T - gap)))
    far, near = ((slopes[i] - slopes[2]).norm() / slopes[2].norm() for i in (0, 1))
    assert float(near) < 0.25 * float(far) < 0.25


def test_07_the_codes_sign_contracts_and_the_literal_one_expands():
    target = guided_mean(7.5)
    away = {}
    for sign in ("code", "literal"):
        out = step(CDS(7.5, noise=Given(torch.zeros_like(X0)), sign=sign), gaussian())
        away[sign] = float((out.target - target).norm() / (X0 - target).norm())
    assert away["code"] < 1 < away["literal"]
    code, literal = (step(CDS(7.5, noise=Given(KAPPA), sign=s), mixture()).gradient for s in ("code", "literal"))
    close(literal, -A * code)


@pytest.mark.parametrize("name", PRIORS)
def test_08_denoised_states_of_one_step_differ_by_sigma_s_times_the_noises(name):
    prior = PRIORS[name]()
    out = step(CDS(7.5, noise=Given(KAPPA)), prior)
    z_t = X0 + B * KAPPA
    z_s = moved(z_t, out.a, SCHEDULE, T, S)
    difference = denoised(z_t, out.a, SCHEDULE, T) - denoised(z_s, out.b, SCHEDULE, S)
    close(difference, A * (out.b - out.a))


def test_09_the_noise_that_predicts_itself():
    """Root sigma (x0 - m) / s0^2; then D(z_t) is x0 and SDI rests; below, its residual is linear in the levels."""
    t, s = torch.tensor([60, 100, 150]), torch.tensor([20, 80, 130])
    b, a = sigma(t), sigma(s)
    root = RootNoise(120).sample(X0, t, teacher(gaussian()))
    close(root, b * (X0 - M_Y) / V)
    here = step(SDI(1.0, Given(root)), gaussian(), times=At(t, None))
    close(here.gradient, torch.zeros_like(X0))
    close(here.target, X0)
    below = step(SDI(1.0, Given(root), "uniform"), gaussian(), times=At(s, None))
    close(below.gradient, -(b - a) * (X0 - M_Y) / (V + a**2))


@pytest.mark.parametrize("name", PRIORS)
def test_10_sdi_with_the_last_noise_is_ddim(name):
    prior, levels = PRIORS[name](), [950, 700, 400, 150, 30]
    noise = draw(11, 3, *SHAPE)
    seen = []
    final = sample(prior, prompts_of(prior), Guided(7.5), noise, levels, lambda _, clean: seen.append(clean))
    top = float(sigma(torch.tensor([950])))
    x0, kappa = ((1 + top**2) ** 0.5 - top) * noise, noise
    for level, expected in zip(levels, seen, strict=True):
        out = step(SDI(7.5, Given(kappa)), prior, x0, At(torch.full((3,), level), None))
        x0, kappa = out.target, out.a
        close(x0, expected)
    close(x0, final)


class Knows:
    """psi that is a prior itself."""

    def __init__(self, prior, text="y"):
        self.prior, self.text = prior, text

    def eps(self, z, level, teacher):
        return self.prior.eps(z, level, self.prior.describe([self.text]).repeated(len(z)))

    def learn(self, x0, teacher):
        return 0.0


class KnowsEachRender(Knows):
    """The score of a point mass at each render."""

    def __init__(self, x0):
        self.x0 = x0

    def eps(self, z, level, teacher):
        point = GaussianPrior({"": torch.zeros(SHAPE, **DOUBLE)}, 0.0, SCHEDULE)
        return point.eps(z, level, Condition(pooled=self.x0.flatten(1)))


@pytest.mark.parametrize("name", PRIORS)
def test_11_vsd_with_a_perfect_model_of_one_particle_is_sds(name):
    vsd = step(VSD(KnowsEachRender(X0), 7.5), PRIORS[name](), seed=4)
    sds = step(SDS(7.5), PRIORS[name](), seed=4)
    close(vsd.gradient, sds.gradient, 1e-9)


@pytest.mark.parametrize("name", PRIORS)
def test_11_vsd_with_the_prior_as_model_keeps_only_guidance(name):
    prior, g = PRIORS[name](), 7.5
    out = step(VSD(Knows(prior), g, "uniform", Given(KAPPA)), prior)
    z = X0 + B * KAPPA
    wanted, empty = (prior.eps(z, T, prior.describe([text] * 3)) for text in ("y", ""))
    close(out.gradient, (g - 1) * (wanted - empty))


def test_11_vsd_rests_only_where_renders_are_distributed_as_the_prior():
    """Mean and spread must both agree; SDS instead pulls every particle to the mean."""
    target = guided_mean(7.5)
    sizes = {}
    for what, mean, spread in (("same", target, S0), ("moved", target + 0.1, S0), ("narrower", target, 0.8 * S0)):
        psi = Knows(GaussianPrior({"y": mean}, spread, SCHEDULE))
        sizes[what] = float(step(VSD(psi, 7.5, "uniform", Given(KAPPA)), gaussian()).gradient.abs().max())
    assert sizes["same"] < 1e-10 and min(sizes["moved"], sizes["narrower"]) > 1e-3
    particles = target + S0 * X0
    both = [step(SDS(7.5, "uniform", Given(sign * KAPPA)), gaussian(), particles).gradient for sign in (1, -1)]
    close((both[0] + both[1]) / 2, B * S0 * X0 / (V + B**2))


def test_12_kl_falls_along_the_noise_at_the_rate_of_the_fisher_divergence():
    """d KL(q || p) / d sigma^2 = -1/2 E_q |score_q - score_p|^2, with the priors' own scores, by exact quadrature."""
    mq, sq, mp, sp = 0.7, 0.5, -0.4, 0.9
    level = torch.tensor([300])
    variance = SCHEDULE.sigma(level).clone().square().requires_grad_()
    vq, vp = sq**2 + variance, sp**2 + variance
    kl = 0.5 * (torch.log(vp / vq) + (vq + (mq - mp) ** 2) / vp - 1)
    (rate,) = torch.autograd.grad(kl.sum(), variance)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z = mq + vq.detach().sqrt() * torch.as_tensor(nodes)
    scores = []
    for mean, spread in ((mq, sq), (mp, sp)):
        prior = GaussianPrior({"": torch.tensor([mean], **DOUBLE)}, spread, SCHEDULE)
        eps = prior.eps(z.reshape(-1, 1), level.expand(8), prior.describe([""] * 8))[:, 0]
        scores.append(-eps / SCHEDULE.sigma(level))
    fisher = ((scores[0] - scores[1]) ** 2 * torch.as_tensor(weights)).sum() / weights.sum()
    close(rate[0], -fisher / 2)


@pytest.mark.parametrize("name", PRIORS)
def test_13_guidance_of_the_gradient(name):
    prior = PRIORS[name]()
    z = X0 + B * KAPPA
    for g, text in ((0.0, "bad"), (1.0, "y")):
        out = step(SDS(g, "uniform", Given(KAPPA)), prior, unwanted="bad")
        close(out.gradient, prior.eps(z, T, prior.describe([text] * 3)) - KAPPA)
        assert out.evaluations == len(X0)
    same = [step(SDS(g, noise=Given(KAPPA)), prior, unwanted="y").gradient for g in (3.0, 101.0)]
    close(same[0], same[1])


METHODS = {
    "sds": SDS(7.5),
    "sjc": SJC(7.5, variance_reduction=False),
    "csd": CSD(),
    "ism": ISM(),
    "tsm": TSM(0.3),
    "cds": CDS(7.5),
    "sdi": SDI(7.5),
    "sdi-port": SDI(7.5, state="port"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PRIORS)
def test_13_moving_prior_and_picture_together_changes_nothing(method, name):
    """Every method but SDI's port, which feeds a state to the wrong level and so depends on where the origin is."""
    here, there = (
        step(METHODS[method], PRIORS[name](shift=shift), X0 + shift, unwanted="bad", seed=6).gradient
        for shift in (0.0, 2.5)
    )
    if method == "sdi-port":
        assert float((here - there).abs().max()) > 1e-3
    else:
        close(here, there, 1e-8)


def test_14_the_gradient_reaches_a_linear_renderer_and_no_prior():
    theta = draw(20, 6).requires_grad_()
    render = draw(21, 3 * X0[0].numel(), 6)

    class Owned(GaussianPrior):
        strength = torch.ones((), **DOUBLE).requires_grad_()

        def eps(self, z, level, condition):
            return self.strength * super().eps(z, level, condition)

    prior = Owned({"": M_N, "y": M_Y}, S0, SCHEDULE)
    out = step(SDS(7.5), prior, (render @ theta).reshape(3, *SHAPE))
    for reduction, share in (("sum", 1), ("sum_per_image", 3), ("mean", X0.numel())):
        theta.grad = None
        out.loss(reduction).backward(retain_graph=True)
        close(theta.grad, render.T @ out.gradient.flatten() / share)
    assert prior.strength.grad is None and not out.gradient.requires_grad


def test_16_perp_neg_without_weights_is_plain_guidance():
    """Orthogonality of what it adds is tested with the guidance itself."""
    prior = gaussian()
    prompts = {**prompts_of(prior), "negative 0": prior.describe(["bad"])}
    plain = step(SDS(7.5), prior, prompts=prompts)
    off, on = (step(SDS(7.5), prior, prompts=prompts, combine=lambda g, w=w: PerpNeg(g, (w,))) for w in (0.0, -2.0))
    assert torch.equal(off.gradient, plain.gradient)
    w = plain.gradient / (plain.a - plain.b)
    added = (on.gradient - plain.gradient) / w
    z = X0 + B * torch.randn(X0.shape, generator=torch.Generator().manual_seed(0), **DOUBLE)
    wanted, empty = teacher(prior).ask(Request(z, T, Alone("wanted")), Request(z, T, Alone("empty")))
    close((added * (wanted - empty)).sum((1, 2, 3)), torch.zeros(3, **DOUBLE), 1e-8)
    assert float(added.abs().max()) > 1e-3 and off.evaluations == 9


@pytest.mark.parametrize("method", METHODS)
def test_17_equal_generators_give_equal_bytes(method):
    first, again, other = (step(METHODS[method], mixture(), seed=seed).gradient for seed in (8, 8, 9))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (method == "cds")


def test_17_fixed_noises_belong_to_their_views():
    views = torch.tensor([4, 9, 4])
    guide = teacher(gaussian())
    guide.view_ids = views
    noise = FixedPerView(3).sample(X0, T, guide)
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    guide.view_ids = views.flip(0)
    assert torch.equal(FixedPerView(3).sample(X0, T, guide), noise.flip(0))
    shared = FixedShared(3).sample(X0, T, guide)
    assert torch.equal(shared, FixedShared(3).sample(X0, T, guide)) and torch.equal(shared[0], shared[1])
    assert not torch.equal(shared, FixedShared(4).sample(X0, T, guide))
    fresh = Fresh().sample(X0, T, guide)
    assert not torch.equal(fresh, Fresh().sample(X0, T, guide)) and not torch.equal(fresh[0], fresh[1])
