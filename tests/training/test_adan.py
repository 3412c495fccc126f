"""Adan against its formulas written out, and on a quadratic."""

import torch

from scene_distill.training.adan import BETAS, DECAY, EPSILON, AdanMoments


def test_two_steps_are_the_papers_formulas() -> None:
    b1, b2, b3 = BETAS
    x, gradients = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([[0.5, -1.0], [0.2, 3.0]]).double()
    moments, value = AdanMoments.zeros_like(x), x.clone()
    m = v = n = last = torch.zeros(2, dtype=torch.float64)
    for step, g in enumerate(gradients, 1):
        moments.step(value, g, 0.1, step)
        change = g - last if step > 1 else torch.zeros(2, dtype=torch.float64)
        m, v, last = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * change, g
        n = b3 * n + (1 - b3) * (g + b2 * change) ** 2
        wanted = m / (1 - b1**step) + b2 * v / (1 - b2**step)
        x = (x - 0.1 * wanted / ((n / (1 - b3**step)).sqrt() + EPSILON)) / (1 + 0.1 * DECAY)
    torch.testing.assert_close(value, x)


def test_it_goes_to_the_bottom_and_on_from_a_saved_state() -> None:
    target = torch.tensor([3.0, -1.0, 0.5])
    value, moments = torch.zeros(3), AdanMoments.zeros_like(torch.zeros(3))
    for step in range(1, 201):
        if step == 100:
            moments = AdanMoments.from_state(moments.state("a"), "a")
        moments.step(value, value - target, 0.1 * (1 - step / 220), step)
    assert float((value - target).norm()) < 0.15 * float(target.norm())
