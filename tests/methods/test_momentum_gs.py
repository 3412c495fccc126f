"""Momentum-GS on a scene small enough to look into: what moves, what is frozen, what is merged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scene_distill.blocks.runtime import Runtime
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.merged import TINT, MergedCity, block_tints
from scene_distill.methods.momentum_gs.method import MomentumGS

CONFIG = MomentumGSConfig(blocks=3, lanes=2, iterations=24, visits=4, image_width=80, grow_from=0.1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "city"))


def build(config, scene) -> MomentumGS:
    return MomentumGS(config, scene, ImageCache(scene.frames, config.image_width, 10**9))


def train(config, scene, folder: Path, listen=lambda step: None):
    method = build(config, scene)
    runtime = Runtime(method, method.rounds, folder)
    runtime.run(listen)
    return method, runtime


def same(a: MergedCity, b: MergedCity) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


def test_merged_anchors_lie_in_the_cell_of_their_block_and_nowhere_twice(scene, tmp_path):
    method, runtime = train(CONFIG, scene, tmp_path)
    city = method.merge(runtime.states())
    owners = method.partition.owner(city.anchors.positions.double().numpy() + city.origin)
    assert np.array_equal(owners, city.block.numpy())
    assert set(owners) == {0, 1, 2}


def test_saved_city_is_read_back_whole(scene, tmp_path):
    method, runtime = train(CONFIG, scene, tmp_path)
    city = method.merge(runtime.states())
    city.save(tmp_path / "m.safetensors")
    back = MergedCity.load(tmp_path / "m.safetensors")
    assert same(city, back) and back.metadata == city.metadata
    camera = method.images.camera(scene.frames[0])
    assert torch.equal(city.render(camera).image, back.render(camera).image)
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable"):
        MergedCity.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("threads", [1, 3])
def test_weights_do_not_depend_on_threads(scene, tmp_path, threads):
    from scene_distill.renderers import native

    before = native.get_threads()
    try:
        native.set_threads(2)
        a = train(CONFIG, scene, tmp_path / "two")
        native.set_threads(threads)
        b = train(CONFIG, scene, tmp_path / "other")
    finally:
        native.set_threads(before)
    assert same(a[0].merge(a[1].states()), b[0].merge(b[1].states()))


def test_the_decoder_is_frozen_in_the_last_visits_and_moves_before(scene, tmp_path):
    seen = {}
    method = build(CONFIG, scene)
    runtime = Runtime(method, method.rounds, tmp_path)

    def note(step):
        seen.setdefault(step.round, []).append(method.shared.student.weights[0].detach().clone())

    runtime.run(note)
    for round_ in method.rounds:
        weights = seen[round_.index]
        assert torch.equal(weights[0], weights[-1]) == round_.final


def test_independent_blocks_have_decoders_of_their_own(scene, tmp_path):
    method, runtime = train(replace(CONFIG, share_decoder=False, halo="private", consistency=0.0), scene, tmp_path)
    city = method.merge(runtime.states())
    assert len(city.decoders) == 3
    assert not torch.equal(city.decoders[0].weights[0], city.decoders[1].weights[0])
    camera = method.images.camera(scene.frames[0])
    alone = [city.render(camera, blocks=frozenset({k})).alpha.sum() for k in range(3)]
    assert float(city.render(camera).alpha.sum()) >= float(max(alone))
    rows = torch.arange(len(city)).flip(0)[::7]
    gaussians = city.slots(np.zeros(3), rows)
    direct = city.slots(np.zeros(3), torch.arange(len(city)))
    index = (rows[:, None] * 10 + torch.arange(10)).flatten()
    torch.testing.assert_close(gaussians.features, direct.features[index], rtol=1e-5, atol=1e-6)


def test_only_features_offsets_and_scales_move(scene, tmp_path):
    method = build(replace(CONFIG, growth_events=0, halo="private"), scene)
    first = {unit: method.first_state(unit) for unit in range(3)}
    runtime = Runtime(method, method.rounds, tmp_path)
    runtime.run()
    for unit, load in runtime.states().items():
        state = load()
        assert torch.equal(state["anchors.positions"], first[unit]["anchors.positions"])
        for name in ("offsets", "features", "log_scales"):
            assert not torch.equal(state[f"anchors.{name}"], first[unit][f"anchors.{name}"])


def test_the_papers_coarse_prerun_assigns_views_that_see_the_block(scene):
    method = build(replace(CONFIG, assignment="render", coarse_iterations=20, visits=2), scene)
    by_points = build(CONFIG, scene).assignment
    assert method.assignment.any(axis=0).all() and method.assignment.any(axis=1).all()
    assert (method.assignment == by_points).mean() > 0.6


def test_published_start_has_zero_features_and_offsets(scene):
    state = build(replace(CONFIG, start="paper"), scene).first_state(0)
    assert not state["anchors.features"].any() and not state["anchors.offsets"].any()


def test_no_anchor_starts_larger_than_it_may_become(scene):
    """A lone point far out would start with the distance to its neighbours as its size, and its volume would drown
    the loss of all others."""
    far = scene.points[:1] + np.array([0.0, 0.0, 80.0])
    lone = replace(scene, points=np.concatenate([scene.points, far]),
                   colors=np.concatenate([scene.colors, scene.colors[:1]]))  # fmt: skip
    method = build(CONFIG, lone)
    ids = [method.blocks.first_points(unit) for unit in range(3)]
    unit = next((u for u in range(3) if len(scene.points) in ids[u]), None)
    assert unit is not None
    sizes = method.first_state(unit)["anchors.log_scales"][:, 3:].exp()
    assert float(sizes.max()) == pytest.approx(4.0 * method.blocks.spacing, rel=1e-5)


def test_a_city_far_from_zero_trains_like_one_at_zero(scene, tmp_path):
    """UTM-sized coordinates: the training frame is moved, so float32 does not matter."""
    far = np.array([500_000.0, 4_000_000.0, 100.0])
    frames = tuple(replace(f, camera=f.camera.moved(-far)) for f in scene.frames)
    moved = replace(scene, frames=frames, points=scene.points + far)
    near_method, near = train(CONFIG, scene, tmp_path / "near")
    far_method, far_run = train(CONFIG, moved, tmp_path / "far")
    a = near_method.merge(near.states()).render(near_method.images.camera(scene.frames[0])).image
    b = far_method.merge(far_run.states()).render(far_method.images.camera(frames[0])).image
    assert float((a - b).abs().mean()) < 0.02


def test_a_tinted_picture_shows_which_block_drew_what(scene, tmp_path):
    method, runtime = train(CONFIG, scene, tmp_path)
    city, camera = method.merge(runtime.states()), method.images.camera(scene.frames[0])
    plain, tinted = city.render(camera), city.render_tinted(camera)
    assert torch.equal(plain.alpha, tinted.alpha)
    tints = block_tints(torch.arange(3))
    assert len({tuple(tint) for tint in tints.tolist()}) == 3
    for block in range(3):
        alone = replace(city, block=torch.full_like(city.block, block)).render_tinted(camera).image
        expected = torch.lerp(plain.image, plain.alpha[..., None] * tints[block], TINT)
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(tinted.image, alone)
