"""Pictures of meshes: what is seen, what is interpolated, and how far silhouettes carry gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes_renderer import orbit_camera
from scene_distill.renderers.mesh import antialias, draw_mesh, shrunk, vertex_normals
from scene_distill.renderers.mesh_visibility import neighbours
from scene_distill.representations.marching_tetrahedra import march_tetrahedra
from scene_distill.representations.tetrahedra import TetGrid, TetSurface

FLAT = Camera(24, 24, 20.0, 20.0, 12.0, 12.0, np.eye(4))
GRID = TetGrid.cubic(16, 1.0, torch.float64)


def mask(vertices: torch.Tensor, faces: torch.Tensor, cameras: list[Camera]) -> torch.Tensor:
    picture = draw_mesh(vertices, faces, cameras)
    ones = torch.ones(len(picture.pixel), 1, dtype=vertices.dtype)
    return antialias(picture.image(ones, torch.zeros(1)), picture)


def polygon_area(pixels: torch.Tensor) -> torch.Tensor:
    x, y = pixels.unbind(1)
    return ((x * y.roll(-1) - y * x.roll(-1)).sum() / 2).abs()


def on_screen(vertices: torch.Tensor) -> torch.Tensor:
    return vertices[:, :2] / vertices[:, 2:] * 20 + 12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_a_triangle_covers_its_area_and_the_gradient_is_the_areas(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(1, generator=generator, dtype=torch.float64) * 6.3 + torch.tensor([0.0, 2.1, 4.2]).double()
    depth = 2 + torch.rand(3, generator=generator, dtype=torch.float64)
    vertices = torch.stack([angles.cos() * 0.35, angles.sin() * 0.35, torch.ones(3).double()], 1) * depth[:, None]
    vertices.requires_grad_()
    drawn = mask(vertices, torch.tensor([[0, 1, 2]]), [FLAT])
    exact = polygon_area(on_screen(vertices))
    assert float(drawn.detach().sum()) == pytest.approx(float(exact.detach()), abs=1.5)
    assert float(drawn.detach().min()) >= 0 and float(drawn.detach().max()) <= 1
    found = torch.autograd.grad(drawn.sum(), vertices)[0]
    wanted = torch.autograd.grad(exact, vertices)[0]
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)
    assert float(cosine) > 0.97
    # an edge of eleven pixels crosses few of them, so single triangles are off by up to an eighth
    assert float(found.norm() / wanted.norm()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("size", [16, 48])
def test_the_outline_of_a_ball_grows_as_the_ball_does_with_triangles_far_below_a_pixel(size: int) -> None:
    radius = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    found = march_tetrahedra(TetSurface.of_sdf(GRID, GRID.vertices.norm(dim=1) - radius))
    cameras = [orbit_camera(size, 50.0 * k, 20.0 + 3 * k) for k in range(6)]
    area = mask(found.vertices, found.faces, cameras).sum() / 6
    area.backward()
    focal = 0.5 * size / math.tan(math.radians(20))

    def disc(r: float) -> float:
        return math.pi * (focal * r / math.sqrt(3.1**2 - r**2)) ** 2

    assert float(area.detach()) == pytest.approx(disc(0.6), rel=0.02)
    assert radius.grad is not None
    assert float(radius.grad) == pytest.approx((disc(0.6001) - disc(0.5999)) / 2e-4, rel=0.06)


def test_colours_are_interpolated_in_the_world_not_on_the_screen() -> None:
    vertices = torch.tensor([[-1.0, -1, 2], [3, -3, 6], [-1, 1, 2], [3, 3, 6]], dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2], [1, 3, 2]])
    picture = draw_mesh(vertices, faces, [FLAT])
    places = picture.interpolate(vertices)
    torch.testing.assert_close(places[:, 2], picture.depth)
    torch.testing.assert_close(on_screen(places), torch.stack([picture.pixel % 24, picture.pixel // 24], 1) + 0.5,
                               check_dtype=False)  # fmt: skip
    torch.testing.assert_close(places[:, 0], places[:, 2] - 3)
    torch.testing.assert_close(picture.weights.sum(1), torch.ones(len(places), dtype=torch.float64))


def test_interpolated_values_follow_vertices_as_finite_differences_say() -> None:
    generator = torch.Generator().manual_seed(0)
    vertices = torch.tensor([[-0.8, -0.7, 2.1], [0.9, -0.6, 2.6], [0.1, 0.8, 2.2]], dtype=torch.float64)
    values = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    faces = torch.tensor([[0, 1, 2]])

    def total(v: torch.Tensor) -> torch.Tensor:
        return draw_mesh(v, faces, [FLAT]).interpolate(values).square().sum()

    leaf = vertices.clone().requires_grad_()
    gradient = torch.autograd.grad(total(leaf), leaf)[0]
    way = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    numeric = (float(total(vertices + 1e-7 * way)) - float(total(vertices - 1e-7 * way))) / 2e-7
    assert numeric == pytest.approx(float((gradient * way).sum()), rel=1e-5)


def test_the_nearer_of_two_triangles_is_seen_whatever_their_order() -> None:
    far = torch.tensor([[-2.0, -2, 4], [2, -2, 4], [0, 2, 4]])
    near = far / 2
    vertices = torch.cat([far, near])
    for faces in (torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[3, 4, 5], [0, 1, 2]])):
        picture = draw_mesh(vertices, faces, [FLAT])
        seen = picture.faces[picture.face.reshape(-1)[picture.pixel]]
        assert bool((seen >= 3).all())
        torch.testing.assert_close(picture.depth, torch.full_like(picture.depth, 2))


def test_no_cracks_between_triangles_and_no_blending_inside_a_surface() -> None:
    found = march_tetrahedra(TetSurface.of_sdf(GRID, GRID.vertices.norm(dim=1) - 0.6))
    picture = draw_mesh(found.vertices, found.faces, [orbit_camera(64, 33.0, 20.0)])
    rows, columns = np.nonzero(picture.face[0].numpy() >= 0)
    distance = np.hypot(rows + 0.5 - 32, columns + 0.5 - 32)
    solid = math.pi * (np.sort(distance)[int(0.98 * len(distance))]) ** 2
    assert (distance < 16).sum() == (np.hypot(*(np.indices((64, 64)) + 0.5 - 32)) < 16).sum()
    assert solid > 0.9 * len(rows)
    stripes = picture.image(picture.face.reshape(-1)[picture.pixel, None].double() % 2, torch.zeros(1))
    blended = antialias(stripes, picture)
    assert torch.equal(blended[0, 20:44, 20:44], stripes[0, 20:44, 20:44])


def test_normals_of_a_ball_are_its_directions_and_its_edges_have_two_sides() -> None:
    found = march_tetrahedra(TetSurface.of_sdf(GRID, GRID.vertices.norm(dim=1) - 0.6))
    normals = vertex_normals(found.vertices, found.faces)
    assert float((normals * found.vertices / found.vertices.norm(dim=1, keepdim=True)).sum(1).min()) > 0.97
    across = neighbours(found.faces)
    assert int(across.min()) >= 0
    faces = torch.arange(len(across))[:, None].expand(-1, 3)
    back = across[across.reshape(-1)].reshape(-1, 3, 3)
    assert bool((back == faces[..., None]).any(2).all())


def test_neighbours_end_at_borders_and_where_three_triangles_meet() -> None:
    fan = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]])
    assert int(neighbours(fan).max()) == -1
    assert neighbours(fan[:2]).tolist() == [[1, -1, -1], [0, -1, -1]]
    assert neighbours(fan[:0]).shape == (0, 3)


def test_triangles_behind_the_camera_and_meshes_without_any_draw_nothing() -> None:
    behind = torch.tensor([[0.0, 0, -2], [1, 0, -2], [0, 1, -2]])
    assert float(mask(behind, torch.tensor([[0, 1, 2]]), [FLAT]).sum()) == 0
    assert float(mask(behind, torch.zeros(0, 3, dtype=torch.int64), [FLAT]).sum()) == 0


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="one size"):
        draw_mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), [FLAT, orbit_camera(8, 0, 0)])


def test_shrinking_keeps_the_mean() -> None:
    image = torch.rand(2, 8, 12, 3)
    small = shrunk(image, 4)
    assert small.shape == (2, 2, 3, 3)
    torch.testing.assert_close(small.mean(), image.mean())
    torch.testing.assert_close(small[0, 0, 0], image[0, :4, :4].mean(dim=(0, 1)))
