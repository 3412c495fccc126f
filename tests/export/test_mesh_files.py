import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_scenes import cube, sphere, stripes
from scipy.spatial import cKDTree

from scene_distill.core.errors import UserError
from scene_distill.export.mesh_files import mesh_files, read_mesh, write_mesh
from scene_distill.export.mesh_glb import linear_from_srgb, srgb_from_linear
from scene_distill.export.mesh_quality import topology
from scene_distill.export.metadata import SplatMetadata
from scene_distill.representations.meshes import TriangleMesh

trimesh = pytest.importorskip("trimesh")
o3d = pytest.importorskip("open3d")

METADATA = SplatMetadata("metre", (0.0, 0.0, 1.0), (53.4, -1.5, 80.0), 'a "source" with ü', "scene-distill test")
FAR = np.array([4.0e5, 5.9e6, 120.0])


def colored(center=FAR):
    mesh = sphere(2.0, center, subdivisions=2)
    return TriangleMesh(mesh.vertices, mesh.faces, stripes(mesh.vertices - center).astype(np.float32))


def painted():
    """A square in the plane z = 5 whose texture is red at the top left, green right of it, blue below, white last."""
    vertices = np.array([[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5]], float)
    uvs = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    texture = np.zeros((8, 8, 3), np.uint8)
    texture[:4, :4], texture[:4, 4:], texture[4:, :4], texture[4:, 4:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    return TriangleMesh(vertices, np.array([[0, 1, 2], [0, 2, 3]]), None, uvs, texture)


def color_at(mesh, corner):
    """Texture colour near the vertex at a corner of the square, half way to the middle."""
    index = int(np.argmin(np.abs(mesh.vertices - corner).sum(axis=1)))
    u, v = mesh.uvs[index] * 0.5 + 0.25
    return tuple(mesh.texture[int(v * 8), int(u * 8)])


@pytest.mark.parametrize("extension", [".glb", ".obj", ".ply"])
def test_colored_meshes_come_back_with_their_frame_and_story(tmp_path, extension) -> None:
    mesh, path = colored(), tmp_path / f"ball{extension}"
    write_mesh(mesh, path, METADATA)
    back, metadata = read_mesh(path)
    assert metadata == METADATA
    assert np.array_equal(back.faces, mesh.faces)
    assert np.abs(back.vertices - mesh.vertices).max() < (1e-6 if extension == ".glb" else 1e-9)
    assert np.abs(back.colors - mesh.colors).max() < (1e-3 if extension == ".glb" else 0.5 / 255 + 1e-6)
    assert topology(back).watertight and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("extension", [".glb", ".obj", ".ply"])
def test_textures_come_back_the_right_way_up(tmp_path, extension) -> None:
    mesh, path = painted(), tmp_path / f"square{extension}"
    write_mesh(mesh, path, METADATA)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in mesh_files(mesh, path))
    if extension == ".ply":
        text = path.read_bytes()[:2000].decode("ascii", "replace")
        assert "comment TextureFile square.png" in text and "property float s" in text
        return
    back, _ = read_mesh(path)
    assert np.array_equal(back.texture, mesh.texture)
    assert color_at(back, [0, 1, 5]) == (255, 0, 0) and color_at(back, [1, 1, 5]) == (0, 255, 0)
    assert color_at(back, [0, 0, 5]) == (0, 0, 255)


def test_open3d_sees_the_same_colors_and_texture(tmp_path) -> None:
    mesh = colored(np.zeros(3))
    for extension in (".ply", ".obj"):
        write_mesh(mesh, tmp_path / f"ball{extension}", METADATA)
        read = o3d.io.read_triangle_mesh(str(tmp_path / f"ball{extension}"))
        distance, match = cKDTree(mesh.vertices).query(np.asarray(read.vertices))
        assert len(match) == len(mesh.vertices) and distance.max() < 1e-6
        assert np.abs(np.asarray(read.vertex_colors) - mesh.colors[match]).max() < 0.5 / 255 + 1e-6
        assert read.is_watertight()
    write_mesh(painted(), tmp_path / "square.obj", METADATA)
    read = o3d.io.read_triangle_mesh(str(tmp_path / "square.obj"), enable_post_processing=False)
    texture, uvs = np.asarray(read.textures[-1]), np.asarray(read.triangle_uvs)
    corners = np.asarray(read.vertices)[np.asarray(read.triangles)].reshape(-1, 3)
    top_left = int(np.argmin(np.abs(corners - [0, 1, 5]).sum(axis=1)))
    u, v = uvs[top_left] * 0.5 + 0.25
    assert tuple(texture[int(v * 8), int(u * 8)][:3]) == (255, 0, 0)


