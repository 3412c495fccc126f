"""The lattice of tetrahedra and the surface that is marched out of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.representations.marching_tetrahedra import march_tetrahedra
from scene_distill.representations.meshes import TriangleMesh
from scene_distill.representations.tetrahedra import REACH, TetGrid, TetSurface, tidied

GRID = TetGrid.cubic(10, 1.0, torch.float64)


def volumes(grid: TetGrid, positions: torch.Tensor) -> torch.Tensor:
    a, b, c, d = (positions[grid.tetrahedra[:, k]] for k in range(4))
    return (torch.cross(b - a, c - a, dim=1) * (d - a)).sum(1) / 6


def ball(grid: TetGrid, radius: float = 0.63) -> TetSurface:
    return TetSurface.of_sdf(grid, grid.vertices.norm(dim=1) - radius)


def mesh_of(surface: TetSurface) -> TriangleMesh:
    found = march_tetrahedra(surface)
    return TriangleMesh(found.vertices.detach().numpy(), found.faces.numpy())


def is_closed(faces: np.ndarray) -> bool:
    """Every directed edge once, and its opposite once."""
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    keys, back = directed @ [len(faces) * 9, 1], directed[:, ::-1] @ [len(faces) * 9, 1]
    return len(np.unique(keys)) == len(keys) and set(keys) == set(back)


def volume_of(mesh: TriangleMesh) -> float:
    a, b, c = mesh.corners.transpose(1, 0, 2)
    return float(np.einsum("ij,ij->", np.cross(a, b), c) / 6)


def test_tetrahedra_are_congruent_right_handed_and_fill_the_inner_cube() -> None:
    each = volumes(GRID, GRID.vertices)
    assert float(each.min()) > 0
    torch.testing.assert_close(each, torch.full_like(each, GRID.cell**3 / 12))
    assert len(GRID.tetrahedra) == 12 * 10**2 * 9
    used = GRID.edges[GRID.edge_of]
    assert torch.equal(used[:, 0].sort(1)[0], GRID.tetrahedra[:, :2].sort(1)[0])
    assert torch.equal(used[:, 5].sort(1)[0], GRID.tetrahedra[:, 2:].sort(1)[0])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_no_deformation_turns_a_tetrahedron_inside_out(seed: int) -> None:
    offsets = torch.randn(GRID.vertices.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 9
    surface = TetSurface(GRID, torch.ones(len(GRID.vertices), dtype=torch.float64), offsets)
    assert float((surface.positions - GRID.vertices).abs().max()) <= REACH * GRID.cell + 1e-12
    assert float(volumes(GRID, surface.positions).min()) > 0


def test_a_ball_is_closed_faces_outwards_and_its_volume_errs_with_the_square_of_the_cell() -> None:
    exact, errors = 4 / 3 * math.pi * 0.63**3, []
    for cells in (8, 16):
        mesh = mesh_of(ball(TetGrid.cubic(cells, 1.0, torch.float64)))
        assert is_closed(mesh.faces)
        assert len(mesh.vertices) - 3 * len(mesh) / 2 + len(mesh) == 2
        middles = mesh.corners.mean(axis=1)
        assert (np.einsum("ij,ij->i", mesh.face_vectors(), middles) > 0).all()
        errors.append(abs(volume_of(mesh) - exact))
    assert errors[0] / exact < 0.08
    assert 3.2 < errors[0] / errors[1] < 4.8


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_any_signed_numbers_give_a_closed_surface(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sdf = torch.randn(len(GRID.vertices), generator=generator, dtype=torch.float64)
    surface = TetSurface(GRID, sdf, torch.randn(len(sdf), 3, generator=generator, dtype=torch.float64))
    mesh = mesh_of(surface)
    assert is_closed(mesh.faces)
    assert volume_of(mesh) > 0
    lowest = float(march_tetrahedra(surface).vertices.abs().max())
    assert lowest <= 1.0 + REACH * GRID.cell


def test_vertices_follow_distances_and_offsets_as_finite_differences_say() -> None:
    grid = TetGrid.cubic(4, 1.0, torch.float64)
    generator = torch.Generator().manual_seed(3)
    sdf = (grid.vertices.norm(dim=1) - 0.6 + 0.05 * torch.randn(len(grid.vertices), generator=generator)).double()
    offsets = 0.3 * torch.randn(len(sdf), 3, generator=generator, dtype=torch.float64)

    def corners(values: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        return march_tetrahedra(TetSurface(grid, values, moved)).vertices

    weights = torch.randn(corners(sdf, offsets).shape, generator=generator, dtype=torch.float64)
    leaves = [sdf.requires_grad_(), offsets.requires_grad_()]
    gradients = torch.autograd.grad((corners(*leaves) * weights).sum(), leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        for _ in range(3):
            way = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            ends = []
            for sign in (1, -1):
                args = [x.detach() + sign * 1e-6 * way if x is leaf else x.detach() for x in leaves]
                ends.append(float((corners(*args) * weights).sum()))
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * way).sum()), rel=1e-6, abs=1e-8)


def test_a_surface_that_is_nowhere_has_no_faces() -> None:
    full = torch.ones(len(GRID.vertices), dtype=torch.float64)
    assert len(march_tetrahedra(TetSurface.of_sdf(GRID, full)).faces) == 0


def test_an_object_that_fills_the_grid_is_closed_at_its_end() -> None:
    mesh = mesh_of(TetSurface.of_sdf(GRID, -torch.ones(len(GRID.vertices), dtype=torch.float64)))
    assert is_closed(mesh.faces)
    assert volume_of(mesh) == pytest.approx(0.9**3 * 8, rel=0.3)


def test_loose_bits_and_bubbles_go() -> None:
    def shape(extra: bool) -> torch.Tensor:
        sdf = GRID.vertices.norm(dim=1) - 0.6
        if extra:
            bit = (GRID.vertices - torch.tensor([0.8, 0.8, 0.8])).norm(dim=1) - 0.15
            sdf = torch.maximum(torch.minimum(sdf, bit), 0.25 - GRID.vertices.norm(dim=1))
        return sdf

    assert len(mesh_of(TetSurface.of_sdf(GRID, shape(True)))) > len(mesh_of(TetSurface.of_sdf(GRID, shape(False))))
    left = tidied(GRID, shape(True))
    assert torch.equal(left < 0, shape(False) < 0)
    assert torch.equal(left.abs(), shape(True).abs())


def test_a_grid_too_small_is_refused() -> None:
    with pytest.raises(UserError, match="at least 3 cells"):
        TetGrid.cubic(2, 1.0)
