import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scene_distill.core.gaussians import Gaussians
from scene_distill.nets.gaussian_decoder import make_decoder
from scene_distill.objectives.momentum import MomentumTeacher, block_weight, consistency


def gaussians(seed: int, count: int = 40) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    quats = torch.nn.functional.normalize(draw(count, 4), dim=1)
    return Gaussians(draw(count, 3), quats, draw(count, 3).exp(), draw(count).tanh(), draw(count, 3).sigmoid())


def spelled_out(student: Gaussians, teacher: Gaussians) -> torch.Tensor:
    """The four terms of the paper's section 3.3, one line each, in float64."""
    s, t = ([x.double() for x in (g.scales, g.quats, g.opacities, g.features)] for g in (student, teacher))
    drawn = s[2] > 0
    sign = torch.where((s[1] * t[1]).sum(1, keepdim=True) < 0, -1.0, 1.0)
    color = ((s[3] - t[3])[drawn] ** 2).mean()
    rotation = ((s[1] - sign * t[1])[drawn] ** 2).mean()
    size = ((s[0] - t[0])[drawn] ** 2).mean()
    return color + rotation + size + ((s[2] - t[2]) ** 2).mean()


def test_consistency_is_the_sum_of_its_four_terms():
    student, teacher = gaussians(0), gaussians(1)
    expected = spelled_out(student, teacher)
    assert float(consistency(student, teacher)) == pytest.approx(float(expected), rel=1e-5)


def test_consistency_with_oneself_and_with_flipped_quaternions_is_zero():
    g = gaussians(2)
    flipped = Gaussians(g.means, -g.quats, g.scales, g.opacities, g.features)
    assert float(consistency(g, g)) == 0.0
    assert float(consistency(g, flipped)) == pytest.approx(0.0, abs=1e-12)


def test_nothing_drawn_leaves_only_the_opacity_term():
    student, teacher = gaussians(3), gaussians(4)
    student = Gaussians(student.means, student.quats, student.scales, -student.opacities.abs(), student.features)
    expected = ((student.opacities - teacher.opacities) ** 2).mean()
    assert float(consistency(student, teacher)) == pytest.approx(float(expected), rel=1e-5)


def test_the_teacher_forgets_geometrically():
    student = make_decoder(0, color_init=False)
    teacher = MomentumTeacher(student, 0.9)
    target = make_decoder(1, color_init=False)
    for _ in range(7):
        teacher.follow(target)
    for begun, now, aim in zip(student.weights, teacher.decoder.weights, target.weights, strict=True):
        torch.testing.assert_close(now, aim + 0.9**7 * (begun - aim), rtol=1e-5, atol=1e-6)
    assert all(not weight.requires_grad for weight in teacher.decoder.weights)


def test_momentum_zero_is_a_copy_of_the_student():
    teacher = MomentumTeacher(make_decoder(0, color_init=True), 0.0)
    student = make_decoder(5, color_init=True)
    teacher.follow(student)
    assert all(torch.equal(a, b) for a, b in zip(teacher.decoder.weights, student.weights, strict=True))


scores = st.dictionaries(st.integers(0, 9), st.tuples(st.floats(5, 40), st.floats(0, 1)), min_size=1)


@given(scores, st.floats(1, 20))
def test_weights_lie_in_one_to_two_and_the_best_block_has_one(table, sigma):
    weights = {block: block_weight(table, block, sigma) for block in table}
    assert all(1.0 <= weight <= 2.0 for weight in weights.values())
    best = max(table, key=lambda block: table[block])
    if table[best][1] == max(ssim for _, ssim in table.values()):
        assert weights[best] == 1.0
    assert block_weight(table, 10, sigma) == 1.0


def test_weight_of_the_spec_example():
    """A deficit of 3 dB and 0.05 gives 1.03 to 1.06 for sigma 13 to 9 (specification, section 3.4)."""
    table = {0: (27.0, 0.85), 1: (24.0, 0.80)}
    assert block_weight(table, 1, 9.0) == pytest.approx(2 - math.exp(-(9 + 0.25) / 162), rel=1e-12)
    assert 1.025 < block_weight(table, 1, 13.0) < block_weight(table, 1, 9.0) < 1.065
    assert block_weight(table, 1, 9.0, "none") == 1.0
    assert block_weight(table, 1, 9.0, "ssim") < block_weight(table, 1, 9.0, "psnr") < block_weight(table, 1, 9.0)
