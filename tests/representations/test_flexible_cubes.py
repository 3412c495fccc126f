"""Surfaces of cubes: closed, outwards, near the shape, and with the weights where the formulas have them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.representations.flexible_cubes import CORNERS, EDGES, FlexibleCubes, _patches


def cubes_of(distance, resolution: int, places: torch.Tensor | None = None, **changes) -> FlexibleCubes:
    """Cubes with the distance [..., 3] -> [...] at their corners, weights 1 and positions as colours."""
    if places is None:
        places = torch.tensor(list(itertools.product(range(resolution), repeat=3)))
    corners = (places[:, None] + torch.tensor(CORNERS)) / resolution - 0.5
    count = len(places)
    values = dict(
        resolution=resolution,
        places=places,
        distances=distance(corners.double()),
        offset_logits=torch.zeros(count, 8, 3, dtype=torch.float64),
        corner_weights=torch.ones(count, 8, dtype=torch.float64),
        edge_weights=torch.ones(count, 12, dtype=torch.float64),
        split_weights=torch.full((count,), 0.5, dtype=torch.float64),
        attribute_logits=corners.double(),
    )
    return FlexibleCubes(**{**values, **changes})


def ball(points):
    return points.norm(dim=-1) - 0.31


def torus(points):
    return torch.hypot(torch.hypot(points[..., 0], points[..., 1]) - 0.28, points[..., 2]) - 0.12


def require_closed(faces: np.ndarray) -> None:
    """Every directed edge has its opposite exactly once."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    forward, counts = np.unique(edges, axis=0, return_counts=True)
    assert counts.max() == 1
    assert {tuple(e) for e in forward.tolist()} == {(b, a) for a, b in forward.tolist()}


@pytest.mark.parametrize(
    ("shape", "euler", "volume"),
    [(ball, 2, 4 / 3 * np.pi * 0.31**3), (torus, 0, 2 * np.pi**2 * 0.28 * 0.12**2)],
)
def test_known_shapes_are_closed_and_as_large_as_they_should_be(shape, euler, volume):
    mesh = cubes_of(shape, 24).surface().mesh()
    require_closed(mesh.faces)
    assert len(mesh.vertices) - 3 * len(mesh) // 2 + len(mesh) == euler
    corners = mesh.corners
    signed = np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    assert signed == pytest.approx(volume, rel=0.06)  # positive: faces look outwards
    assert np.abs(shape(torch.from_numpy(mesh.vertices))).max() < 0.01


def test_colours_are_interpolated_like_positions():
    surface = cubes_of(ball, 12).surface()
    assert torch.allclose(surface.attributes.logit(), surface.vertices, atol=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999))
def test_random_signs_give_closed_surfaces(seed):
    generator = torch.Generator().manual_seed(seed)
    lattice = torch.randn(6, 6, 6, generator=generator, dtype=torch.float64).abs() + 0.05
    lattice[1:5, 1:5, 1:5] *= torch.randn(4, 4, 4, generator=generator, dtype=torch.float64).sign()

    def distance(points):
        index = ((points + 0.5) * 5).round().long()
        return lattice[index[..., 0], index[..., 1], index[..., 2]]

    weights = torch.rand(125, 12, generator=generator, dtype=torch.float64) + 0.01
    surface = cubes_of(distance, 5, edge_weights=weights).surface()
    edges = torch.cat([surface.faces[:, [0, 1]], surface.faces[:, [1, 2]], surface.faces[:, [2, 0]]])
    balance: dict[tuple[int, int], int] = {}
    for a, b in edges.tolist():
        balance[(min(a, b), max(a, b))] = balance.get((min(a, b), max(a, b)), 0) + (1 if a < b else -1)
    assert not any(balance.values())  # a boundary would leave an edge with a face on one side only
    assert surface.vertices.abs().max() <= 0.5


def test_every_patch_is_one_ring_and_a_case_without_cuts_has_none():
    table = _patches()
    assert (table[0] == -1).all() and (table[255] == -1).all()
    for case in range(1, 255):
        cut = [(case >> a & 1) != (case >> b & 1) for a, b in EDGES]
        assert ((table[case] >= 0) == torch.tensor(cut)).all()
        sizes = torch.bincount(table[case][table[case] >= 0])
        assert sizes.min() >= 3
    both = 1 << 0 | 1 << 7  # opposite corners: two triangles
    assert torch.bincount(table[both][table[both] >= 0]).tolist() == [3, 3]


