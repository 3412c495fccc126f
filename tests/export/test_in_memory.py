import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_scenes import ExactViews, cube, ring_of_cameras, sphere, stripes

from scene_distill.core.errors import UserError
from scene_distill.core.geometry import quats_from_rotmats
from scene_distill.export.in_memory import (
    camera_to_open3d,
    camera_to_trimesh,
    cameras_to_pytorch3d,
    points_to_open3d,
    points_to_pytorch3d,
    points_to_trimesh,
    pytorch3d_camera_arguments,
    to_open3d,
    to_pytorch3d,
    to_trimesh,
)
from scene_distill.export.point_cloud import OrientedPoints
from scene_distill.representations.meshes import TriangleMesh

trimesh = pytest.importorskip("trimesh")
o3d = pytest.importorskip("open3d")


def colored():
    mesh = sphere(subdivisions=2)
    return TriangleMesh(mesh.vertices, mesh.faces, stripes(mesh.vertices).astype(np.float32))


def painted():
    """A square whose texture's first row is red and last row is blue; v runs down."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    uvs = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    texture = np.zeros((4, 4, 3), np.uint8)
    texture[:2], texture[2:] = (255, 0, 0), (0, 0, 255)
    return TriangleMesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), None, uvs, texture)


def cloud():
    return OrientedPoints(np.eye(3), -np.eye(3), np.array([[0, 0.5, 1]] * 3, np.float32))


def test_trimesh_gets_bytes_and_v_up() -> None:
    made = to_trimesh(colored())
    assert made.is_watertight and made.volume > 0
    assert made.visual.vertex_colors.dtype == np.uint8
    assert np.abs(made.visual.vertex_colors[:, :3] / 255 - colored().colors).max() < 0.5 / 255 + 1e-6
    top = to_trimesh(painted()).visual.to_color().vertex_colors
    assert tuple(top[3][:3]) == (255, 0, 0) and tuple(top[0][:3]) == (0, 0, 255)
    assert tuple(points_to_trimesh(cloud()).colors[0]) == (0, 128, 255, 255)


def test_open3d_gets_floats() -> None:
    made = to_open3d(colored())
    assert made.is_watertight() and made.is_orientable()
    assert np.abs(np.asarray(made.vertex_colors) - colored().colors).max() < 1e-6
    square = to_open3d(painted())
    assert np.allclose(np.asarray(square.triangle_uvs)[0], [0, 1]) and np.asarray(square.textures[0])[0, 0, 0] == 255
    points = points_to_open3d(cloud())
    assert np.allclose(np.asarray(points.normals), -np.eye(3)) and np.asarray(points.colors)[0, 1] == 0.5


def test_open3d_cameras_see_the_pixels_that_ours_see() -> None:
    """A depth map that Open3D unprojects lands on the surface; half a pixel off would not."""
    camera = ring_of_cameras()[5]
    view = ExactViews(cube(0.8), [camera])[0]
    made = camera_to_open3d(camera)
    depth = o3d.geometry.Image(view.surface_depth_m())
    points = o3d.geometry.PointCloud.create_from_depth_image(depth, made.intrinsic, made.extrinsic, depth_scale=1.0,
                                                            depth_trunc=100.0)  # fmt: skip
    found = np.asarray(points.points)
    assert len(found) == (view.surface_depth_m() > 0).sum()
    assert np.abs(np.abs(found).max(axis=1) - 0.8).max() < 1e-5


def test_trimesh_cameras_look_where_ours_look() -> None:
    camera = ring_of_cameras()[5]
    centered = type(camera)(camera.width, camera.height, camera.fx, camera.fy, camera.width / 2, camera.height / 2,
                            camera.cam_from_world)  # fmt: skip
    made, pose = camera_to_trimesh(centered)
    scene = trimesh.Scene(to_trimesh(cube(0.8)))
    scene.camera, scene.camera_transform = made, pose
    origins, directions, pixels = scene.camera_rays()
    assert np.allclose(origins, camera.center)
    places, depth = centered.project(origins + 3 * directions)
    assert (depth > 0).all()
    # trimesh counts rows from below and puts its corner pixels' rays on the picture's edge, so within one pixel.
    assert np.abs(places[:, 0] - pixels[:, 0]).max() < 1.1
    assert np.abs(places[:, 1] - (camera.height - 1 - pixels[:, 1])).max() < 1.6
    with pytest.raises(UserError, match="through the middle"):
        camera_to_trimesh(camera)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 13), st.integers(0, 1000))
def test_pytorch3d_arguments_project_as_ours_by_its_documented_rule(index, seed) -> None:
    """x_cam = x R + T with x left and y up; on screen u = cx - f x / z and v = cy - f y / z."""
    camera = ring_of_cameras()[index]
    arguments = pytorch3d_camera_arguments([camera])
    points = np.random.default_rng(seed).normal(size=(30, 3))
    in_cam = points @ arguments["R"][0] + arguments["T"][0]
    screen = arguments["principal_point"][0] - arguments["focal_length"][0] * in_cam[:, :2] / in_cam[:, 2:]
    pixels, depth = camera.project(points)
    assert np.allclose(screen, pixels, atol=2e-3) and np.allclose(in_cam[:, 2], depth, atol=1e-5)
    assert np.linalg.det(arguments["R"][0]) == pytest.approx(1, abs=1e-5)
    assert tuple(arguments["image_size"][0]) == (camera.height, camera.width)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 13), st.integers(0, 1000), st.booleans())
def test_pytorch3d_arguments_reach_its_normalised_space_as_documented(index, seed, upright) -> None:
    """f_ndc = 2 f / s and p_ndc = -2 (p - size / 2) / s with s the shorter side; x_ndc = f_ndc x / z + p_ndc, x left
    and y up; the middle of the top left pixel lies half a pixel inside of (W / s, H / s)."""
    camera = ring_of_cameras(size=(140, 180) if upright else (180, 140))[index]
    arguments = pytorch3d_camera_arguments([camera])
    points = np.random.default_rng(seed).normal(size=(30, 3))
    in_cam = points @ arguments["R"][0] + arguments["T"][0]
    size, shorter = arguments["image_size"][0][::-1], min(camera.width, camera.height)
    focal = 2 * arguments["focal_length"][0] / shorter
    principal = -2 * (arguments["principal_point"][0] - size / 2) / shorter
    ndc = focal * in_cam[:, :2] / in_cam[:, 2:] + principal
    pixels, _ = camera.project(points)
    assert np.allclose((size / 2 - ndc * shorter / 2), pixels, atol=2e-3)
    ray = np.array([(0.5 - camera.cx) / camera.fx, (0.5 - camera.cy) / camera.fy, 1.0])
    corner = ray @ camera.cam_from_world[:3, :3] + camera.center
    seen = corner @ arguments["R"][0] + arguments["T"][0]
    assert np.allclose(focal * seen[:2] / seen[2] + principal, (size - 1) / shorter, atol=1e-4)


@pytest.fixture
def recorded(monkeypatch):
    """PyTorch3D's classes as recorders of their arguments, where it is not installed too."""

    def recorder(*names: str) -> SimpleNamespace:
        kept = {name: lambda *given, _name=name, **named: SimpleNamespace(kind=_name, given=given, **named)
                for name in names}  # fmt: skip
        return SimpleNamespace(**kept)

    modules = {
        "pytorch3d.structures": recorder("Meshes", "Pointclouds"),
        "pytorch3d.renderer": recorder("TexturesUV", "TexturesVertex", "PerspectiveCameras"),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_pytorch3d_gets_batches_of_one_in_float32(recorded) -> None:
    made = to_pytorch3d(colored())
    [vertices], [faces], textures = made.given
    assert made.kind == "Meshes" and vertices.dtype == torch.float32 and faces.dtype == torch.int64
    assert textures.kind == "TexturesVertex" and np.allclose(textures.given[0][0], colored().colors)
    points = points_to_pytorch3d(cloud())
    assert points.kind == "Pointclouds" and np.allclose(points.given[0][0], np.eye(3))
    assert np.allclose(points.normals[0], -np.eye(3)) and points.features[0][0, 1] == 0.5
    cameras = ring_of_cameras()[:3]
    made = cameras_to_pytorch3d(cameras)
    assert made.kind == "PerspectiveCameras" and made.in_ndc is False and made.R.shape == (3, 3, 3)
    assert all(torch.is_tensor(value) for value in (made.T, made.focal_length, made.principal_point, made.image_size))


def test_pytorch3d_samples_the_texels_that_are_meant(recorded) -> None:
    """Its rule: the image's rows are turned over, then uv in [0, 1] spans [-1, 1] of torch's grid_sample."""
    mesh = painted()
    texture = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    row, column = np.array([0, 1, 2, 3]), np.array([0, 3, 5, 1])
    centers = np.stack([(column + 0.5) / 6, (row + 0.5) / 4], axis=1).astype(np.float32)
    textures = to_pytorch3d(TriangleMesh(mesh.vertices, mesh.faces, None, centers, texture)).given[2]
    assert textures.kind == "TexturesUV" and torch.equal(textures.faces_uvs[0], torch.from_numpy(mesh.faces))
    maps = textures.maps.permute(0, 3, 1, 2).flip(2)
    grid = textures.verts_uvs[0][None, None] * 2 - 1
    found = torch.nn.functional.grid_sample(maps, grid, align_corners=textures.align_corners)[0, :, 0].T
    assert np.abs(found.numpy() * 255 - texture[row, column]).max() < 1e-2


def test_quaternions_are_w_first_in_the_libraries_too() -> None:
    rotation = ring_of_cameras()[3].cam_from_world[:3, :3]
    ours = quats_from_rotmats(torch.from_numpy(rotation.copy())).numpy()
    assert np.allclose(o3d.geometry.get_rotation_matrix_from_quaternion(ours), rotation, atol=1e-9)
    assert np.allclose(trimesh.transformations.quaternion_matrix(ours)[:3, :3], rotation, atol=1e-9)


def test_pytorch3d_objects() -> None:
    pytest.importorskip("pytorch3d", reason="PyTorch3D is not installed")
    camera = ring_of_cameras()[3]
    points = np.random.default_rng(0).normal(size=(10, 3))
    made = cameras_to_pytorch3d([camera])
    screen = made.transform_points_screen(torch.from_numpy(points).float(), image_size=((camera.height, camera.width),))
    assert np.allclose(screen[..., :2].numpy().reshape(-1, 2), camera.project(points)[0], atol=1e-2)
    assert to_pytorch3d(colored()).isempty() is False


def test_a_missing_library_is_one_sentence() -> None:
    try:
        import pytorch3d  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="needs pytorch3d"):
            to_pytorch3d(colored())
