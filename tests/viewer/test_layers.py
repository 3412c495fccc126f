"""The layers agree with the run's own pictures, with each other, and with what is selected."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.conventions import SH_C0
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import write_ply
from scene_distill.methods import find_method
from scene_distill.renderers.splat import render
from scene_distill.representations.splats import Splats
from scene_distill.viewer import layers
from scene_distill.viewer.colormaps import TABLES, colorised
from scene_distill.viewer.layers import Looked, draw, facing_normals, nearest_frame
from scene_distill.viewer.picking import pick
from scene_distill.viewer.scenes import Selection, ViewedSplats, principal_colors
from scene_distill.viewer.sessions import open_session


@pytest.fixture(scope="module")
def session(town_run):
    return open_session(town_run)


@pytest.fixture(scope="module")
def camera(session):
    return session.frames[5].camera.resized(96)


def test_colour_is_the_pixels_of_the_run_s_own_render(session, camera, town_run):
    trained = find_method("momentum-gs").load(town_run / "model.safetensors")
    mine = draw("rgb", Looked(session.looking.scene, None, camera)).image
    assert torch.equal(mine, trained.render(camera).image)


def test_every_layer_of_a_run_with_photos_and_teacher_can_be_drawn(session, camera):
    missing = {layer["id"] for layer in session.describe()["layers"] if layer["missing"]}
    assert missing == {"wireframe", "semantics"}
    looking = session.looking
    photo = layers.photo_for(session.images, session.frames[5], camera)
    for name in set(layers.LABELS) - missing:
        image = draw(name, Looked(looking.scene, looking.teacher, camera, photo=photo)).image
        assert image.shape == (camera.height, camera.width, 3) and torch.isfinite(image).all()
        assert float(image.std()) > 1e-4 or name == "difference"


def test_the_teacher_differs_from_the_student_and_the_difference_shows_it(session, camera):
    looking = session.looking
    student = draw("rgb", Looked(looking.scene, looking.teacher, camera)).image
    teacher = draw("teacher", Looked(looking.scene, looking.teacher, camera)).image
    assert not torch.equal(student, teacher)
    legend = draw("difference", Looked(looking.scene, looking.teacher, camera)).legend
    expected = (student.clamp(0, 1) - teacher.clamp(0, 1)).abs().mean()
    assert legend["mean"] == pytest.approx(float(expected), rel=1e-4)


def test_blocks_can_be_left_out_and_together_they_are_everything(session, camera):
    scene = session.looking.scene
    parts = [scene.drawn(camera, Selection(frozenset({block}))) for block in (0, 1)]
    whole = scene.drawn(camera)
    assert sum(len(part.rows) for part in parts) == len(whole.rows)
    assert set(parts[0].blocks.tolist()) <= {0}
    assert len(scene.drawn(camera, Selection(frozenset({7}))).rows) == 0


def test_a_crop_box_draws_only_what_is_inside(session, camera):
    scene = session.looking.scene
    low, high = np.array([-20.0, -20.0, -5.0]), np.array([20.0, 20.0, 50.0])
    drawn = scene.drawn(camera, Selection(crop=(low, high)))
    means = drawn.gaussians.means.double().numpy() + scene.origin
    inside = ((means > low + 1e-3) & (means < high - 1e-3)).all(1)
    outside = ((means < low - 1e-3) | (means > high + 1e-3)).any(1)
    assert inside.any() and outside.any()
    assert (drawn.gaussians.opacities[torch.from_numpy(outside)] == 0).all()
    kept = torch.from_numpy(inside)
    assert torch.equal(drawn.gaussians.opacities[kept], scene.drawn(camera).gaussians.opacities[kept])


def wall(distance: float, color=(1.0, 0.0, 0.0), count: int = 41) -> Splats:
    """Flat splats that fill the plane z = distance before a camera at the origin."""
    grid = torch.linspace(-distance, distance, count)
    x, y = torch.meshgrid(grid, grid, indexing="ij")
    means = torch.stack([x.flatten(), y.flatten(), torch.full((count * count,), distance)], 1)
    scales = torch.tensor([2.0 * distance / count, 2.0 * distance / count, 1e-3]).log().repeat(len(means), 1)
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(len(means), 1)
    sh = ((torch.tensor(color) - 0.5) / SH_C0).repeat(len(means), 1)[:, None]
    return Splats(means, scales, quats, torch.full((len(means),), 6.0), sh)


FRONT = Camera(33, 33, 30.0, 30.0, 16.5, 16.5, np.eye(4))


def test_depth_normals_and_picks_of_a_wall_are_those_of_the_wall():
    scene = ViewedSplats(Splats.cat([wall(9.0, (0.0, 1.0, 0.0)), wall(4.0)]), np.array([0.0, 0.0, 0.0]))
    legend = draw("depth", Looked(scene, None, FRONT)).legend
    assert legend["low"] == pytest.approx(4.0, abs=0.02) and legend["high"] == pytest.approx(4.0, abs=0.02)
    normals = draw("normals", Looked(scene, None, FRONT)).image[16, 16]
    assert normals.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=0.02)
    found = pick(scene, FRONT, Selection(), 20, 10)
    assert found.depth == pytest.approx(4.0, abs=0.01)
    assert found.point == pytest.approx([(20.5 - 16.5) / 30 * 4, (10.5 - 16.5) / 30 * 4, 4.0], abs=0.01)
    first = found.shares[0]
    assert first.color == pytest.approx((1, 0, 0), abs=1e-5) and first.row >= 41 * 41
    assert sum(share.weight for share in found.shares) <= found.alpha + 1e-4


def test_a_file_that_was_trained_antialiased_is_drawn_so(tmp_path):
    splats = wall(4.0, count=13)
    splats = replace(splats, log_scales=splats.log_scales - 3.0)
    write_ply(splats, tmp_path / "mip.ply", SplatMetadata(antialiased=True))
    scene = open_session(tmp_path / "mip.ply").looking.scene
    expected = render(splats, FRONT, antialiased=True).image
    assert not torch.equal(expected, render(splats, FRONT).image)
    assert torch.equal(draw("rgb", Looked(scene, None, FRONT)).image, expected)
    everywhere = Selection(crop=(np.full(3, -99.0), np.full(3, 99.0)))
    assert torch.allclose(draw("rgb", Looked(scene, None, FRONT, everywhere)).image, expected, atol=1e-5)


def test_a_pick_reads_what_is_behind_the_crop_box_and_says_when_there_is_nothing():
    scene = ViewedSplats(Splats.cat([wall(9.0), wall(4.0)]), np.zeros(3))
    behind = Selection(crop=(np.array([-99.0, -99.0, 6.0]), np.array([99.0, 99.0, 99.0])))
    assert pick(scene, FRONT, behind, 16, 16).depth == pytest.approx(9.0, abs=0.02)
    nothing = Selection(crop=(np.array([50.0, 50.0, 50.0]), np.array([51.0, 51.0, 51.0])))
    found = pick(scene, FRONT, nothing, 16, 16)
    assert found.point is None and found.depth is None and found.shares == () and found.count == 0


def test_normals_face_the_camera_whatever_the_rotation():
    generator = torch.Generator().manual_seed(0)
    quats = torch.randn(200, 4, generator=generator)
    means = torch.randn(200, 3, generator=generator) + torch.tensor([0.0, 0.0, 8.0])
    scales = torch.rand(200, 3, generator=generator) + 0.1
    gaussians = Gaussians(means, quats, scales, torch.ones(200), torch.ones(200, 3))
    normals = facing_normals(gaussians, FRONT)
    assert torch.allclose(normals.norm(dim=1), torch.ones(200), atol=1e-5)
    assert ((normals * -means).sum(1) >= -1e-5).all()


def test_layers_that_a_file_lacks_say_why(splat_file):
    session = open_session(splat_file)
    missing = {layer["id"]: layer["missing"] for layer in session.describe()["layers"]}
    assert not missing["rgb"] and not missing["normals"]
    for name in ("features", "blocks", "teacher", "difference", "error", "photo"):
        assert missing[name]
        with pytest.raises(UserError):
            draw(name, Looked(session.looking.scene, None, FRONT))


def test_the_nearest_frame_is_the_one_that_looks_the_same_way(session):
    for index in (0, 7, 15):
        assert nearest_frame(session.frames, session.frames[index].camera) == index
    camera = session.frames[3].camera
    ahead, above = camera.center + 9 * camera.cam_from_world[2, :3], -camera.cam_from_world[1, :3]
    pose = look_at(camera.center + 0.5, ahead, above)
    assert nearest_frame(session.frames, replace(camera, cam_from_world=pose)) == 3


def test_principal_colours_fill_the_range_and_do_not_depend_on_the_sign_of_features():
    features = torch.randn(500, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9)
    colors = principal_colors(features)
    assert colors.shape == (500, 3) and float(colors.min()) == 0 and float(colors.max()) == 1
    assert principal_colors(features[:2]).tolist() == [[0.5] * 3] * 2


@pytest.mark.parametrize("name", sorted(TABLES))
def test_colour_maps_change_lightness_in_one_direction(name):
    colors = colorised(torch.linspace(-0.5, 1.5, 101), name)
    luma = colors @ torch.tensor([0.299, 0.587, 0.114])
    steps = luma.diff()
    assert (steps >= -1e-6).all() or (steps <= 1e-6).all()
    table = torch.tensor(TABLES[name])
    assert torch.equal(colors[0], table[0]) and torch.equal(colors[-1], table[-1])
