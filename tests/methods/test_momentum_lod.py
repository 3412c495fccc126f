"""Far anchors that give way to coarser ones: weights, the levels a block starts with, training, merge and file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scene_distill.blocks.runtime import Runtime
from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.far_views import LEAST_SIDE, octaves_of_step, seen_from_afar
from scene_distill.methods.momentum_gs.merged import MergedCity
from scene_distill.methods.momentum_gs.method import MomentumGS
from scene_distill.representations.anchors import Anchors
from scene_distill.representations.levels import COARSEST, LevelOfDetail
from scene_distill.training.scene_blocks import View

CONFIG = MomentumGSConfig(
    blocks=3, lanes=2, iterations=16, visits=2, image_width=60, grow_from=0.1, growth_views=2, level_of_detail=0.5
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "lod_city"))


@pytest.fixture(scope="module")
def trained(scene, tmp_path_factory):
    method = build(CONFIG, scene)
    runtime = Runtime(method, method.rounds, tmp_path_factory.mktemp("run"))
    runtime.run()
    return method, method.merge(runtime.states())


def build(config, scene):
    return MomentumGS(config, scene, ImageCache(scene.frames, config.image_width, 10**9))


@given(st.floats(0.1, 1e5), st.floats(0.1, 8.0), st.floats(0.01, 3.0), st.floats(10.0, 5000.0))
def test_the_levels_share_every_distance_among_them(depth, pixels, edge, focal):
    """The whole pyramid sums to one, at most two neighbouring levels are drawn, and none is nothing from near."""
    detail = LevelOfDetail(pixels, edge)
    weights = detail.weights(torch.arange(COARSEST + 1.0), torch.full((COARSEST + 1,), depth), focal)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    assert bool((weights >= -1e-6).all())
    drawn = (weights > 1e-6).nonzero().squeeze(1)
    assert int(drawn[-1] - drawn[0]) <= 1
    voxel = edge * focal / depth
    if voxel >= 2 * pixels:
        assert drawn.tolist() == [0]
    if voxel <= pixels:
        assert 0 not in drawn.tolist()


def test_an_anchor_is_drawn_where_its_voxel_has_its_pixels():
    detail = LevelOfDetail(2.0, 0.5)
    levels = torch.tensor([0.0, 0.0, 1.0, 1.0, -1.0, -1.0])
    voxel = torch.tensor([4.0, 2.0, 4.0, 2.0, 4.0, 2.0])  # pixels that the anchor's own voxel takes
    depth = 0.5 * 2**levels * 100 / voxel
    assert detail.weights(levels, depth, 100.0).tolist() == pytest.approx([1, 0, 1, 0, 1, 0])
    assert float(detail.weights(torch.tensor([1.0]), 0.5 * 2 * 100 / torch.tensor([8.0]), 100.0)) == pytest.approx(0)
    assert detail.of_cells(torch.tensor([1.0, 0.5, 0.25])).tolist() == [0, 0, -1]


def test_a_block_starts_with_a_stand_in_for_every_voxel_and_all_blocks_have_the_same(scene):
    method = build(CONFIG, scene)
    whole = build(replace(CONFIG, blocks=1, lanes=1), scene)
    edge = method.blocks.spacing * CONFIG.points_per_voxel
    everything = Anchors.of_state(whole.first_state(0))
    known = {(level, *p) for level, p in zip(everything.levels.tolist(), everything.positions.tolist(), strict=True)}
    for unit in range(3):
        anchors = Anchors.of_state(method.first_state(unit))
        points = scene.points[method.blocks.first_points(unit)] - method.blocks.origin
        for level in range(1, COARSEST + 1):
            mine = anchors.positions[anchors.levels == level]
            assert len(mine) == len(np.unique(np.round(points / (edge * 2**level)), axis=0))
            assert {(float(level), *p) for p in mine.tolist()} <= known
        assert len(torch.unique(anchors.positions, dim=0)) == len(anchors)


def test_without_the_switch_there_are_no_levels_and_the_start_is_the_same(scene):
    on, off = build(CONFIG, scene), build(replace(CONFIG, level_of_detail=0.0), scene)
    plain, fine = off.first_state(0), on.first_state(0)
    assert "anchors.levels" not in plain and off.detail is None
    near = fine["anchors.levels"] == 0
    for name, tensor in plain.items():
        assert torch.equal(tensor, fine[name][near]), name
    with pytest.raises(UserError, match="--level-of-detail is -1"):
        build(replace(CONFIG, level_of_detail=-1.0), scene)


def test_farther_pictures_are_means_of_the_photo_for_the_same_rays():
    photo = torch.arange(35.0 * 50 * 3).reshape(35, 50, 3)
    camera = Camera(50, 35, 40.0, 40.0, 25.0, 17.0, np.eye(4))
    far = seen_from_afar(View(3, camera, lambda: photo), 1)
    assert (far.camera.width, far.camera.height, far.index) == (25, 17, 3)
    assert far.photo().shape == (17, 25, 3)
    torch.testing.assert_close(far.photo()[2, 3], photo[4:6, 6:8].mean((0, 1)))
    point = np.array([[0.3, -0.2, 2.0]])
    np.testing.assert_allclose(far.camera.project(point)[0], camera.project(point)[0] / 2)
    octaves = [octaves_of_step(step, Camera(200, 150, 1, 1, 0, 0, np.eye(4))) for step in range(16)]
    assert octaves == [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1] and 150 >> 3 >= LEAST_SIDE > 150 >> 4
    assert octaves_of_step(3, Camera(20, 20, 1, 1, 0, 0, np.eye(4))) == 0


def test_stand_ins_learn_and_do_not_grow(scene, trained):
    method, city = trained
    first = {}
    for unit in range(3):
        anchors = Anchors.of_state(method.first_state(unit))
        rows = zip(anchors.positions.tolist(), anchors.features, strict=True)
        first |= {tuple(p): feature for p, feature in rows}
    places = [tuple(p) for p in city.anchors.positions.tolist()]
    pairs = zip(places, city.anchors.features, strict=True)
    moved = torch.tensor([not torch.equal(first.get(place, feature), feature) for place, feature in pairs])
    new = torch.tensor([place not in first for place in places])
    levels = city.anchors.levels
    assert bool(new.any()) and bool((levels[new] <= 0).all())
    assert bool(moved[levels > 0.5].any()) and bool(moved[levels < 0.5].any())


def test_distant_views_draw_fewer_anchors_and_still_see_the_ground(scene, trained):
    method, city = trained
    everything = replace(city, metadata={k: v for k, v in city.metadata.items() if k != "level_of_detail"})
    camera = method.images.camera(scene.frames[0])
    pose = camera.cam_from_world.copy()
    shares, covered = [], []
    for times in (1, 4, 16, 64):
        pose[2, 3] = camera.cam_from_world[2, 3] + (times - 1) * 56.0
        far = replace(camera, cam_from_world=pose.copy())
        local = far.moved(city.origin)
        rows, weights = city.drawn(local)
        shares.append(len(rows) / len(everything.drawn(local)[0]))
        assert len(weights) == len(rows) and bool((weights > 0).all())
        covered.append(float(city.render(far).alpha.sum() / everything.render(far).alpha.sum()))
    assert shares[0] > shares[1] > shares[2] and shares[3] < 0.1
    assert min(covered) > 0.5


def test_levels_survive_the_file_and_bakes_draw_what_near_views_draw(scene, trained, tmp_path):
    method, city = trained
    city.save(tmp_path / "city.safetensors")
    back = MergedCity.load(tmp_path / "city.safetensors")
    assert torch.equal(back.anchors.levels, city.anchors.levels) and back.detail == method.detail
    camera = method.images.camera(scene.frames[1])
    assert torch.equal(back.render(camera).image, city.render(camera).image)
    assert torch.equal(back.render_tinted(camera).alpha, city.render(camera).alpha)
    parts = [back.render(camera, blocks=frozenset({k})).alpha.sum() for k in range(3)]
    assert float(max(parts)) <= float(back.render(camera).alpha.sum())
    opacity = back.slots(np.zeros(3), torch.arange(len(back))).opacities.reshape(-1, 10)
    assert not opacity[back.anchors.levels > 0.5].any() and bool(opacity[back.anchors.levels < 0.5].any())
