import numpy as np
import pytest
from mesh_scenes import ExactViews, cube, ring_of_cameras, sphere, stripes

from scene_distill.core.errors import UserError
from scene_distill.export.mesh_quality import KnownSurface, geometry_error, sample_surface, topology
from scene_distill.export.point_cloud import OrientedPoints
from scene_distill.export.poisson import PoissonSettings, oriented_points, points_of_views, reconstruct

pytest.importorskip("open3d")


def ball_points(center=(0.0, 0.0, 0.0), half=False):
    points = sample_surface(sphere(subdivisions=4), 8000)
    points = points[points[:, 2] > 0] if half else points
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    return OrientedPoints(points + np.array(center), normals, stripes(points).astype(np.float32))


def test_a_ball_far_from_the_origin_is_closed_and_close() -> None:
    center = np.array([1e5, -2e5, 30.0])
    mesh = reconstruct(ball_points(center), PoissonSettings(0.06, trim_voxels=None, threads=1))
    assert topology(mesh).watertight
    assert np.abs(np.linalg.norm(mesh.vertices - center, axis=1) - 1).mean() < 0.01
    assert ((mesh.face_normals() * (mesh.corners.mean(axis=1) - center)).sum(axis=1) > 0).mean() > 0.99
    assert np.abs(mesh.colors - stripes(mesh.vertices - center)).mean() < 0.05


def test_trimming_opens_the_side_that_no_point_supports() -> None:
    mesh = reconstruct(ball_points(half=True), PoissonSettings(0.06, trim_voxels=3, threads=1))
    assert not topology(mesh).watertight
    assert mesh.vertices[:, 2].min() > -0.3


def test_points_of_views_lie_on_the_surface_with_normals_outside() -> None:
    views = ExactViews(cube(0.8), ring_of_cameras())
    points = points_of_views(views, PoissonSettings(0.05))
    assert np.abs(np.abs(points.positions).max(axis=1) - 0.8).max() < 0.03
    axis = np.abs(points.positions).argmax(axis=1)
    along = np.take_along_axis(points.normals * np.sign(points.positions), axis[:, None], axis=1)[:, 0]
    assert np.median(along) > 0.99 and (along > 0).mean() > 0.98
    assert len(points) > 500


def test_pixels_at_a_step_in_depth_are_left_out() -> None:
    view = ExactViews(cube(0.5), ring_of_cameras())[3]
    found = oriented_points(view)
    assert 0 < len(found) < (view.depth_m > 0).sum()
    assert np.abs(np.abs(found.positions).max(axis=1) - 0.5).max() < 1e-3


def test_the_number_of_points_is_bounded() -> None:
    views = ExactViews(sphere(), ring_of_cameras(6))
    assert len(points_of_views(views, PoissonSettings(0.01, max_points=800))) <= 800


def test_views_to_surface() -> None:
    views = ExactViews(sphere(), ring_of_cameras())
    settings = PoissonSettings(0.06, trim_voxels=None, threads=1)
    mesh = reconstruct(points_of_views(views, settings), settings)
    error = geometry_error(mesh, KnownSurface.sampled(sphere(subdivisions=4), 10_000), 0.03, samples=10_000)
    assert error.f_score > 0.97


def test_too_few_points_are_refused() -> None:
    few = ball_points().select(np.arange(5))
    with pytest.raises(UserError, match="at least 20"):
        reconstruct(few, PoissonSettings(0.1))
    empty = ExactViews(sphere(0.01, (50.0, 0.0, 0.0)), ring_of_cameras(2))
    with pytest.raises(UserError, match="no view shows any depth"):
        points_of_views(empty, PoissonSettings(0.1))
