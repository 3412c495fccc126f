import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.core.geometry import covariances
from scene_distill.export.gaussian_density import REACH, GaussianDensity, box_of
from scene_distill.export.marching_cubes import CELLS, Lattice, extract_level
from scene_distill.export.mesh_quality import topology
from scene_distill.representations.splats import Splats

pytest.importorskip("skimage")


def random_splats(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Splats(
        means=torch.randn(count, 3, generator=generator),
        log_scales=torch.randn(count, 3, generator=generator) * 0.4 - 1.5,
        quats=torch.randn(count, 4, generator=generator),
        opacity_logits=torch.randn(count, generator=generator) * 2 + 1,
        sh=torch.randn(count, 4, 3, generator=generator) * 0.5,
    )


def test_a_ball_over_eight_cubes_is_closed_and_exact() -> None:
    center = np.array([0.11, 0.2, 0.3])
    lattice = Lattice(np.full(3, -1.5), np.full(3, 1.7), 0.045)
    assert lattice.counts().tolist() == [2, 2, 2] and CELLS == 64
    mesh = extract_level(lambda p: 1 - np.linalg.norm(p - center, axis=1), lattice, 0.0)
    shape = topology(mesh)
    assert shape.watertight and shape.euler == 2 and shape.components == 1
    assert np.abs(np.linalg.norm(mesh.vertices - center, axis=1) - 1).max() < 1e-3
    assert ((mesh.face_normals() * (mesh.corners.mean(axis=1) - center)).sum(axis=1) > 0).all()


def test_a_solid_cut_by_its_box_is_closed_there_only_when_asked() -> None:
    lattice = Lattice(np.full(3, -0.5), np.full(3, 1.5), 0.1)

    def ball(points):
        return 1 - np.linalg.norm(points, axis=1)

    closed, opened = (topology(extract_level(ball, lattice, 0.0, closed=c)) for c in (True, False))
    assert closed.watertight and not opened.watertight and opened.boundary_edges > 0


def test_cubes_without_surface_are_not_evaluated() -> None:
    asked = []

    def field(points):
        asked.append(len(points))
        return 0.4 - np.linalg.norm(points, axis=1)

    lattice = Lattice(np.full(3, -10.0), np.full(3, 10.0), 0.1)
    mesh = extract_level(field, lattice, 0.0, occupied=lambda low, high: bool((low < 1).all() and (high > -1).all()))
    assert topology(mesh).watertight and len(asked) <= 8 < np.prod(lattice.counts())


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000), st.floats(0.3, 3.0))
def test_density_is_the_sum_over_all_gaussians(count, seed, box) -> None:
    splats = random_splats(count, seed)
    points = np.random.default_rng(seed).normal(size=(60, 3)) * 1.5
    field = GaussianDensity(splats, box, min_opacity=0.0)
    precision = torch.linalg.inv(covariances(splats.quats.double(), splats.log_scales.double().exp()))
    offset = torch.from_numpy(points)[:, None] - splats.means.double()
    squares = torch.einsum("pni,nij,pnj->pn", offset, precision, offset)
    weights = torch.where(squares <= REACH**2, torch.exp(-squares / 2), 0) * splats.opacity_logits.double().sigmoid()
    assert np.allclose(field(points), weights.sum(1).numpy(), atol=1e-6)
    low, high = field.bounds
    outside = ((points < low) | (points > high)).any(1)
    assert (field(points)[outside] == 0).all()


def test_density_of_a_shell_of_splats_gives_a_coloured_surface() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(800, 3, generator=generator), dim=1) * 2
    splats = Splats(means, torch.full((800, 3), -2.0), torch.tensor([[1.0, 0, 0, 0]]).repeat(800, 1),
                    torch.full((800,), 3.0), torch.full((800, 1, 3), 0.7))  # fmt: skip
    field = GaussianDensity(splats, box_of(0.15))
    mesh = extract_level(field, Lattice(*field.bounds, 0.15), 0.3, occupied=field.occupied)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert topology(mesh).watertight and radius.min() > 1.5 and radius.max() < 2.5
    assert np.allclose(field.colors(mesh.vertices), 0.5 + 0.28209479 * 0.7, atol=1e-4)


@pytest.mark.parametrize(
    ("lattice", "level", "hint"),
    [
        (Lattice(np.zeros(3), np.ones(3), 0.1), 5.0, "does not cross the level"),
        (Lattice(np.zeros(3), np.zeros(3), 0.1), 0.0, "is empty"),
        (Lattice(np.zeros(3), np.ones(3), 0.0), 0.0, "not usable"),
        (Lattice(np.zeros(3), np.full(3, 1e6), 0.1), 0.0, "larger voxels"),
    ],
)
def test_impossible_requests_are_one_sentence(lattice, level, hint) -> None:
    with pytest.raises(UserError, match=hint):
        extract_level(lambda p: p[:, 0] - 0.5, lattice, level)


def test_a_field_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        extract_level(lambda p: np.full(len(p), np.nan), Lattice(np.zeros(3), np.ones(3), 0.1), 0.0)


def test_haze_alone_has_no_density() -> None:
    with pytest.raises(UserError, match="no Gaussian has an opacity"):
        GaussianDensity(random_splats(5), 0.1, min_opacity=0.9999)
