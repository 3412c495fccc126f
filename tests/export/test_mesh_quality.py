import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_scenes import cube, ring_of_cameras, sphere

from scene_distill.core.errors import UserError
from scene_distill.export.mesh_cleaning import (
    CleaningSettings,
    clean,
    decimate,
    seen_faces,
    without_small_components,
    without_unseen_faces,
)
from scene_distill.export.mesh_quality import KnownSurface, distances, geometry_error, sample_surface, topology
from scene_distill.representations.meshes import TriangleMesh

pytest.importorskip("open3d")


def soup(mesh):
    """The same faces, no vertex shared."""
    return TriangleMesh(mesh.corners.reshape(-1, 3), np.arange(3 * len(mesh)).reshape(-1, 3))


def test_a_cube_is_closed_and_a_soup_of_its_faces_too() -> None:
    for mesh in (cube(), soup(cube())):
        shape = topology(mesh)
        assert shape.watertight and (shape.vertices, shape.faces, shape.components, shape.euler) == (8, 12, 1, 2)


def test_holes_flips_and_third_faces_are_counted() -> None:
    whole = cube()
    opened = topology(whole.select_faces(np.arange(1, 12)))
    assert opened.boundary_edges == 3 and not opened.watertight
    flipped = whole.faces.copy()
    flipped[0] = flipped[0][::-1]
    assert topology(TriangleMesh(whole.vertices, flipped)).flipped_edges == 3
    fin = TriangleMesh(np.vstack([whole.vertices, [[3.0, 3.0, 3.0]]]), np.vstack([whole.faces, [[0, 1, 8]]]))
    assert topology(fin).nonmanifold_edges == 1


def test_two_balls_are_two_pieces() -> None:
    both = TriangleMesh.cat([sphere(), sphere(0.2, (5.0, 0.0, 0.0))])
    assert topology(both).components == 2
    assert len(without_small_components(both, 0.1)) == len(sphere())
    assert len(without_small_components(both, 1e-3)) == len(both)
    assert len(without_small_components(both, 2.0)) == len(sphere())


@settings(max_examples=10, deadline=None)
@given(st.floats(0.02, 0.4))
def test_errors_of_a_ball_that_is_too_large(offset) -> None:
    known = KnownSurface.sampled(sphere(1.0, subdivisions=4), 4000)
    error = geometry_error(sphere(1.0 + offset, subdivisions=4), known, offset * 1.1, samples=4000)
    assert error.accuracy == pytest.approx(offset, rel=0.1) and error.completeness == pytest.approx(offset, rel=0.1)
    assert error.f_score > 0.95
    assert geometry_error(sphere(1.0 + offset, subdivisions=4), known, offset * 0.8, samples=2000).f_score < 0.05


def test_half_a_ball_is_accurate_and_half_complete() -> None:
    whole = sphere(subdivisions=4)
    half = whole.select_faces(whole.corners.mean(axis=1)[:, 2] > 0)
    error = geometry_error(half, KnownSurface.sampled(whole, 20_000), 0.01, samples=20_000)
    assert error.precision > 0.999 and error.recall == pytest.approx(0.5, abs=0.03)
    assert error.f_score == pytest.approx(2 / 3, abs=0.03)


def test_regions_pick_what_counts() -> None:
    whole = sphere()
    known = KnownSurface.sampled(whole, 5000, compared=lambda points: points[:, 0] > 0)
    assert (known.points[:, 0] > 0).all() and 2000 < len(known.points) < 3000
    with pytest.raises(UserError, match="nothing can be compared"):
        geometry_error(whole, known, 0.1, judged=lambda points: points[:, 0] > 9)


def test_samples_are_uniform_and_repeatable() -> None:
    points = sample_surface(cube(), 60_000)
    assert np.array_equal(points, sample_surface(cube(), 60_000))
    share = [((np.abs(points[:, axis]) > 0.999) & (np.sign(points[:, axis]) == side)).mean()
             for axis in range(3) for side in (-1, 1)]  # fmt: skip
    assert np.allclose(share, 1 / 6, atol=0.01)
    assert distances(points[:100] + 1e6, cube(center=(1e6, 1e6, 1e6))).max() < 0.05


def test_the_far_side_of_a_ball_is_not_seen() -> None:
    ball = sphere()
    camera = ring_of_cameras(1, center=(0.0, 0.0, 0.0))[0]
    seen = seen_faces(ball, [camera])
    facing = ((camera.center - ball.corners.mean(axis=1)) * ball.face_normals()).sum(axis=1) > 0
    assert (seen == facing).mean() > 0.97
    wall = TriangleMesh.cat([sphere(), cube(0.4, camera.center * 0.6)])
    assert seen_faces(wall, [camera])[: len(ball)].sum() < 0.8 * seen.sum()
    assert len(without_unseen_faces(ball, ring_of_cameras(20))) == len(ball)


def test_decimation_keeps_the_budget_the_shape_and_the_closedness() -> None:
    ball = sphere(subdivisions=4)
    colored = TriangleMesh(ball.vertices + 1e5, ball.faces, np.full((len(ball.vertices), 3), 0.25, np.float32))
    small = decimate(colored, 400)
    assert 300 < len(small) <= 400 and topology(small).watertight
    assert np.abs(np.linalg.norm(small.vertices - 1e5, axis=1) - 1).max() < 0.05
    assert np.allclose(small.colors, 0.25, atol=1e-5)
    with pytest.raises(UserError, match="at least 4"):
        decimate(ball, 3)


def test_cleaning_in_one_go() -> None:
    both = TriangleMesh.cat([sphere(), sphere(0.02, (2.0, 0.0, 0.0))])
    cleaned = clean(both, ring_of_cameras(), CleaningSettings(min_component=0.01, unseen=True, max_faces=300))
    assert len(cleaned) <= 300 and topology(cleaned).components == 1