def test_glb_is_what_the_specification_says(tmp_path) -> None:
    gltf = pytest.importorskip("pygltflib").GLTF2
    for name, mesh in (("colors", colored()), ("texture", painted())):
        path = tmp_path / f"{name}.glb"
        write_mesh(mesh, path, METADATA)
        document = gltf().load(str(path))
        primitive, extras = document.meshes[0].primitives[0], document.asset.extras["scene_distill"]
        assert extras["unit"] == "metre" and extras["up"] == [0.0, 0.0, 1.0] and extras["color_space"]
        assert "KHR_materials_unlit" in document.materials[0].extensions
        positions = document.accessors[primitive.attributes.POSITION]
        assert positions.count == len(mesh.vertices) and max(map(abs, positions.max)) < 10
        assert document.accessors[primitive.indices].count == 3 * len(mesh)
        assert all(view.byteOffset % 4 == 0 for view in document.bufferViews)
        assert (primitive.attributes.COLOR_0 is None) == (name == "texture")
    # +z of the world is +y of glTF: the ball's highest vertex.
    scene = trimesh.load_scene(tmp_path / "colors.glb", process=False)
    transform, name = scene.graph[scene.graph.nodes_geometry[0]]
    raised = np.asarray(scene.geometry[name].vertices) @ transform[1, :3]
    top = int(np.argmax(colored().vertices[:, 2]))
    assert int(np.argmax(raised)) == top
    stored = np.asarray(scene.geometry[name].visual.vertex_attributes["color"])[:, :3] / 65535
    assert np.abs(stored - linear_from_srgb(colored().colors)).max() < 1e-4


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_linear_light_and_back(values) -> None:
    colors = np.array(values)
    assert np.allclose(srgb_from_linear(linear_from_srgb(colors)), colors, atol=1e-6)


@pytest.mark.parametrize("extension", [".glb", ".obj", ".ply"])
def test_damaged_files_are_one_sentence(tmp_path, extension) -> None:
    path = tmp_path / f"ball{extension}"
    write_mesh(colored(), path, METADATA)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    samples = [b"", whole[: len(whole) // 3], whole[:30], rng.integers(0, 256, 4000, np.uint8).tobytes()]
    for _ in range(12):
        broken = bytearray(whole)
        for place in rng.integers(0, min(len(broken), 600), 6):
            broken[place] = int(rng.integers(0, 256))
        samples.append(bytes(broken))
    refused = 0
    for data in samples:
        path.write_bytes(data)
        try:
            mesh, _ = read_mesh(path)
            assert np.isfinite(mesh.vertices).all() and len(mesh)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused >= 3


@pytest.mark.parametrize("corner", ["200000000", "3/200000000", "3//-200000000"])
def test_an_obj_whose_faces_name_what_is_not_there_is_refused_before_memory_is_taken(tmp_path, corner) -> None:
    path = tmp_path / "far.obj"
    path.write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvn 0 0 1\nf 1 2 {corner}\n")
    with pytest.raises(UserError, match=r"far\.obj is damaged or not a mesh \(a face names v[tn]? 200000000 of [13]\)"):
        read_mesh(path)


def test_unknown_names_missing_files_and_empty_meshes_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="no known mesh format"):
        write_mesh(cube(), tmp_path / "cube.stl", METADATA)
    with pytest.raises(UserError, match="no known mesh format"):
        read_mesh(tmp_path / "cube.stl")
    with pytest.raises(UserError, match="Cannot read"):
        read_mesh(tmp_path / "nothing.ply")
    with pytest.raises(UserError, match="no faces"):
        write_mesh(cube().select_faces(np.zeros(0, int)), tmp_path / "cube.ply", METADATA)
    assert not list(tmp_path.iterdir())


def test_a_foreign_glb_says_y_up(tmp_path) -> None:
    trimesh.creation.box().export(tmp_path / "box.glb")
    mesh, metadata = read_mesh(tmp_path / "box.glb")
    assert len(mesh) == 12 and metadata.up == (0.0, 1.0, 0.0) and metadata.generator == ""
    assert json.loads(json.dumps(metadata.values()))["unit"] == "metre"


@pytest.mark.parametrize("extension", [".ply", ".obj", ".glb"])
def test_a_lost_texture_is_told_and_not_made_up(tmp_path, extension, capsys, caplog) -> None:
    path = tmp_path / f"square{extension}"
    write_mesh(painted(), path, METADATA)
    assert read_mesh(path)[0].texture is not None and "texture" not in capsys.readouterr().out
    if extension == ".glb":
        whole = path.read_bytes()
        path.write_bytes(whole.replace(b"IHDR", b"XXXX"))
    else:
        path.with_suffix(".png").write_bytes(b"no picture")
    mesh, _ = read_mesh(path)
    told = capsys.readouterr()
    assert mesh.texture is None and len(mesh) == 2 and "comes without it" in told.out.replace("\n", " ")
    assert "Traceback" not in told.err and not caplog.records
