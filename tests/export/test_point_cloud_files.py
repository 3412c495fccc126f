import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_scenes import ring_of_cameras

from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.data.point_clouds import read_point_cloud
from scene_distill.export.metadata import SplatMetadata, metadata_from_comments
from scene_distill.export.ply_header import read_ply_header
from scene_distill.export.point_cloud import OrientedPoints, points_of_splats
from scene_distill.export.point_cloud_files import write_points
from scene_distill.representations.splats import Splats

METADATA = SplatMetadata("metre", (0.0, 0.0, 1.0), None, "test", "scene-distill test")


def cloud(count=500, center=(0.0, 0.0, 0.0), seed=0):
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return OrientedPoints(rng.normal(size=(count, 3)) * 20 + center, normals, rng.random((count, 3), np.float32))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300), st.integers(0, 1000))
def test_our_reader_gets_back_what_was_written(tmp_path_factory, count, seed) -> None:
    points = cloud(count, (4e5, 5.9e6, 10.0), seed)
    path = tmp_path_factory.mktemp("cloud") / "points.ply"
    write_points(points, path, METADATA)
    positions, colors = read_point_cloud(path)
    assert np.array_equal(positions, points.positions)
    assert np.abs(colors / 255 - points.colors).max() <= 0.5 / 255 + 1e-6
    with path.open("rb") as file:
        assert metadata_from_comments(read_ply_header(file, path).comments, path) == METADATA


@pytest.mark.parametrize("extension", [".ply", ".pcd"])
def test_open3d_reads_positions_normals_and_colors(tmp_path, extension) -> None:
    o3d = pytest.importorskip("open3d")
    points, path = cloud(), tmp_path / f"points{extension}"
    write_points(points, path, METADATA)
    read = o3d.io.read_point_cloud(str(path))
    assert np.allclose(np.asarray(read.points), points.positions, atol=1e-5)
    assert np.allclose(np.asarray(read.normals), points.normals, atol=1e-6)
    assert np.abs(np.asarray(read.colors) - points.colors).max() <= 0.5 / 255 + 1e-6


def test_laspy_reads_positions_to_a_tenth_of_a_millimetre(tmp_path) -> None:
    laspy = pytest.importorskip("laspy")
    points, path = cloud(center=(4e5, 5.9e6, 10.0)), tmp_path / "points.las"
    write_points(points, path, METADATA)
    read = laspy.read(path)
    assert read.header.point_count == len(points) and read.header.point_format.id == 2
    assert np.abs(np.asarray(read.xyz) - points.positions).max() < 0.6e-4
    assert np.allclose(np.asarray([read.red, read.green, read.blue]).T / 65535, points.colors, atol=1e-4)
    assert np.allclose(read.header.mins, points.positions.min(axis=0))
    assert np.asarray(read.return_number).min() == 1


def splats_with(logits, log_scales):
    count = len(logits)
    return Splats(
        torch.arange(3 * count, dtype=torch.float32).reshape(count, 3), torch.tensor(log_scales),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1), torch.tensor(logits),
        torch.full((count, 4, 3), 0.3 / SH_C0),
    )  # fmt: skip


def test_faint_splats_are_left_out_and_normals_are_shortest_axes_towards_the_camera() -> None:
    splats = splats_with([3.0, -3.0, 3.0], [[0.0, -4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -4.0]])
    above = ring_of_cameras(2, center=(0.0, 90.0, 90.0))
    points = points_of_splats(splats, cameras=above)
    assert np.allclose(points.positions, [[0, 1, 2], [6, 7, 8]])
    assert np.allclose(points.normals, [[0, 1, 0], [0, 0, 1]])
    assert np.allclose(points.colors, 0.8)
    turned = points_of_splats(splats, up=(0.0, -1.0, -1.0))
    assert np.allclose(turned.normals, [[0, -1, 0], [0, 0, -1]])
    assert np.allclose(points_of_splats(splats).normals, [[0, -1, 0], [0, 0, 1]])


def test_refusals(tmp_path) -> None:
    with pytest.raises(UserError, match="no splat has an opacity"):
        points_of_splats(splats_with([-5.0], [[0.0, 0.0, 0.0]]))
    with pytest.raises(UserError, match="no known point cloud format"):
        write_points(cloud(3), tmp_path / "a.xyz", METADATA)
    with pytest.raises(UserError, match="no points"):
        write_points(cloud(3).select(np.zeros(0, int)), tmp_path / "a.ply", METADATA)
    with pytest.raises(UserError, match="farther than 214 km"):
        write_points(OrientedPoints(np.array([[0, 0, 0], [1e6, 0, 0.0]]), *[np.ones((2, 3))] * 2), tmp_path / "a.las",
                     METADATA)  # fmt: skip
    assert not list(tmp_path.iterdir())
