import numpy as np
import pytest
from mesh_scenes import ring_of_cameras
from PIL import Image

from scene_distill.core.errors import UserError
from scene_distill.data.colmap import read_model
from scene_distill.data.load import load_scene
from scene_distill.data.scene import Frame, Scene
from scene_distill.data.transforms import read_transforms
from scene_distill.export.camera_files import colmap_model, write_colmap, write_nerfstudio


@pytest.fixture
def scene(tmp_path):
    """Twelve photos that lie in images/, in two sizes, and points that some of them see."""
    rng = np.random.default_rng(0)
    images = tmp_path / "source" / "images"
    images.mkdir(parents=True)
    frames = []
    points = rng.normal(size=(50, 3))
    for index, full in enumerate(ring_of_cameras(12, size=(64, 48))):
        camera = full if index % 2 else full.resized(32)
        path = images / f"photo_{index:02d}.png"
        Image.fromarray(rng.integers(0, 255, (camera.height, camera.width, 3), np.uint8)).save(path)
        frames.append(Frame(path.name, path, camera, np.sort(rng.choice(50, 20, replace=False))))
    colors = rng.integers(0, 255, (50, 3), np.uint8)
    metadata = {"unit": "metre", "origin": [53.0, -1.5, 80.0], "source": "test"}
    up = np.array([0.0, 0.6, 0.8])
    return Scene(tmp_path / "source", tuple(frames), points, colors, frozenset({"photo_03.png"}), up, metadata)


def same_cameras(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a.width, a.height) == (b.width, b.height)
        assert np.allclose([a.fx, a.fy, a.cx, a.cy], [b.fx, b.fy, b.cx, b.cy])
        assert np.allclose(a.cam_from_world, b.cam_from_world, atol=1e-9)


@pytest.mark.parametrize("kind", ["bin", "txt"])
def test_colmap_and_back_through_our_loader(scene, tmp_path, kind) -> None:
    folder = tmp_path / "out"
    write_colmap(scene, folder, kind)
    assert (folder / "sparse/0" / f"images.{kind}").is_file()
    (folder / "images").symlink_to(tmp_path / "source" / "images")
    back = load_scene(folder, test_every=0)
    same_cameras([frame.camera for frame in scene.frames], [frame.camera for frame in back.frames])
    assert np.allclose(back.points, scene.points) and np.array_equal(back.colors, scene.colors)
    assert all(np.array_equal(a.seen, b.seen) for a, b in zip(scene.frames, back.frames, strict=True))
    assert back.metadata["unit"] == "metre" and back.metadata["origin"] == [53.0, -1.5, 80.0]
    assert np.allclose(back.up, scene.up)


def test_pycolmap_reads_the_model(scene, tmp_path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    write_colmap(scene, tmp_path / "out")
    model = pycolmap.Reconstruction(str(tmp_path / "out" / "sparse" / "0"))
    assert len(model.images) == 12 and len(model.points3D) == 50 and len(model.cameras) == 2
    image = next(image for image in model.images.values() if image.name == "photo_05.png")
    camera = scene.frames[5].camera
    pixel = model.cameras[image.camera_id].img_from_cam(image.cam_from_world() * scene.points[0]
                if callable(image.cam_from_world) else image.cam_from_world * scene.points[0])  # fmt: skip
    assert np.allclose(pixel, camera.project(scene.points[:1])[0][0], atol=1e-6)


def test_tracks_and_keypoints_agree(scene) -> None:
    model = colmap_model(scene)
    points = model.points
    for row in range(len(points)):
        part = slice(points.offsets[row], points.offsets[row + 1])
        for image, keypoint in zip(points.track_images[part], points.track_keypoints[part], strict=True):
            assert model.images[image - 1].point_ids[keypoint] == row + 1
    assert points.offsets[-1] == 12 * 20


def test_transforms_and_back_keeps_the_split(scene, tmp_path) -> None:
    write_nerfstudio(scene, tmp_path / "ns")
    back = read_transforms(tmp_path / "ns" / "transforms.json")
    cameras = [photo.lens.camera(photo.cam_from_world) for photo in back.photos]
    same_cameras([frame.camera for frame in scene.frames], cameras)
    assert all(photo.path.is_file() for photo in back.photos)
    assert {path.rpartition("/")[2] for path in back.test} == {"photo_03.png"}
    assert load_scene(tmp_path / "ns").metadata["unit"] == "metre"


def test_writing_again_replaces_and_leaves_nothing_half_written(scene, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "out"
    write_colmap(scene, folder)
    write_colmap(scene, folder, "txt")
    assert min(path.name for path in (folder / "sparse/0").iterdir()) == "cameras.txt"
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scene_distill.export.camera_files.write_model", full)
    with pytest.raises(UserError, match="No space left"):
        write_colmap(scene, folder)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert len(read_model(folder / "sparse" / "0").images) == 12
    (tmp_path / "note").write_text("")
    with pytest.raises(UserError, match="note exists and is no folder"):
        write_nerfstudio(scene, tmp_path / "note" / "out")
    with pytest.raises(UserError, match="no cameras"):
        write_nerfstudio(Scene(tmp_path, (), scene.points, scene.colors, frozenset(), scene.up), folder)
