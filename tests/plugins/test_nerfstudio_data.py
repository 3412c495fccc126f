"""Cameras and photos on their way into nerfstudio: same rays, same pixels, one photo at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("nerfstudio")

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.errors import UserError
from scene_distill.data import images
from scene_distill.data.load import load_scene
from scene_distill.plugins.nerfstudio_cameras import camera_from_nerfstudio, cameras_for_nerfstudio
from scene_distill.plugins.nerfstudio_data import SceneDatamanager, SceneDatamanagerConfig
from scene_distill.plugins.nerfstudio_dataparser import SceneDataParserConfig

NUMBERS = st.floats(-1e6, 1e6)


@settings(max_examples=30, deadline=None)
@given(st.tuples(NUMBERS, NUMBERS, NUMBERS), st.integers(0, 2**31))
def test_a_camera_comes_back_as_it_went(center: tuple[float, float, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    pose = look_at(np.array(center), np.array(center) + rng.normal(size=3), rng.normal(size=3))
    camera = Camera(61, 47, 55.5, 54.25, 30.125, 23.5, pose)
    back = camera_from_nerfstudio(cameras_for_nerfstudio([camera], torch.float64))
    assert np.allclose(back.cam_from_world, camera.cam_from_world, rtol=1e-9, atol=1e-9)
    assert (back.width, back.height, back.fx, back.fy, back.cx, back.cy) == (61, 47, 55.5, 54.25, 30.125, 23.5)


def test_nerfstudio_s_rays_go_through_our_pixels() -> None:
    camera = Camera(9, 7, 11.0, 12.0, 4.0, 3.0, look_at(np.array([1.0, 2, 3]), np.zeros(3), np.array([0.0, 0, 1])))
    theirs = cameras_for_nerfstudio([camera], torch.float32)
    rays = theirs.generate_rays(camera_indices=0, keep_shape=True)
    points = (rays.origins + 2.5 * rays.directions).reshape(-1, 3).double().numpy()
    pixels, depth = camera.project(points)
    columns, rows = np.meshgrid(np.arange(9) + 0.5, np.arange(7) + 0.5)
    assert np.allclose(pixels, np.stack([columns, rows], -1).reshape(-1, 2), atol=1e-4)
    assert (depth > 0).all()


def test_a_fisheye_is_refused() -> None:
    cameras = cameras_for_nerfstudio([Camera(8, 8, 8, 8, 4, 4, np.eye(4))], torch.float32)
    cameras.camera_type += 1
    with pytest.raises(UserError, match="only perspective cameras"):
        camera_from_nerfstudio(cameras)


def test_the_dataparser_keeps_the_world_and_the_split(scene_folder: Path) -> None:
    parser = SceneDataParserConfig(data=scene_folder, test_every=4).setup()
    train, test = parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("test")
    scene = load_scene(scene_folder, test_every=4)
    assert [path.name for path in train.image_filenames] == [Path(frame.name).name for frame in scene.train_frames]
    assert [path.name for path in test.image_filenames] == [Path(frame.name).name for frame in scene.test_frames]
    assert train.dataparser_scale == 1.0
    assert torch.equal(train.dataparser_transform, torch.eye(4)[:3])
    assert np.allclose(train.metadata["points3D_xyz"], scene.points, rtol=1e-6)
    assert len(train.metadata["points3D_rgb"]) == len(scene.points)


def test_without_held_out_views_nerfstudio_looks_at_all(scene_folder: Path) -> None:
    parser = SceneDataParserConfig(data=scene_folder, test_every=0).setup()
    assert len(parser.get_dataparser_outputs("test").image_filenames) == 9


def manager(scene_folder: Path, **fields: object) -> SceneDatamanager:
    config = SceneDatamanagerConfig(data=scene_folder, **fields)
    return config.setup(device="cpu", test_mode="test")


def test_photos_are_read_when_asked_for_at_the_size_of_their_cameras(
    scene_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = [], images.read_photo

    def noted(frame, width=None):
        read.append(frame.name)
        return original(frame, width)

    monkeypatch.setattr(images, "read_photo", noted)
    data = manager(scene_folder, image_width=24)
    assert read == [], "setting up reads no photo"
    scene, pairs = load_scene(scene_folder), data.fixed_indices_eval_dataloader
    assert len(pairs) == len(scene.test_frames) == 2
    for frame, (camera, batch) in zip(scene.test_frames, pairs, strict=True):
        assert read[-1] == frame.name, "one by one"
        ours = camera_from_nerfstudio(camera)
        assert (ours.width, ours.height) == (24, 18)
        assert np.allclose(ours.cam_from_world, frame.camera.cam_from_world, atol=1e-6), "exact far from the origin"
        assert torch.equal((batch["image"] * 255).round().byte(), original(frame, 24))
    assert len(read) == 2


def test_smaller_pictures_can_be_asked_for(scene_folder: Path) -> None:
    parser = SceneDataParserConfig(downscale_factor=2)
    data = manager(scene_folder, dataparser=parser, image_width=0)
    camera, batch = data.next_train(3)
    assert batch["image"].shape == (18, 24, 3)
    assert int(camera.width) == 24
    with pytest.raises(UserError, match="leave out --downscale-factor"):
        SceneDataParserConfig(data=scene_folder, downscale_factor=2).setup().get_dataparser_outputs("train")


def test_missing_data_ends_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        manager(tmp_path / "nowhere")


class Page:
    """Stands for a browser: a camera and an atomic section."""

    def __init__(self) -> None:
        self.camera = type("Camera", (), {"position": None, "wxyz": None})()

    def atomic(self):
        from contextlib import nullcontext

        return nullcontext()


def test_the_viewer_starts_at_the_first_photo(scene_folder: Path) -> None:
    import viser.transforms

    view, page = manager(scene_folder).start_view, Page()
    view.place(page)
    camera = load_scene(scene_folder).train_frames[0].camera
    assert np.allclose(page.camera.position, camera.center * 10)
    rotation = viser.transforms.SO3(page.camera.wxyz).as_matrix()
    assert np.allclose(rotation, camera.world_from_cam[:3, :3], atol=1e-6)
    assert np.allclose(view.up, (0, 0, 1), atol=0.2)
    assert 1 < view.spacing < 12, "photos stand about four metres apart"
