"""Levels, weights, clips, counting and switches: what surrounds the gradient."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from score_rig import CLEAN, DOUBLE, KAPPA, PRIORS, SCHEDULE, SHAPE, X0, At, S, T, close, draw, gaussian, mixture, step

from scene_distill.core.errors import UserError
from scene_distill.objectives import score_presets
from scene_distill.objectives.score import Objective, distill
from scene_distill.objectives.score_cds import CDS
from scene_distill.objectives.score_clip import Clip, clip_backward, clipped
from scene_distill.objectives.score_csd import CSD
from scene_distill.objectives.score_ism import ISM
from scene_distill.objectives.score_noise import FixedPerView, Given, Inverted
from scene_distill.objectives.score_render_network import RenderNetwork
from scene_distill.objectives.score_sdi import SDI
from scene_distill.objectives.score_sds import SDS, SJC
from scene_distill.objectives.score_teacher import Progress, Ramp, Switch
from scene_distill.objectives.score_times import AnnealedTimes, ConsistencyTimes, IntervalTimes, UniformTimes
from scene_distill.objectives.score_tsm import TSM, from_code_gamma, from_paper_gamma
from scene_distill.objectives.score_vsd import VSD, importance
from scene_distill.objectives.score_weights import weight_of
from scene_distill.priors.network import NetworkPrior
from scene_distill.priors.pixels import PixelCodec
from scene_distill.priors.prior import Condition
from scene_distill.priors.schedules import scaled_linear

# ---- counting


def inverting(stride: int, level: int) -> int:
    return math.ceil(level / stride)


LEVELS = [int(level) for level in S]
COSTS = {
    "sds": (SDS(7.5), 2 * 3),
    "sds, g 1": (SDS(1.0), 3),
    "sjc": (SJC(7.5), 2 * 3),
    "csd": (CSD(), 2 * 3),
    "ism": (ISM(), sum(inverting(200, level) + 3 for level in LEVELS)),
    "tsm": (TSM(0.3), sum(inverting(200, level) + 4 for level in LEVELS)),
    "cds": (CDS(7.5), 4 * 3),
    "cds, heun": (CDS(7.5, solver="heun"), 6 * 3),
    "sdi": (SDI(), sum(2 * inverting(100, int(level)) + 2 for level in T)),
}


@pytest.mark.parametrize("name", COSTS)
def test_every_evaluation_of_the_prior_is_counted(name):
    method, expected = COSTS[name]
    assert step(method, gaussian()).evaluations == expected


def test_guidance_and_the_middle_point_share_one_call():
    assert step(SDS(7.5), gaussian()).calls == 1
    assert step(TSM(0.3), gaussian()).calls == step(ISM(), gaussian()).calls


# ---- levels

PUBLISHED_TIMES = {
    "sds": UniformTimes(),
    "ism": score_presets.published("ism").times,
    "cds": ConsistencyTimes(),
    "refine": ConsistencyTimes(300, 20, gap=100, jitter=100, low=20, high=500),
    "sdi": AnnealedTimes(1000, 200),
}
SCHEDULES = {"1000": SCHEDULE, "sdxl": scaled_linear(steps_offset=1), "100": scaled_linear(100, 0.0085, 0.12)}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PUBLISHED_TIMES)),
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(0, 2500),
    st.integers(0, 9),
)
def test_levels_stay_in_the_schedule_and_t_is_noisier_than_s(name, schedule, now, seed):
    table = SCHEDULES[schedule]
    generator = torch.Generator().manual_seed(seed)
    times = PUBLISHED_TIMES[name].sample(Progress(now, 2500), 5, table, generator)
    assert times.t.shape == (5,) and times.t.dtype == torch.int64
    assert int(times.t.min()) >= 0 and int(times.t.max()) < table.n_levels
    if times.s is not None:
        assert bool((times.t > times.s).all()) and int(times.s.min()) >= 0


def levels(sampler, now, total=2500, draws=400, batch=1):
    generator = torch.Generator().manual_seed(0)
    return [sampler.sample(Progress(now, total), batch, SCHEDULE, generator) for _ in range(draws)]


def test_uniform_levels_cover_their_range_and_change_with_training():
    seen = torch.cat([times.t for times in levels(UniformTimes(), 0, batch=50)])
    assert (int(seen.min()), int(seen.max())) == (20, 980)
    late = score_presets.published("vsd", renders=object()).times
    assert max(int(times.t.max()) for times in levels(late, 499, batch=20)) > 900
    assert max(int(times.t.max()) for times in levels(late, 500, batch=20)) <= 500


def test_interval_levels_follow_the_published_warm_up():
    """t up to 980 and interval 100 at first; 500 and 80 after 750 of 2500 steps; one t for the batch."""
    sampler = score_presets.published("tsm").times
    for now, highest, interval in ((0, 980, 100), (375, 740, 90), (750, 500, 80), (2000, 500, 80)):
        drawn = levels(sampler, now, batch=3)
        assert 0.9 * highest < max(int(times.t.max()) for times in drawn) <= highest
        assert all(len(set(times.t.tolist())) == 1 for times in drawn)
        assert {int(d) for times in drawn for d in times.t - times.s if int(times.s.min()) > 0} == {interval}
    plain = replace(sampler, interval=Ramp(100, 80, over=0.3))
    ceiled = replace(plain, rounding="ceil")
    widths = [int((s.t - s.s)[0]) for times in (plain, ceiled) for s in levels(times, 10, draws=50) if int(s.s[0]) > 0]
    assert set(widths) == {99, 100}


def test_consistency_levels_follow_the_published_schedule():
    for now, cleaner in ((0, 700), (625, 400), (2500, 100)):
        drawn = levels(ConsistencyTimes(), now, batch=20)
        gaps = torch.cat([times.t - times.s for times in drawn])
        assert {int(times.s[0]) for times in drawn} == {cleaner}
        assert int(gaps.min()) == 100 and int(gaps.max()) == min(299, 980 - cleaner)
    linear = levels(ConsistencyTimes(anneal="linear"), 625, draws=1)[0]
    assert int(linear.s[0]) == 550


def test_scheduled_numbers():
    ramp = Ramp(10.0, 20.0, over=0.5)
    assert [ramp.at(Progress(now, 100)) for now in (0, 25, 50, 100)] == [10.0, 15.0, 20.0, 20.0]
    assert Ramp(0.0, 1.0, curve="sqrt").at(Progress(25, 100)) == 0.5
    assert [Switch(1.0, 2.0, 0.2).at(Progress(now, 100)) for now in (19, 20)] == [1.0, 2.0]
    assert [int(x.t[0]) for now in (0, 50, 100) for x in levels(AnnealedTimes(980, 20), now, 100, 1)] == [980, 500, 20]


def test_ranges_that_are_empty_are_refused():
    with pytest.raises(UserError, match="low to high"):
        UniformTimes(500, 20).sample(Progress(), 1, SCHEDULE, torch.Generator())
    with pytest.raises(UserError, match="does not fit"):
        ConsistencyTimes(gap=900, low=100, high=980).sample(Progress(), 1, SCHEDULE, torch.Generator())
    with pytest.raises(UserError, match="two noise levels"):
        step(ISM(), gaussian(), times=At(T, None))


# ---- switches between papers and codes


def test_gamma_of_paper_and_code():
    assert from_paper_gamma(0.3) == 0.3
    assert from_code_gamma(0.3) == pytest.approx(0.954, abs=1e-3)
    assert (from_code_gamma(1.0), from_code_gamma(0.0)) == (0.0, 1.0)
    middle = TSM(from_paper_gamma(0.3)).middle(At().sample(None, 3, SCHEDULE, None))
    assert middle.tolist() == [324, 331, 760]
    with pytest.raises(UserError, match="between 0 and 1"):
        TSM(1.2)


def test_the_state_of_sdis_port_is_the_formulas_where_inversion_stops_at_t():
    """With a stride of one level there is nothing to overshoot."""
    noise = Inverted(steps=1000, entropy=0.0)
    x0, times = X0[:1], At(torch.tensor([12]), None)
    formula, port = (step(SDI(7.5, noise, state=state), mixture(), x0, times) for state in ("formula", "port"))
    close(port.gradient, formula.gradient)
    coarse = [step(SDI(7.5, Inverted(10, entropy=0.0), state=s), mixture()).gradient for s in ("formula", "port")]
    assert float((coarse[0] - coarse[1]).abs().max()) > 1e-3
    with pytest.raises(UserError, match="inverted noise"):
        SDI(noise=Given(KAPPA), state="port")


def test_switches_that_do_not_exist_are_refused():
    for make in (lambda: CDS(sign="mine"), lambda: CDS(solver="mine"), lambda: SDI(state="mine")):
        with pytest.raises(UserError):
            make()
    with pytest.raises(UserError, match="weights are"):
        weight_of("mine", T, SCHEDULE)
    with pytest.raises(UserError, match="reductions are"):
        step(SDS(7.5), gaussian()).loss("mine")


def test_heuns_step_is_of_second_order():
    """On a Gaussian the exact flow is known; halving the interval divides Euler's error by 4, Heun's by 8."""
    errors = {}
    for solver in ("euler", "heun"):
        for s in (440, 470):
            t, cleaner = torch.full((3,), 500), torch.full((3,), s)
            out = step(CDS(1.0, noise=Given(KAPPA), solver=solver), gaussian(), times=At(t, cleaner))
            b, a = (SCHEDULE.sigma(level, X0) for level in (t, cleaner))
            mean = gaussian().means["y"]
            exact = (X0 + b * KAPPA - mean) * torch.sqrt((0.35**2 + a**2) / (0.35**2 + b**2))
            z_s = out.b * (0.35**2 + a**2) / a
            errors[solver, s] = float((z_s - exact).norm())
    assert errors["euler", 440] / errors["euler", 470] == pytest.approx(4, rel=0.25)
    assert errors["heun", 440] / errors["heun", 470] == pytest.approx(8, rel=0.25)


def test_weights_by_name():
    abar = SCHEDULE.abar(T)
    close(weight_of("uniform", T, SCHEDULE), torch.ones(3, **DOUBLE))
    close(weight_of("one_minus_abar", T, SCHEDULE), 1 - abar)
    close(weight_of("fantasia3d", T, SCHEDULE), abar.sqrt() * (1 - abar))
    close(weight_of("sigma", T, SCHEDULE), ((1 - abar) / abar).sqrt())


def test_the_gradient_is_linear_in_the_weight_and_clipped_after_it():
    plain = step(CDS(7.5, noise=Given(KAPPA)), gaussian())
    weighted = step(CDS(7.5, "one_minus_abar", Given(KAPPA)), gaussian())
    close(weighted.gradient, (1 - SCHEDULE.abar(T, X0)) * plain.gradient)
    limit = float(weighted.gradient.abs().median())
    cut = step(CDS(7.5, "one_minus_abar", Given(KAPPA)), gaussian(), transforms=(Clip("element", limit),))
    close(cut.gradient, weighted.gradient.clamp(-limit, limit))
    ramped = Clip("element", Ramp(2.0, 8.0))
    assert float(ramped(torch.full((1, 1, 1, 1), 99.0), Progress(50, 100))) == 5.0


# ---- clips (identity 15)

MODES = ("pixel", "element", "tensor")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODES), st.floats(1e-3, 10.0), st.integers(0, 50), st.floats(-3, 3))
def test_clips_bound_leave_small_gradients_and_are_idempotent(mode, limit, seed, size):
    gradient = draw(seed, 2, 3, 4, 4) * 10**size
    cut = clipped(gradient, mode, limit)
    assert float(cut.abs().max()) <= limit * (1 + 1e-12)
    torch.testing.assert_close(clipped(cut, mode, limit), cut, rtol=1e-12, atol=0)
    small = gradient * (0.99 * limit / float(gradient.abs().max()))
    assert torch.equal(clipped(small, mode, limit), small)


@given(st.floats(1e-3, 1.0), st.integers(0, 50))
def test_pixel_clip_keeps_each_pixels_direction_and_tensor_clip_the_whole(limit, seed):
    gradient = draw(seed, 2, 3, 4, 4)
    ratio = clipped(gradient, "pixel", limit) / gradient
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-10, atol=0)
    assert float(ratio.min()) > 0
    assert bool((ratio[:, 0] == 1).eq(gradient.abs().amax(1) <= limit).all())
    whole = clipped(gradient, "tensor", limit) / gradient
    torch.testing.assert_close(whole, whole.flatten()[0].expand_as(whole), rtol=1e-10, atol=0)
    last = clipped(gradient.movedim(1, -1), "pixel", limit, channel_axis=-1)
    torch.testing.assert_close(last.movedim(-1, 1), clipped(gradient, "pixel", limit))


@pytest.mark.parametrize("mode", (*MODES, "none"))
def test_zero_gradients_stay_zero(mode):
    assert torch.equal(clipped(torch.zeros(1, 3, 2, 2), mode, 0.1), torch.zeros(1, 3, 2, 2))


def test_clips_inside_a_backward_see_the_sum_of_all_losses():
    image = draw(3, 1, 3, 4, 4).requires_grad_()
    seen = clip_backward(image, "pixel", torch.tensor(0.5))
    assert torch.equal(seen, image)
    weights = draw(4, 1, 3, 4, 4)
    ((seen * weights).sum() + (seen * 3 * weights).sum()).backward()
    close(image.grad, clipped(4 * weights, "pixel", 0.5))


def test_clips_without_a_limit_or_a_mode_are_refused():
    with pytest.raises(UserError, match="above 0"):
        clipped(torch.ones(1, 1, 1, 1), "pixel", 0.0)
    with pytest.raises(UserError, match="gradient clips are"):
        clipped(torch.ones(1, 1, 1, 1), "mine", 1.0)


# ---- the loop


def test_values_that_are_not_finite_become_zero_and_are_counted():
    prior = gaussian()
    broken = KAPPA.clone()
    broken[0, 0, 0, 0], broken[1, 2, 1, 1] = math.nan, math.inf
    out = step(SDS(7.5, noise=Given(broken)), prior)
    assert out.replaced == 2 and bool(torch.isfinite(out.gradient).all())
    assert float(out.gradient[0, 0, 0, 0]) == 0.0


def test_diagnostics():
    first = step(SDS(7.5, "sigma", Given(KAPPA)), gaussian())
    z = X0 + SCHEDULE.sigma(T, X0) * KAPPA
    close(first.target, z - SCHEDULE.sigma(T, X0) * first.a)
    again = step(SDS(7.5, "sigma", Given(KAPPA)), gaussian(), previous=first.gradient)
    opposite = step(SDS(7.5, "sigma", Given(KAPPA)), gaussian(), previous=-first.gradient)
    assert again.cosine_to_previous == pytest.approx(1.0) and opposite.cosine_to_previous == pytest.approx(-1.0)
    assert first.residual_norm == pytest.approx(float((first.a - first.b).square().mean().sqrt()))
    assert first.cosine_to_previous is None


def test_noise_per_view_needs_views():
    with pytest.raises(UserError, match="view id"):
        step(CDS(7.5, noise=FixedPerView()), gaussian())
    out = step(CDS(7.5, noise=FixedPerView()), gaussian(), view_ids=torch.tensor([0, 1, 2]))
    assert out.gradient.shape == X0.shape


def test_the_first_noise_of_an_inversion_is_small_and_fresh():
    still, noised = ISM(inversion=CLEAN), ISM()
    close(step(still, mixture(), seed=1).gradient, step(still, mixture(), seed=2).gradient, 0)
    one, two = (step(noised, mixture(), seed=seed).gradient for seed in (1, 2))
    reference = step(still, mixture()).gradient
    assert 0 < float((one - two).norm()) < 0.5 * float(reference.norm())


# ---- presets


@pytest.mark.parametrize("name", score_presets.PUBLISHED)
@pytest.mark.parametrize("prior", PRIORS)
def test_every_preset_runs_as_published_and_on_equal_terms(name, prior):
    objective = score_presets.published(name)
    equal = score_presets.on_equal_terms(objective, AnnealedTimes(700, 20), guidance=7.5)
    teacher = PRIORS[prior]()
    prompts = {r: teacher.describe([t]) for r, t in (("wanted", "y"), ("empty", ""), ("unwanted", "bad"))}
    for chosen in (objective, equal):
        generator = torch.Generator().manual_seed(0)
        out = distill(chosen, teacher, X0, prompts, generator, Progress(100, 1000))
        assert out.replaced == 0 and float(out.gradient.abs().max()) > 0
    assert out.times.t.tolist() == [632] * 3 and equal.method.guidance == 7.5


def test_equal_terms_keep_intervals():
    for name, width in (("ism", 93), ("cds", 100)):
        equal = score_presets.on_equal_terms(score_presets.published(name), AnnealedTimes(700, 20))
        times = equal.times.sample(Progress(100, 1000), 2, SCHEDULE, torch.Generator())
        assert (times.t - times.s).tolist() == [width] * 2


def test_presets_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="methods are"):
        score_presets.published("mine")
    with pytest.raises(UserError, match="model of the renders"):
        score_presets.published("vsd")
    with pytest.raises(UserError, match="has no"):
        score_presets.on_equal_terms(score_presets.published("sds"), UniformTimes(), strength=1.0)


# ---- VSD and Uni-Instruct


def test_importance_weights_are_r_times_the_second_derivative():
    """W_f = r f''(r) for D_f = E_p f(r), by automatic differentiation of the four f."""
    functions = {
        "kl": lambda r: r * torch.log(r),
        "reverse-kl": lambda r: -torch.log(r),
        "jeffreys": lambda r: (r - 1) * torch.log(r),
        "chi2": lambda r: (r - 1) ** 2,
    }
    r = torch.tensor([0.2, 1.0, 3.0], **DOUBLE, requires_grad=True)
    for name, f in functions.items():
        (first,) = torch.autograd.grad(f(r).sum(), r, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), r)
        close(importance(name, r.detach()), (r * second).detach())


class Constant:
    """psi that sees the same noise everywhere."""

    def eps(self, z, level, teacher):
        return torch.full_like(z, 0.25)

    def learn(self, x0, teacher):
        return 0.5


def test_importance_scales_the_residual_of_vsd():
    def ratio(z, level):
        return torch.tensor([0.5, 1.0, 2.5], **DOUBLE)

    kl = step(VSD(Constant(), noise=Given(KAPPA)), gaussian())
    chi2 = step(VSD(Constant(), noise=Given(KAPPA), divergence="chi2", ratio=ratio, normalised=False), gaussian())
    close(chi2.gradient, 2 * ratio(None, None).reshape(3, 1, 1, 1) * kl.gradient)
    shares = step(VSD(Constant(), noise=Given(KAPPA), divergence="chi2", ratio=ratio), gaussian())
    close(shares.gradient, chi2.gradient / (2 * (0.5 + 1.0 + 2.5) / 3))
    assert (kl.evaluations, kl.own_evaluations, kl.own_loss) == (6, 6, 0.5)
    with pytest.raises(UserError, match="needs the ratio"):
        VSD(Constant(), divergence="chi2")
    with pytest.raises(UserError, match="divergences are"):
        VSD(Constant(), divergence="mine")


class Affine(torch.nn.Module):
    """A network too small for the score of one grey picture at every level, but better after training."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.bias = torch.nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, x_t, timestep, condition):
        return self.gain * x_t + self.bias