def test_the_weights_move_the_surface_as_the_formulas_say():
    corner = torch.tensor([[0, 0, 0]])

    def first(points):  # only corner 0 is inside
        return torch.where((points == -0.5).all(-1), -1.0, 1.0).double()

    def vertex(**changes):
        cubes = cubes_of(first, 1, corner, **changes)
        from scene_distill.representations import flexible_cubes as module

        return module._vertices(module._crossed(cubes, module._merged(cubes)))[0][0, :3]

    ones = torch.ones(1, 8, dtype=torch.float64)
    assert torch.allclose(vertex(), torch.full((3,), 1 / 6 - 0.5, dtype=torch.float64))
    alphas = ones.clone()
    alphas[0, 0] = 3.0  # u = (3 * 1) / (3 + 1) along each edge
    assert torch.allclose(vertex(corner_weights=alphas), torch.full((3,), 0.25 - 0.5, dtype=torch.float64))
    betas = torch.ones(1, 12, dtype=torch.float64)
    betas[0, EDGES.index((0, 1))] = 4.0
    expected = torch.tensor([4 * 0.5 / 6, 0.5 / 6, 0.5 / 6], dtype=torch.float64) - 0.5
    assert torch.allclose(vertex(edge_weights=betas), expected)
    offsets = torch.zeros(1, 8, 3, dtype=torch.float64)
    offsets[0, 1, 0] = 100.0  # corner 1 moves half a cube along x
    assert torch.allclose(vertex(offset_logits=offsets)[0], torch.tensor(0.75 / 3 - 0.5, dtype=torch.float64))


@pytest.mark.parametrize(("strong", "other"), [((0, 6), (2, 4)), ((2, 4), (0, 6))])
def test_quads_are_cut_where_the_weights_are_large(strong, other):
    def pole(points):  # only the middle corner is inside: every one of the 8 cubes has one vertex, in their order
        return torch.where(points.abs().amax(-1) < 0.01, -1.0, 1.0).double()

    weights = torch.full((8,), 0.5, dtype=torch.float64)
    weights[list(strong)] = 0.99
    faces = [set(face) for face in cubes_of(pole, 2, split_weights=weights).surface().faces.tolist()]
    assert len(faces) == 12 and all({2, 4, 0, 6} != face for face in faces)
    assert sum(set(strong) <= face for face in faces) == 2 and not any(set(other) <= face for face in faces)


def test_unknown_cubes_close_the_surface_of_known_ones():
    places = torch.tensor([[3, 3, 3], [3, 3, 4]])
    surface = cubes_of(lambda points: torch.full(points.shape[:-1], -0.2), 8, places).surface()
    require_closed(surface.faces.numpy())
    centre = surface.vertices.mean(0)
    assert torch.allclose(centre, torch.tensor([3.5, 3.5, 4.0]).double() / 8 - 0.5, atol=1e-6)


def test_what_neighbours_say_about_a_corner_is_averaged():
    places = torch.tensor([[1, 1, 1], [2, 1, 1]])
    distances = torch.tensor([[-0.3] * 8, [-0.1] * 8], dtype=torch.float64)
    surface = cubes_of(ball, 4, places, distances=distances).surface()
    reach = surface.vertices[:, 0] * 4 + 2  # in cubes: corners know -0.3 at 1, -0.2 at 2 and -0.1 at 3
    assert reach.min().item() == pytest.approx(1 - 0.3 / 1.3) and reach.max().item() == pytest.approx(3 + 0.1 / 1.1)


def test_gradients_reach_distances_offsets_and_weights():
    learnt = {
        "distances": cubes_of(ball, 4).distances.clone().requires_grad_(),
        "offset_logits": torch.zeros(64, 8, 3, dtype=torch.float64, requires_grad=True),
        "corner_weights": torch.ones(64, 8, dtype=torch.float64, requires_grad=True),
        "edge_weights": torch.ones(64, 12, dtype=torch.float64, requires_grad=True),
    }
    surface = cubes_of(ball, 4, **learnt).surface()
    (surface.vertices * torch.linspace(1, 2, 3)).square().sum().backward()
    for name, part in learnt.items():
        assert part.grad is not None and bool((part.grad != 0).any()) and bool(part.grad.isfinite().all()), name


def test_nothing_inside_is_an_empty_surface():
    surface = cubes_of(lambda points: torch.ones(points.shape[:-1]), 3).surface()
    assert surface.vertices.shape == (0, 3) and surface.faces.shape == (0, 3) and len(surface.mesh()) == 0
