"""Local volumes against their formula, written out."""

import torch

from scene_distill.representations.trivectors import TrivectorField


def test_density_and_colour_are_the_written_out_formula():
    torch.manual_seed(0)
    places = torch.tensor([[1, 2, 3], [0, 0, 0]])
    field = TrivectorField(4, places, torch.randn(2, 5, 3, 8), torch.randn(2, 5), torch.randn(2, 5, 3))
    point = torch.tensor([[1.3, 2.6, 3.9]]) / 4 - 0.5
    density, color = field.at(torch.cat([point, torch.tensor([[0.3, 0.3, 0.3], [0.7, 0.0, 0.0]])]))
    product = torch.ones(5)
    for axis, u in enumerate((0.3, 0.6, 0.9)):
        low = int(u * 7)
        share = u * 7 - low
        product = product * (field.vectors[0, :, axis, low] * (1 - share) + field.vectors[0, :, axis, low + 1] * share)
    assert torch.allclose(density[0], torch.nn.functional.softplus((field.densities[0] * product).sum()), atol=1e-5)
    assert torch.allclose(color[0], (field.colors[0] * product[:, None]).sum(0).sigmoid(), atol=1e-5)
    assert density[1:].tolist() == [0, 0] and color[1:].abs().max() == 0


def test_gradients_reach_the_vectors():
    vectors = torch.ones(1, 2, 3, 4, requires_grad=True)
    field = TrivectorField(2, torch.tensor([[1, 1, 1]]), vectors, torch.ones(1, 2), torch.ones(1, 2, 3))
    density, color = field.at(torch.tensor([[0.25, 0.3, 0.1]]))
    (density.sum() + color.sum()).backward()
    assert vectors.grad is not None and bool((vectors.grad != 0).any())