def network_prior() -> NetworkPrior:
    def describe(prompts):
        return Condition(pooled=torch.zeros(len(prompts), 1))

    return NetworkPrior(Affine(), SCHEDULE, PixelCodec(4, 4), describe)


def test_the_render_network_learns_and_leaves_prior_and_renders_alone():
    prior = network_prior()
    psi = RenderNetwork(prior, learning_rate=0.02)
    objective = Objective(VSD(psi, 1.0), UniformTimes(20, 500))
    prompts = {"wanted": prior.describe(["y"]), "unwanted": prior.describe([""])}
    images = torch.full((16, 3, 4, 4), 0.9).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    level = torch.linspace(20, 900, 16).long()
    noise = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    z = prior.encode(images).detach() + SCHEDULE.sigma(level, noise) * noise

    def error(model):
        return float((model.eps(z, level, prior.describe(["y"] * 16)) - noise).square().mean())

    before = error(psi.model)
    assert before == error(prior)
    for _ in range(40):
        out = distill(objective, prior, images, prompts, generator)
        assert out.own_loss > 0
    assert error(psi.model) < 0.75 * before
    assert error(prior) == before
    assert all(parameter.grad is None for parameter in prior.network.parameters())
    assert float(prior.network.gain.detach()) == 1.0 and images.grad is None
    assert float(out.gradient.abs().max()) > 0 and out.own_evaluations == 32


def test_a_prior_without_a_trainable_network_is_refused():
    prior = replace(network_prior(), network=lambda x_t, timestep, condition: x_t)
    with pytest.raises(UserError, match="torch module"):
        RenderNetwork(prior)


def test_shapes_of_the_rig_are_what_the_tests_assume():
    assert X0.shape == (3, *SHAPE) and bool((T > S).all())
    assert isinstance(score_presets.published("tsm").times, IntervalTimes)
