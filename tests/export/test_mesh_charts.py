"""Charts of meshes: flat, whole, and never over themselves."""

import numpy as np
import pytest

pytest.importorskip("open3d", reason="Open3D is not installed")
pytest.importorskip("xatlas", reason="xatlas is not installed")

from scene_distill.export.mesh_charts import find_charts, flattened
from scene_distill.export.mesh_texture import TextureSettings, _texels, unwrap
from scene_distill.representations.meshes import TriangleMesh


def grid(place, columns: int = 60, rows: int = 12) -> TriangleMesh:
    """A mesh of a function of two arrays in [0, 1] to points [..., 3]."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1), indexing="ij")
    points = np.stack(place(u, v), axis=-1).reshape(-1, 3)
    corner = (np.arange(columns)[:, None] * (rows + 1) + np.arange(rows)).reshape(-1)
    lower = np.stack([corner, corner + rows + 1, corner + 1], axis=1)
    upper = np.stack([corner + 1, corner + rows + 1, corner + rows + 2], axis=1)
    return TriangleMesh(points, np.concatenate([lower, upper]))


def ramp(turns: float) -> TriangleMesh:
    """A spiral ramp, its floors above one another."""

    def place(u, v):
        angle = turns * 2 * np.pi * u
        return (1 + v) * np.cos(angle), (1 + v) * np.sin(angle), u * turns

    return grid(place, columns=200)


def noisy_ball(seed: int) -> TriangleMesh:
    rng = np.random.default_rng(seed)

    def place(u, v):
        radius = 1 + 0.05 * rng.normal(size=u.shape)
        around, down = 2 * np.pi * u, np.pi * (0.02 + 0.96 * v)
        return radius * np.sin(down) * np.cos(around), radius * np.sin(down) * np.sin(around), radius * np.cos(down)

    return grid(place, 80, 40)


def areas_in_texture(mesh: TriangleMesh, settings: TextureSettings) -> tuple[float, float]:
    """(sum of the faces' areas, area that is covered), as shares of the texture."""
    split, uvs = unwrap(mesh, settings)
    assert np.allclose(split.corners, mesh.corners, atol=1e-6)
    corners = uvs[split.faces].astype(np.float64)
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    faces = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2
    return faces, len(_texels(split, uvs, settings.size)) / settings.size**2


@pytest.mark.parametrize("mesh", [ramp(3.0), noisy_ball(0), noisy_ball(1)], ids=["ramp", "ball 0", "ball 1"])
def test_charts_do_not_cover_themselves_nor_one_another(mesh):
    faces, covered = areas_in_texture(mesh, TextureSettings(size=512))
    assert 0.2 < faces < 1 and covered == pytest.approx(faces, rel=0.01)


def test_a_ramp_is_taken_apart_and_a_wall_is_not():
    texel = 0.01
    assert len(find_charts(ramp(0.9), texel)) == 1
    assert 3 <= len(find_charts(ramp(3.0), texel)) <= 12
    rough = grid(lambda u, v: (3 * u, 0.02 * np.random.default_rng(0).normal(size=u.shape), v))
    assert len(find_charts(rough, texel)) < 20


def test_charts_are_laid_out_at_true_length_where_faces_look_at_their_side():
    flat = grid(lambda u, v: (0 * u + 5, 3 * u, 2 * v))  # looks at plus x
    charts = find_charts(flat, 0.01)
    laid = flattened(flat, charts)
    assert charts.side.tolist() == [0]
    assert np.allclose(laid.place.min(axis=0), 0) and np.allclose(np.sort(laid.place.max(axis=0)), [2, 3])
    assert np.allclose(laid.height, 5) and np.array_equal(laid.origin[laid.faces], flat.faces)
    turned = TriangleMesh(flat.vertices, flat.faces[:, ::-1])
    assert find_charts(turned, 0.01).side.tolist() == [3]
    corners = flattened(turned, find_charts(turned, 0.01)).place[flattened(turned, charts).faces]
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    assert ((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) > 0).all(), "a chart is mirrored"
