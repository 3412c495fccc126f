"""Transport objectives against flows of Gaussian data, whose velocity and transport are known in closed form."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scene_distill.core.errors import UserError
from scene_distill.objectives.transport import (
    NORMALISE_OFFSET,
    Derivative,
    largest_correction,
    total_derivative,
    vd_weights,
    velocity_distillation,
    velocity_matching,
)
from scene_distill.objectives.transport_consistency import (
    consistency_distillation,
    continuous_consistency,
    phased_consistency,
)
from scene_distill.objectives.transport_items import Items
from scene_distill.objectives.transport_meanflow import mean_flow, mean_flow_loss
from scene_distill.objectives.transport_times import TimeBins, TransportTimes
from scene_distill.priors.flow import FlowSteps, Guidance, sample, state

DTYPE = torch.float64


@dataclass(frozen=True)
class GaussianFlow:
    """Data N(mean, spread^2) in every dimension: v and phi are linear in x."""

    mean: float = 0.7
    spread: float = 0.4

    def variance(self, t):
        return (1 - t) ** 2 * self.spread**2 + t**2

    def velocity(self, x, t):
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        slope = (t - (1 - t) * self.spread**2) / self.variance(t)
        return slope * (x - (1 - t) * self.mean) - self.mean

    def transport(self, x, t):
        """(x_t - x0) / t with x0 the end of the path through x_t."""
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        x0 = self.mean + self.spread / self.variance(t).sqrt() * (x - (1 - t) * self.mean)
        return (x - x0) / t


class LinearStudent(nn.Module):
    """phi = a(t) x + b(t), with a and b polynomials of t: holds the closed form closely."""

    def __init__(self, degree=7):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(degree + 1, dtype=DTYPE))
        self.b = nn.Parameter(torch.zeros(degree + 1, dtype=DTYPE))

    def forward(self, x, t):
        s = 2 * t.reshape(-1, *[1] * (x.ndim - 1)) - 1
        basis = [torch.ones_like(s), s]
        for _ in range(len(self.a) - 2):
            basis.append(2 * s * basis[-1] - basis[-2])
        return sum(a * x * e + b * e for a, b, e in zip(self.a, self.b, basis, strict=True))


class SmoothStudent(nn.Module):
    def __init__(self, dimensions=3):
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(
            nn.Linear(dimensions + 1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, dimensions)
        ).to(DTYPE)

    def forward(self, x, t):
        return self.layers(torch.cat([x, t[:, None]], 1))


def batch(count=64, dimensions=3, seed=0, earliest=0.05):
    generator = torch.Generator().manual_seed(seed)
    flow = GaussianFlow()
    x0 = flow.mean + flow.spread * torch.randn(count, dimensions, generator=generator, dtype=DTYPE)
    noise = torch.randn(count, dimensions, generator=generator, dtype=DTYPE)
    t = earliest + (1 - earliest) * torch.rand(count, generator=generator, dtype=DTYPE)
    return flow, state(x0, noise, t, 0.0), noise, t


def gradients(loss, module):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])


def test_closed_form_transport_is_where_the_flow_ends():
    flow, _, noise, _ = batch()
    field = lambda x, t, condition: flow.velocity(x, t.to(DTYPE))  # noqa: E731
    fine = sample(field, noise, Guidance(((),)), FlowSteps(500))
    one = sample(lambda x, t, c: flow.transport(x, t.to(DTYPE)), noise, Guidance(((),)), FlowSteps(1))
    torch.testing.assert_close(one, fine, atol=6e-3, rtol=0)


@pytest.mark.parametrize("how", [Derivative("difference", 1e-3), Derivative("jvp")])
def test_closed_form_satisfies_the_identity(how):
    flow, x, _, t = batch()
    found = velocity_matching(flow.transport, flow.velocity, x, t, how)
    assert float(found.residual.abs().max()) < (0.02 if how.kind == "difference" else 1e-10)
    assert float(found.loss) == pytest.approx(float(found.residual.square().mean()))


@pytest.mark.parametrize("how", [Derivative("difference"), Derivative("jvp")])
def test_velocity_matching_converges_to_the_transport(how):
    """For a student linear in its parameters the gradient is A theta + b. All eigenvalues of A have positive real
    parts, so gradient steps converge from anywhere, and where they converge to is the transport."""
    flow, student = GaussianFlow(), LinearStudent()
    _, x, _, t = batch(4096, 1, earliest=0.02)
    count = sum(p.numel() for p in student.parameters())

    def gradient(theta):
        nn.utils.vector_to_parameters(theta, student.parameters())
        return gradients(velocity_matching(student, flow.velocity, x, t, how).loss, student)

    at_zero = gradient(torch.zeros(count, dtype=DTYPE))
    matrix = torch.stack([gradient(unit) - at_zero for unit in torch.eye(count, dtype=DTYPE)], 1)
    assert float(torch.linalg.eigvals(matrix).real.min()) > 0
    assert float(gradient(torch.linalg.solve(matrix, -at_zero)).abs().max()) < 1e-9
    error = (student(x, t) - flow.transport(x, t)).square().mean().sqrt()
    velocity_error = (flow.velocity(x, t) - flow.transport(x, t)).square().mean().sqrt()
    assert float(error.detach()) < 0.01 < 0.03 * float(velocity_error)


def test_small_steps_of_velocity_matching_go_there():
    flow, student = GaussianFlow(), LinearStudent(3)
    _, x, _, t = batch(256, 1, earliest=0.02)
    optimiser, errors = torch.optim.SGD(student.parameters(), 0.2), []
    for _ in range(60):
        optimiser.zero_grad()
        velocity_matching(student, flow.velocity, x, t).loss.backward()
        optimiser.step()
        errors.append(float((student(x, t) - flow.transport(x, t)).detach().square().mean()))
    assert errors[-1] < 0.1 * errors[0]


def test_gradient_is_twice_the_residual_times_the_students_own():
    flow, x, _, t = batch()
    student = SmoothStudent()
    found = velocity_matching(student, flow.velocity, x, t, Derivative("jvp"))
    surrogate = (2 * found.residual * student(x, t)).mean()
    torch.testing.assert_close(gradients(found.loss, student), gradients(surrogate, student))


def test_finite_difference_approaches_the_exact_derivative():
    flow, x, _, t = batch()
    student, v = SmoothStudent(), flow.velocity(x, t)
    exact = total_derivative(student, x, t, v, Derivative("jvp"))
    errors = [
        float((total_derivative(student, x, t, v, Derivative(delta=delta)) - exact).norm())
        for delta in (0.04, 0.02, 0.01, 0.005)
    ]
    for coarse, fine in itertools.pairwise(errors):
        assert fine == pytest.approx(coarse / 2, rel=0.15)
    assert not exact.requires_grad


def test_normalised_derivative_leaves_little():
    flow, x, _, t = batch(16, 400)
    student = SmoothStudent(400)
    plain, bounded = (total_derivative(student, x, t, flow.velocity(x, t), Derivative(normalise=n)) for n in (0, 1))
    size = plain.norm(dim=1, keepdim=True)
    torch.testing.assert_close(bounded, plain / (size + NORMALISE_OFFSET))
    assert float(bounded.square().mean(1).sqrt().max()) <= largest_correction(400)


def test_a_step_that_leaves_the_path_is_refused():
    flow, x, _, t = batch()
    with pytest.raises(UserError, match="leaves the path"):
        velocity_matching(SmoothStudent(), flow.velocity, x, t * 0 + 0.005)


@pytest.mark.parametrize("objective", ["vm", "vd", "cm", "pcm", "scm", "mean flow"])
def test_no_gradient_reaches_the_teacher(objective):
    _, x, noise, t = batch()
    teacher, student = SmoothStudent(), LinearStudent(2)
    with torch.no_grad():
        student.a += 0.1
    losses = {
        "vm": lambda: velocity_matching(student, teacher, x, t),
        "vd": lambda: velocity_distillation(student, teacher, noise, noise.flip(0), t),
        "cm": lambda: consistency_distillation(student, teacher, x, t),
        "pcm": lambda: phased_consistency(student, teacher, x, t, phases=3),
        "scm": lambda: continuous_consistency(student, teacher, x, t),
        "mean flow": lambda: mean_flow(lambda x, r, t: student(x, t), teacher(x, t), x, 0 * t, t),
    }
    losses[objective]().loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and float(p.grad.norm()) > 0 for p in student.parameters())


@pytest.mark.parametrize("weight", ["code", "paper", "kl"])
def test_velocity_distillation_gradient(weight):
    """2 c r dphi(z', 1): the code leaves (1 - t) out, the paper has it, KL of the linear path is (1 - t)^2 / t."""
    flow, _, noise, t = batch()
    student = SmoothStudent()
    start = noise.flip(0)
    found = velocity_distillation(student, flow.velocity, start, noise, t, weight=weight)
    factor = {"code": 2 + 0 * t, "paper": 1 - t, "kl": (1 - t) ** 2 / t}[weight]
    surrogate = (factor[:, None] * found.residual * student(start, torch.ones_like(t))).mean()
    torch.testing.assert_close(gradients(found.loss, student), gradients(surrogate, student))


@given(st.floats(-2, 2), st.floats(0.2, 1.5), st.floats(0.05, 0.99))
@settings(max_examples=15, deadline=None)
def test_velocity_distillation_goes_down_kl(mean, spread, time):
    """One-step samples of N(mean, spread^2) against data N(0.7, spread^2). The slope has the sign of
    d KL(p_t || q_t) / d mean, and is that times dx0/dx_t, because u differentiates along the teacher's path."""
    data = GaussianFlow(0.7, spread)
    place = torch.tensor(mean, dtype=DTYPE, requires_grad=True)
    student = lambda x, t: GaussianFlow(place, spread).transport(x, t)  # noqa: E731
    generator = torch.Generator().manual_seed(1)
    start, noise = torch.randn(2, 8, 1, generator=generator, dtype=DTYPE)
    t = torch.full((8,), time, dtype=DTYPE)
    found = velocity_distillation(student, data.velocity, start, noise, t, Derivative("jvp"), "kl", sigma_min=0.0)
    slope = torch.autograd.grad(found.loss, place)[0]
    kl = (1 - time) ** 2 * (mean - 0.7) / data.variance(torch.tensor(time, dtype=DTYPE))
    factor = spread / data.variance(torch.tensor(time, dtype=DTYPE)).sqrt()
    assert float(slope) == pytest.approx(float(kl * factor), abs=1e-9)


def test_velocity_distillation_vanishes_where_velocity_matching_does():
    flow, _, noise, t = batch()
    found = velocity_distillation(flow.transport, flow.velocity, noise, noise.flip(0), t, Derivative("jvp"))
    assert float(found.residual.abs().max()) < 1e-9


def test_unknown_weight_is_refused():
    with pytest.raises(UserError, match="code, paper, kl"):
        vd_weights("exact", torch.ones(2))


def test_consistency_weighs_the_same_residual_by_t():
    """Its gradient is 2 t delta (u - v) dphi + O(delta^2); velocity matching's, 2 (u - v) dphi."""
    flow, x, _, t = batch()
    student, errors = SmoothStudent(), []
    residual = velocity_matching(student, flow.velocity, x, t, Derivative("jvp")).residual
    expected = gradients((2 * t[:, None] * residual * student(x, t)).mean(), student)
    for delta in (0.02, 0.01, 0.005):
        found = gradients(consistency_distillation(student, flow.velocity, x, t, delta).loss, student) / delta
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


def test_continuous_consistency_without_normalisation_is_velocity_matching():
    flow, x, _, t = batch()
    student, how = SmoothStudent(), Derivative("jvp")
    ours = velocity_matching(student, flow.velocity, x, t, how)
    theirs = continuous_consistency(student, flow.velocity, x, t, how, normalise=False)
    torch.testing.assert_close(gradients(ours.loss, student), gradients(theirs.loss, student))
    bounded = continuous_consistency(student, flow.velocity, x, t, how)
    assert float(bounded.each.max()) <= 1


def test_phases_end_at_their_own_beginnings():
    """The exact transport between two times is consistent in its phase; phases above the first are not those to 0."""
    flow, x, _, t = batch(256)
    begins = ((t * 4).ceil() - 1) / 4

    def phased(x, t):
        begin = ((t * 4 - 1e-12).ceil() - 1).clamp_min(0) / 4
        rows = [v.reshape(-1, 1) for v in (t, begin)]
        scale = (flow.variance(rows[1]) / flow.variance(rows[0])).sqrt()
        end = (1 - rows[1]) * flow.mean + scale * (x - (1 - rows[0]) * flow.mean)
        return (x - end) / (rows[0] - rows[1]).clamp_min(1e-9)

    inside = t - begins > 0.02
    good = phased_consistency(phased, flow.velocity, x[inside], t[inside], 0.005, 4)
    bad = phased_consistency(flow.transport, flow.velocity, x[inside], t[inside], 0.005, 4)
    assert float(good.each.max()) < 1e-7 < float(bad.each.mean())


def test_mean_flow_with_r_0_is_velocity_matching():
    flow, x, _, t = batch()
    student = SmoothStudent()
    ours = velocity_matching(student, flow.velocity, x, t, Derivative("jvp"))
    theirs = mean_flow(lambda x, r, t: student(x, t) + 0 * r[:, None], flow.velocity(x, t), x, torch.zeros_like(t), t)
    torch.testing.assert_close(ours.each, theirs.each)
    torch.testing.assert_close(gradients(ours.loss, student), gradients(theirs.loss, student))


def test_mean_flow_identity_between_any_two_times():
    flow, x, _, t = batch()
    r = 0.6 * t

    def between(x, r, t):
        r, t = r[:, None], t[:, None]
        scale = (flow.variance(r) / flow.variance(t)).sqrt()
        return (x - ((1 - r) * flow.mean + scale * (x - (1 - t) * flow.mean))) / (t - r)

    found = mean_flow(between, flow.velocity(x, t), x, r, t)
    assert float(found.residual.abs().max()) < 1e-9
    each = torch.tensor([0.5, 2.0], dtype=DTYPE, requires_grad=True)
    mean_flow_loss(each).backward()
    torch.testing.assert_close(each.grad, 0.5 / (each.detach() + 1e-3))


def test_two_euler_steps_hurt_a_converged_student_and_renoising_does_not():
    """The mean of samples stays; their spread shrinks under Euler, because the point on the way is not fresh noise."""
    flow = GaussianFlow()
    noise = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    field = lambda x, t, condition: flow.transport(x, t.to(DTYPE))  # noqa: E731
    spreads = {}
    for sampler in ("euler", "renoise"):
        x = sample(field, noise, Guidance(((),)), FlowSteps(2, 1.0, sampler), torch.Generator().manual_seed(1))
        spreads[sampler] = float(x.std())
    assert spreads["renoise"] == pytest.approx(flow.spread, rel=0.02)
    assert abs(spreads["euler"] - flow.spread) > 0.1 * flow.spread


def test_sparse_items_weigh_objects_equally():
    """Objects of 2 and 30 rows give the losses they give alone."""
    flow, x, noise, _ = batch(32)
    t = torch.tensor([0.4, 0.8], dtype=DTYPE)
    item = torch.tensor([0, 0] + [1] * 30)
    items = Items(item, 2)
    student = SmoothStudent()
    wide = lambda network: lambda x, t: network(x, t[item] if len(t) == 2 else t)  # noqa: E731
    for normalise in (False, True):
        how = Derivative(normalise=normalise)
        found = velocity_matching(wide(student), wide(flow.velocity), x, t, how, items)
        for k, rows in enumerate((slice(0, 2), slice(2, 32))):
            x_k = x[rows][None]
            alone = lambda network: lambda x, t: network(x[0], t.expand(x.shape[1]))[None]  # noqa: E731
            single = velocity_matching(alone(student), alone(flow.velocity), x_k, t[k : k + 1], how)
            torch.testing.assert_close(found.each[k], single.each[0])
    drawn = velocity_distillation(wide(student), wide(flow.velocity), noise, x, t, items=items)
    assert drawn.each.shape == (2,)


@pytest.mark.parametrize("law", ["uniform", "logit-normal"])
def test_times_stay_on_the_path_and_lean_as_they_should(law):
    t = TransportTimes(law, 0.01).draw(20000, torch.Generator().manual_seed(0))
    assert float(t.min()) >= 0.01 and float(t.max()) <= 1
    assert float(t.mean()) == pytest.approx({"uniform": 0.505, "logit-normal": 0.70}[law], abs=0.01)


def test_losses_by_bin_of_t():
    bins = TimeBins(4)
    sums = bins.sums(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0]))
    assert bins.means(sums) == {"t 0.00-0.25": 2.0, "t 0.75-1.00": 5.0}
