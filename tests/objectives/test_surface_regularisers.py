"""Regularisers of meshes and fields against values that are known."""

import math

import pytest
import torch

from scene_distill.objectives.field_regularity import opacity_entropy, opacity_size, orientation, variation
from scene_distill.objectives.mesh_smoothness import laplacian, normal_consistency, sign_agreement
from scene_distill.renderers.mesh_visibility import neighbours

TENT = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.5, 1, 0], [0.5, -1, 0]], dtype=torch.float64)
FACES = torch.tensor([[0, 1, 2], [1, 0, 3]])


def folded(angle: float) -> torch.Tensor:
    """Two triangles with ``angle`` degrees between their normals."""
    corners = TENT.clone()
    a = math.radians(angle)
    corners[3] = torch.tensor([0.5, -math.cos(a), -math.sin(a)], dtype=torch.float64)
    return corners


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_normal_consistency_is_one_minus_the_cosine(angle: float) -> None:
    found = normal_consistency(folded(angle), FACES, neighbours(FACES))
    assert float(found) == pytest.approx(1 - math.cos(math.radians(angle)), abs=1e-12)
    corners = folded(angle + 20).requires_grad_()
    normal_consistency(corners, FACES, neighbours(FACES)).backward()
    moved = corners.detach() - 0.01 * corners.grad  # type: ignore[operator]
    assert float(normal_consistency(moved, FACES, neighbours(FACES))) < float(
        normal_consistency(corners.detach(), FACES, neighbours(FACES))
    )


def test_laplacian_is_zero_in_the_middle_of_neighbours_and_scales_with_the_length() -> None:
    ring = [[math.cos(a), math.sin(a), 0.0] for a in torch.linspace(0, 2 * math.pi, 7)[:-1].tolist()]
    vertices = torch.tensor([[0.0, 0, 0], *ring], dtype=torch.float64)
    faces = torch.tensor([[0, 1 + k, 1 + (k + 1) % 6] for k in range(6)])
    flat = laplacian(vertices, faces, 1.0)
    lifted = vertices.clone()
    lifted[0, 2] = 0.3
    own = float((laplacian(lifted, faces, 1.0) - flat) * 7)
    # The middle is 0.3 off; each of the ring counts the middle twice among four neighbours: 0.15 off.
    assert own == pytest.approx(0.3**2 + 6 * 0.15**2)
    assert float(laplacian(lifted, faces, 2.0)) == pytest.approx(float(laplacian(lifted, faces, 1.0)) / 4)


def test_sign_agreement_asks_both_ends_to_follow_each_other() -> None:
    sdf = torch.tensor([-1.0, 2.0], dtype=torch.float64, requires_grad=True)
    found = sign_agreement(sdf, torch.tensor([[0, 1]]), 1.0)
    assert float(found.detach()) == pytest.approx(math.log(1 + math.exp(1)) + math.log(1 + math.exp(2)))
    found.backward()
    assert sdf.grad is not None and float(sdf.grad[0]) < 0 < float(sdf.grad[1])
    assert float(sign_agreement(sdf, torch.zeros(0, 2, dtype=torch.int64), 1.0).detach()) == 0


def test_orientation_counts_only_what_faces_away_and_leaves_weights_alone() -> None:
    normals = torch.tensor([[0.0, 0, 3], [0, 0, -2], [0, 1, 0]], requires_grad=True)
    away = torch.tensor([[0.0, 0, 1]] * 3)
    weights = torch.tensor([0.5, 0.25, 1.0], requires_grad=True)
    found = orientation(normals, away, weights, 2)
    assert float(found.detach()) == pytest.approx(0.25)
    found.backward()
    assert weights.grad is None


def test_opacities_and_variation() -> None:
    assert float(opacity_size(torch.zeros(3))) == pytest.approx(0.1)
    assert float(opacity_entropy(torch.full((2,), 0.5))) == pytest.approx(math.log(2))
    assert float(opacity_entropy(torch.tensor([0.0, 1.0]))) < 0.01
    ramp = torch.arange(4.0)[:, None, None, None].expand(4, 4, 4, 2)
    assert float(variation(ramp)) == pytest.approx(1.0)
    assert float(variation(torch.ones(3, 3, 3, 4))) == 0
