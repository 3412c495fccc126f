"""A trained scene inside nerfstudio's model: any size in, the same pictures out, whatever the viewer's thread does."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.data.scene_box import OrientedBox, SceneBox

from scene_distill.core.cameras import Camera, look_at
from scene_distill.methods import METHODS
from scene_distill.methods.momentum_gs.merged import MergedCity
from scene_distill.nets.gaussian_decoder import make_decoder
from scene_distill.plugins.nerfstudio_cameras import cameras_for_nerfstudio
from scene_distill.plugins.nerfstudio_checkpoint import HEADER, read_model, scene_from, tensors_of, write_checkpoint
from scene_distill.plugins.nerfstudio_model import SceneModel, SceneModelConfig
from scene_distill.representations.anchors import anchors_from_points

ORIGIN = np.array([100.0, -40.0, 7.0])
CAMERA = Camera(40, 30, 36.0, 36.0, 20.0, 15.0, look_at(ORIGIN + np.array([5, 0, 1]), ORIGIN, np.array([0.0, 0, 1])))


def city(count: int, seed: int = 0) -> MergedCity:
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    anchors = anchors_from_points(points, points / 2 + 0.5, spread=0.3, color_init=True, seed_parts=(seed,))
    block = torch.zeros(count, dtype=torch.int32)
    return MergedCity(
        anchors, block, (make_decoder(seed, color_init=True),), ORIGIN, {"unit": "metre", "up": [0, 0, 1]}
    )


def model() -> SceneModel:
    box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    return SceneModelConfig(method="momentum-gs").setup(scene_box=box, num_train_data=3, metadata={})


def looked_at(made: SceneModel, **more: object) -> dict[str, torch.Tensor]:
    return made.get_outputs_for_camera(cameras_for_nerfstudio([CAMERA], torch.float64), **more)


def test_a_scene_of_any_size_is_taken_over(tmp_path: Path) -> None:
    made = model()
    assert made.state_dict() == {}
    assert looked_at(made)["rgb"].abs().max() == 0
    for count in (60, 90, 30):
        scene = city(count, seed=count)
        path = tmp_path / "model.safetensors"
        scene.save(path)
        step = write_checkpoint(path, tmp_path / "steps", count)
        state = torch.load(step, weights_only=True)["pipeline"]
        made.load_state_dict({name.removeprefix("_model."): tensor for name, tensor in state.items()})
        assert len(made.scene) == count
        assert made.scene.metadata == scene.metadata
        assert torch.equal(looked_at(made)["rgb"], scene.render(CAMERA).image.clamp(0, 1))
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step-000000030.ckpt"], "older steps are gone"


def test_the_model_gives_back_what_it_was_given() -> None:
    made, scene = model(), city(40)
    made.scene = scene
    state = torch.nn.ModuleDict({"_model": made}).state_dict()
    assert {name.removeprefix("_model.") for name in state} == {*scene.tensors(), HEADER}
    again = scene_from({name.removeprefix("_model."): t for name, t in state.items()}, METHODS["momentum-gs"])
    assert all(torch.equal(a, b) for a, b in zip(again.tensors().values(), scene.tensors().values(), strict=True))
    assert set(tensors_of(scene)) == {*scene.tensors(), HEADER}


def test_a_kill_while_writing_leaves_no_file_that_nerfstudio_would_stumble_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, steps = tmp_path / "model.safetensors", tmp_path / "steps"
    city(20).save(path)
    write_checkpoint(path, steps, 5)

    def killed(content: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, steps, 10)
    assert [file.name for file in steps.iterdir()] == ["step-000000005.ckpt"]
    assert torch.load(steps / "step-000000005.ckpt", weights_only=True)["step"] == 5


def test_depth_runs_along_the_ray() -> None:
    made, scene = model(), city(200)
    made.scene = scene
    outputs, rendering = looked_at(made), scene.render(CAMERA, with_depth=True)
    rays = cameras_for_nerfstudio([CAMERA], torch.float32).generate_rays(camera_indices=0, keep_shape=True)
    forward = torch.from_numpy(CAMERA.cam_from_world[2, :3]).float()
    along_axis = outputs["depth"][..., 0] * (rays.directions @ forward)
    assert torch.allclose(along_axis, rendering.depth, atol=1e-4)
    assert outputs["depth"].shape == outputs["accumulation"].shape == (30, 40, 1)
    assert (outputs["depth"] > 0).any()


def test_a_crop_blanks_what_lies_outside() -> None:
    made = model()
    made.scene = city(200)
    whole = looked_at(made)
    near = OrientedBox(torch.eye(3), torch.from_numpy(ORIGIN).float(), torch.tensor([10.0, 10, 10]))
    far = OrientedBox(torch.eye(3), torch.zeros(3), torch.tensor([1.0, 1, 1]))
    assert torch.equal(looked_at(made, obb_box=near)["rgb"], whole["rgb"])
    assert looked_at(made, obb_box=far)["accumulation"].max() == 0


def test_metrics_have_nerfstudio_s_names_and_ours() -> None:
    made = model()
    made.scene = city(200)
    outputs = looked_at(made)
    photo = (outputs["rgb"] + 0.1).clamp(0, 1)
    metrics, pictures = made.get_image_metrics_and_images(outputs, {"image": photo})
    assert set(metrics) == {"psnr", "ssim", "psnr_corrected", "ssim_corrected"}
    assert metrics["psnr"] == pytest.approx(-10 * np.log10(float(((outputs["rgb"] - photo) ** 2).mean())), abs=1e-3)
    assert pictures["img"].shape == (30, 80, 3)


def test_an_interruption_between_any_two_lines_changes_nothing() -> None:
    """Nerfstudio's viewer stops a render by raising in its trace function, at whatever line that happens to be.

    It sets the trace inside its own no_grad, as here; without that, torch's no_grad itself could be cut in half.
    """

    class Stop(Exception):
        pass

    made = model()
    made.scene = scene = city(60)
    before, limit = looked_at(made)["rgb"], [0]

    def trace(frame, event, argument):
        if event == "line":
            limit[0] -= 1
            if limit[0] == 0:
                raise Stop
        return trace

    stopped = 0
    for lines in range(1, 4000, 7):
        limit[0] = lines
        with torch.no_grad():
            sys.settrace(trace)
            try:
                looked_at(made)
            except Stop:
                stopped += 1
            finally:
                sys.settrace(None)
        assert made.scene is scene
        if limit[0] > 0:
            break
    assert stopped > 10
    assert torch.equal(looked_at(made)["rgb"], before)
    assert torch.is_grad_enabled()


def test_the_header_is_kept_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    city(20).save(path)
    tensors = read_model(path)
    assert tensors[HEADER].dtype == torch.uint8
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
