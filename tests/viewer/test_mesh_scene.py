"""Meshes are met where they are, painted as they are, cut exactly by the crop box, and told from splat files."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from viewed_meshes import cube, wall

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.errors import UserError
from scene_distill.export.formats import write_splats
from scene_distill.export.mesh_files import write_mesh
from scene_distill.export.metadata import SplatMetadata
from scene_distill.representations.splats import Splats
from scene_distill.viewer.file_sessions import is_mesh
from scene_distill.viewer.layers import Looked, draw
from scene_distill.viewer.pictures import Look
from scene_distill.viewer.scenes import EVERYTHING, Selection
from scene_distill.viewer.sessions import open_session

pytest.importorskip("open3d", reason="Open3D is not installed")
pytest.importorskip("trimesh", reason="trimesh is not installed")

from scene_distill.viewer.mesh_scene import ViewedMesh
from scene_distill.viewer.picking import pick


def front(middle=(0.0, 0.0, 0.0), away: float = 5.0, side: int = 33) -> Camera:
    """Looks along +y at a point."""
    middle = np.array(middle)
    pose = look_at(middle - [0.0, away, 0.0], middle, np.array([0.0, 0.0, 1.0]))
    return Camera(side, side, 1.5 * side, 1.5 * side, side / 2, side / 2, pose)


def depth_at_centre(mesh: ViewedMesh, camera: Camera, selection: Selection = EVERYTHING) -> float | None:
    return pick(mesh, camera, selection, camera.width // 2, camera.height // 2).depth


@pytest.mark.parametrize("middle", [(0.0, 0.0, 0.0), (431_000.0, 5_412_000.0, 300.0)])
def test_depth_point_and_normal_of_a_pixel_also_far_from_the_origin(middle):
    found = pick(ViewedMesh(cube(middle)), front(middle), EVERYTHING, 16, 16)
    assert found.depth == pytest.approx(4.0, abs=1e-5) and found.face in (4, 5)
    assert np.allclose(found.point, np.array(middle) - [0, 1, 0], atol=1e-5)
    assert np.allclose(found.normal, [0, -1, 0]) and found.alpha == 1 and found.shares == ()
    nothing = pick(ViewedMesh(cube(middle)), front(middle), EVERYTHING, 0, 0)
    assert nothing.point is None and nothing.face is None and nothing.count == 0


def test_a_crop_box_opens_the_mesh_where_it_cuts_and_leaves_nothing_outside():
    mesh = ViewedMesh(cube())
    behind = Selection(crop=(np.array([-9.0, 0.0, -9.0]), np.full(3, 9.0)))
    assert depth_at_centre(mesh, front(), behind) == pytest.approx(6.0, abs=1e-5)
    inside = Selection(crop=(np.full(3, -0.5), np.full(3, 0.5)))
    assert depth_at_centre(mesh, front(), inside) is None
    assert not draw("rgb", Looked(mesh, None, front(), inside)).image.any()
    beside = Selection(crop=(np.array([3.0, -9.0, -9.0]), np.full(3, 9.0)))
    assert depth_at_centre(mesh, front(), beside) is None


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3), st.floats(2.5, 40))
def test_every_point_that_is_seen_lies_on_the_cube_and_agrees_with_the_depth_layer(direction, away):
    direction = np.add(direction, (0.1, 0.2, 0.05))
    eye = direction / np.linalg.norm(direction) * away
    camera = Camera(24, 24, 30.0, 30.0, 12, 12, look_at(eye, np.zeros(3), np.array([0.3, 0.1, 1.0])))
    mesh = ViewedMesh(cube())
    for x, y in ((12, 12), (9, 14), (15, 8)):
        found = pick(mesh, camera, EVERYTHING, x, y)
        if found.point is not None:
            assert np.abs(found.point).max() == pytest.approx(1.0, abs=1e-4 * away)
            ray = np.array([(x + 0.5 - 12) / 30, (y + 0.5 - 12) / 30, 1.0]) * found.depth
            assert np.allclose(camera.world_from_cam @ [*ray, 1.0], [*found.point, 1.0], atol=1e-6)


def test_vertex_colours_are_interpolated_and_clay_is_lit():
    colors = np.zeros((8, 3), np.float32)
    colors[[0, 1, 4, 5]] = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]
    image = draw("rgb", Looked(ViewedMesh(cube(colors=colors)), None, front())).image
    assert torch.allclose(image[16, 16], torch.tensor([0.5, 0.5, 0.0]), atol=1e-5)
    assert float(image[16, 8, 0]) > 0.7 and float(image[16, 24, 0]) < 0.3
    clay = draw("rgb", Looked(ViewedMesh(cube()), None, front())).image
    assert 0.7 < float(clay[16, 16].mean()) < 0.9 and not clay[0, 0].any()


def test_a_texture_lies_the_right_way_up_and_is_averaged_where_it_is_small():
    quarters = np.zeros((8, 8, 3), np.uint8)
    quarters[:4, :4], quarters[:4, 4:], quarters[4:, :4] = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    image = draw("rgb", Looked(ViewedMesh(wall(quarters, 2.0)), None, front(side=64))).image
    assert image[25, 25].argmax() == 0 and image[25, 39].argmax() == 1 and image[39, 25].argmax() == 2
    assert not image[39, 39].any()
    checks = np.indices((512, 512)).sum(0) % 2 * np.uint8(255)
    image = draw("rgb", Looked(ViewedMesh(wall(np.repeat(checks[..., None], 3, 2), 2.0)), None, front())).image
    middle = image[12:20, 12:20]
    assert float((middle - 0.5).abs().max()) < 0.02


def test_the_wireframe_has_edges_and_fine_pictures_smooth_only_where_something_begins():
    mesh, camera = ViewedMesh(cube()), front(away=4.0, side=96)
    lines = draw("wireframe", Looked(mesh, None, camera)).image
    faces = draw("rgb", Looked(mesh, None, camera)).image
    darker = (faces - lines).sum(2) > 0.3
    assert darker[48 - 12, 48 - 12] or darker[48 - 12, 48 + 12]
    assert 0.01 < darker.float().mean() < 0.2
    pose = look_at(np.array([2.0, -4.0, 1.0]), np.zeros(3), np.array([0, 0, 1.0]))
    tilted = Looked(mesh, None, Camera(96, 96, 140.0, 140.0, 48, 48, pose))
    plain = draw("alpha", tilted).image[..., 0]
    fine = draw("alpha", replace(tilted, look=Look(fine=True))).image[..., 0]
    changed = plain != fine
    assert set(plain.unique().tolist()) == {0.0, 1.0} and {0.25, 0.5, 0.75} <= set(fine.unique().tolist())
    assert 0 < changed.float().mean() < 0.1 and float((plain - fine).mean().abs()) < 0.01


def test_layers_that_a_mesh_lacks_say_so():
    mesh = ViewedMesh(cube())
    with pytest.raises(UserError, match="does not have"):
        draw("features", Looked(mesh, None, front()))


def splats() -> Splats:
    return Splats.from_points(np.random.default_rng(0).normal(size=(9, 3)), np.full((9, 3), 99, np.uint8))


@pytest.mark.parametrize("name", ["a.glb", "a.obj", "a.ply"])
def test_a_mesh_file_is_opened_as_one_and_a_splat_file_is_not(tmp_path, name):
    write_mesh(cube((5.0, 6.0, 7.0)), tmp_path / name, SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0)))
    assert is_mesh(tmp_path / name)
    session = open_session(tmp_path / name)
    told = session.describe()
    assert told["primitive"] == "faces" and told["primitives"] == 12 and told["unit"] == "m" and told["up"] == [0, 0, 1]
    assert np.allclose(np.mean(told["bounds"], axis=0), [5, 6, 7], atol=1e-3)
    there = {layer["id"] for layer in told["layers"] if not layer["missing"]}
    assert there == {"rgb", "depth", "normals", "wireframe", "alpha"} and told["browser"]["missing"]
    json.dumps(told)
    found = pick(session.looking.scene, front((5.0, 6.0, 7.0)), EVERYTHING, 16, 16)
    assert found.depth == pytest.approx(4.0, abs=1e-4)


@pytest.mark.parametrize("name", ["a.glb", "a.ply", "a.compressed.ply", "a.splat", "a.spz"])
def test_splat_files_are_no_meshes(tmp_path, name):
    write_splats(splats(), tmp_path / name, SplatMetadata())
    assert not is_mesh(tmp_path / name)
    assert open_session(tmp_path / name).describe()["primitive"] == "splats"


@pytest.mark.parametrize("content", [
    b"", b"glTF", b"glTF" + struct.pack("<IIII", 2, 99, 2**31, 0x4E4F534A) + b"{",
    b"glTF" + struct.pack("<IIII", 2, 99, 4, 0x4E4F534A) + b"[[[[", b"ply\nformat ascii 1.0\nend_header\n",
    b"ply\nformat ascii 1.0\nelement face 3\nproperty list uchar int vertex_indices\nend_header\n",
])  # fmt: skip
def test_damaged_files_are_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / ("a.ply" if content.startswith(b"ply") else "a.glb")
    path.write_bytes(content)
    with pytest.raises(UserError) as told:
        open_session(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)
