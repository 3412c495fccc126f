"""`scene-distill export` for meshes, points and cameras, on a splat file with the photos of a tiny city."""

import numpy as np
import pytest
import torch

from scene_distill.cli.main import main
from scene_distill.data.colmap import read_model
from scene_distill.data.load import load_scene
from scene_distill.data.point_clouds import read_point_cloud
from scene_distill.data.procedural_city import load_recipe, make_city, read_depth
from scene_distill.export.formats import write_splats
from scene_distill.export.mesh_files import read_mesh
from scene_distill.export.mesh_quality import distances
from scene_distill.export.metadata import SplatMetadata
from scene_distill.representations.splats import Splats

pytest.importorskip("embreex")
pytest.importorskip("open3d")
pytest.importorskip("xatlas")


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """A hamlet, and a file with an opaque splat on every third pixel of its depth maps."""
    root = make_city(load_recipe("city_test"), tmp_path_factory.mktemp("meshes") / "city")
    scene = load_scene(root)
    points = []
    for frame in scene.frames:
        depth, camera = read_depth(root, frame.path.stem), frame.camera
        row, column = np.mgrid[1 : camera.height : 3, 1 : camera.width : 3].reshape(2, -1)
        rays = np.stack([(column + 0.5 - camera.cx) / camera.fx, (row + 0.5 - camera.cy) / camera.fy, row * 0 + 1.0], 1)
        points.append((rays * depth[row, column, None]) @ camera.cam_from_world[:3, :3] + camera.center)
    means = np.concatenate(points)
    count = len(means)
    splats = Splats(
        torch.from_numpy(means).float(), torch.full((count, 3), -0.4), torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        torch.full((count,), 3.0), torch.zeros(count, 1, 3),
    )  # fmt: skip
    path = root.parent / "city.ply"
    write_splats(splats, path, SplatMetadata.of_scene(scene))
    return root, path, means


def test_meshes_points_and_cameras_of_a_file(city, capsys) -> None:
    root, path, means = city
    out = root.parent / "out"
    main(["export", str(path), "--data", str(root), "--output-dir", str(out), "--format", "mesh-tsdf", "points",
          "cameras-colmap", "cameras-nerfstudio", "--mesh.files", "glb", "obj", "--mesh.faces", "3000",
          "--mesh.texture", "256", "--mesh.voxel", "2", "--mesh.points", "ply", "las"])  # fmt: skip
    said = capsys.readouterr().out
    assert "mesh (tsdf)" in said and "texture of 256 px from photos" in said and "next: " in said
    mesh, metadata = read_mesh(out / "mesh_tsdf.glb")
    assert len(mesh) <= 3000 and mesh.texture.shape == (256, 256, 3) and mesh.texture.std() > 10
    assert metadata.unit == "metre" and metadata.up == (0.0, 0.0, 1.0)
    assert np.median(distances(means[::50], mesh)) < 0.7
    assert (out / "mesh_tsdf.mtl").is_file() and (out / "mesh_tsdf.png").is_file() and (out / "points.las").is_file()
    positions, _ = read_point_cloud(out / "points.ply")
    assert len(positions) == len(means)
    scene = load_scene(root)
    model = read_model(out / "cameras_colmap" / "sparse" / "0")
    assert {image.name for image in model.images} == {frame.name for frame in scene.frames}
    held_out = load_scene(out / "cameras_nerfstudio").test
    assert {name.rpartition("/")[2] for name in held_out} == scene.test


def test_mistakes_are_one_sentence(city, capsys) -> None:
    root, path, _ = city
    for arguments, hint in [
        (["--format", "mesh-tsdf"], "name the folder with the posed photos"),
        (["--format", "mesh-foam"], "There is no format 'mesh-foam'"),
        (["--format", "mesh-tsdf", "--data", str(root), "--mesh.voxel", "-1"], "positive size"),
        (["--format", "mesh-tsdf", "--data", str(root), "--mesh.faces", "-4"], "cannot be negative"),
    ]:
        with pytest.raises(SystemExit):
            main(["export", str(path), *arguments])
        error = capsys.readouterr().err.strip()
        assert hint in error and "\n" not in error
