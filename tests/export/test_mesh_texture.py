import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_scenes import ExactPictures, cube, ring_of_cameras, sphere, stripes

from scene_distill.core.errors import UserError
from scene_distill.export.mesh_quality import sample_surface, topology
from scene_distill.export.mesh_texture import TextureSettings, _Faces, _looks, textured, unwrap
from scene_distill.representations.meshes import TriangleMesh

pytest.importorskip("xatlas")
pytest.importorskip("open3d")
SMALL = TextureSettings(size=256)


def looked_up(mesh, count=4000):
    """Random points of the surface and the texture's colour there."""
    rng = np.random.default_rng(0)
    face = rng.choice(len(mesh), count, p=mesh.face_areas() / mesh.face_areas().sum())
    a, b = rng.random((2, count, 1))
    a, b = np.where(a + b > 1, 1 - a, a), np.where(a + b > 1, 1 - b, b)
    points, uvs = (
        values[mesh.faces[face]][:, 0] * (1 - a - b) + values[mesh.faces[face]][:, 1] * a
        + values[mesh.faces[face]][:, 2] * b
        for values in (mesh.vertices, mesh.uvs)
    )  # fmt: skip
    height, width = mesh.texture.shape[:2]
    column = np.clip((uvs[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip((uvs[:, 1] * height).astype(int), 0, height - 1)
    return points, mesh.texture[row, column] / 255


def test_the_texture_shows_what_the_cameras_saw() -> None:
    shape = cube(0.8)
    mesh = textured(shape, ExactPictures(shape, ring_of_cameras(20)), SMALL)
    points, colors = looked_up(mesh)
    assert np.abs(colors - stripes(points)).mean() < 0.02
    assert topology(mesh).watertight and len(mesh) == len(shape)


def test_what_is_hidden_does_not_take_the_color_of_what_hides_it() -> None:
    floor = TriangleMesh(
        np.array([[-2, -2, 0], [2, -2, 0], [2, 2, 0], [-2, 2, 0]], float), np.array([[0, 1, 2], [0, 2, 3]])
    )
    both = TriangleMesh.cat([floor, cube(0.4, (0.0, 0.0, 0.9))])
    cameras = [camera for camera in ring_of_cameras(30, distance=6.0) if camera.center[2] > 1.5]

    class Marked(ExactPictures):
        def __getitem__(self, index):
            camera = self.cameras[index]
            high = ExactPictures.__mro__[1].__getitem__(self, index).points()[..., 2] > 0.3
            return camera, np.where(high[..., None], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]).astype(np.float32)

    mesh = textured(both, Marked(both, cameras), SMALL)
    points, colors = looked_up(mesh)
    ground = (points[:, 2] < 0.01) & (np.abs(points[:, :2]).max(axis=1) > 0.5)
    assert (colors[ground, 2] > 0.6).mean() > 0.99
    roof = points[:, 2] > 1.29
    assert (colors[roof, 0] > 0.6).mean() > 0.97


def test_unwrapping_moves_nothing_and_overlaps_nothing() -> None:
    ball = sphere(subdivisions=2)
    split, uvs = unwrap(ball, SMALL)
    assert np.allclose(split.corners, ball.corners, atol=1e-6)
    assert uvs.min() >= 0 and uvs.max() <= 1
    corners = uvs[split.faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    assert 0.3 < area < 1


def test_impossible_requests_are_one_sentence() -> None:
    shape = cube()
    pictures = ExactPictures(shape, ring_of_cameras(2))
    with pytest.raises(UserError, match="16 to 16384"):
        textured(shape, pictures, TextureSettings(size=4))
    with pytest.raises(UserError, match="nothing to texture"):
        textured(shape, ExactPictures(shape, []), SMALL)
    with pytest.raises(UserError, match="share a frame"):
        textured(shape.moved(np.array([500.0, 0, 0])), pictures, SMALL)
    with pytest.raises(UserError, match="have no area"):
        unwrap(TriangleMesh(np.zeros((3, 3)), np.array([[0, 1, 2]])), SMALL)
    assert len(sample_surface(shape, 10)) == 10


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.05, 4.0))
def test_no_texel_that_a_camera_sees_is_left_out_with_its_face(seed, size) -> None:
    """Whole faces are passed over for a picture; none of them may hold a point that would have counted."""
    rng = np.random.default_rng(seed)
    corners = rng.normal(size=(200, 1, 3)) * 2 + rng.normal(size=(200, 3, 3)) * size
    mesh = TriangleMesh(corners.reshape(-1, 3), np.arange(600).reshape(-1, 3))
    weights = rng.dirichlet(np.ones(3), (200, 40))
    points = np.einsum("fpc,fcd->fpd", weights, corners).reshape(-1, 3)
    normals = np.repeat(mesh.face_normals(), 40, axis=0)
    for camera in ring_of_cameras(4):
        seen, _ = _looks(camera, np.full((camera.height, camera.width), np.inf), points, normals, 0.1)
        assert _Faces.of(mesh).may_show(camera, 0.1)[seen // 40].all()
