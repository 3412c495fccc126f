"""The switches of the papers' code: what each changes, and that off means off."""

from dataclasses import replace

import pytest
import torch

from scene_distill.blocks.runtime import Runtime
from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.merged import MergedCity
from scene_distill.methods.momentum_gs.method import MomentumGS
from scene_distill.nets.gaussian_decoder import BANK, DISTANCE, DecoderOptions, decoder_from_state, make_decoder
from scene_distill.objectives.momentum import consistency
from scene_distill.objectives.photometric import exposed, exposure_fit
from scene_distill.renderers.anchors import decode
from scene_distill.representations.anchors import Anchors

CONFIG = MomentumGSConfig(blocks=3, lanes=2, iterations=12, visits=3, image_width=60, grow_from=0.1)
EVERYTHING = DecoderOptions(True, True, True, True, appearance_dim=4, views=5)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "switch_city"))


def train(config, scene, folder, listen=lambda step: None):
    method = MomentumGS(config, scene, ImageCache(scene.frames, config.image_width, 10**9))
    runtime = Runtime(method, method.rounds, folder)
    runtime.run(listen)
    return method, runtime


def anchors(count: int = 7) -> Anchors:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Anchors(draw(count, 3), draw(count, 10, 3), draw(count, 32), 0.3 * draw(count, 6))


def camera(distance: float = 9.0) -> Camera:
    return Camera(
        40, 30, 40.0, 40.0, 20.0, 15.0, look_at(*torch.tensor([[0, 0, distance], [0, 0, 0], [0, 1.0, 0]]).numpy())
    )


def drawn(decoder, distance: float = 9.0):
    return decode(anchors(), decoder, torch.arange(7), camera(distance))


def fields(gaussians):
    return [getattr(gaussians, name) for name in ("means", "quats", "scales", "opacities", "features")]


def test_distance_and_appearance_start_without_effect_and_the_heads_are_those_of_the_fast_op():
    plain = drawn(make_decoder(0, color_init=False))
    options = replace(EVERYTHING, use_feat_bank=False)
    for a, b in zip(fields(plain), fields(drawn(make_decoder(0, color_init=False, options=options))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "moved"), [(DISTANCE[0], "opacities"), (DISTANCE[1], "scales"), (DISTANCE[2], "features")]
)
def test_a_head_that_sees_the_distance_is_the_only_one_that_changes(name, moved):
    decoder = make_decoder(0, color_init=False, options=EVERYTHING)
    before = drawn(decoder)
    decoder.find(name).add_(torch.linspace(-1, 1, 32))
    after = drawn(decoder)
    changed = {n for n in ("opacities", "scales", "features") if not torch.equal(getattr(before, n), getattr(after, n))}
    assert changed == {moved}


def test_the_bank_blends_three_resolutions_of_the_feature():
    decoder = make_decoder(0, color_init=False, options=DecoderOptions(use_feat_bank=True))
    for weight in (decoder.find(BANK[0]), decoder.find(BANK[2])):
        weight.zero_()
    plain, given = make_decoder(0, color_init=False), anchors()
    for k, step in enumerate((4, 2, 1)):
        decoder.find(BANK[3]).copy_(100.0 * torch.eye(3)[k])
        tiled = replace(given, features=given.features[:, ::step].repeat(1, step))
        expected = decode(tiled, plain, torch.arange(7), camera())
        for a, b in zip(fields(expected), fields(drawn(decoder)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_appearance_changes_colours_alone_and_its_mean_draws_other_views():
    decoder = make_decoder(0, color_init=False, options=DecoderOptions(appearance_dim=4, views=5))
    table = decoder.find("appearance.table")
    table.copy_(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
    one, other, unknown = (drawn(decoder.in_view(view)) for view in (0, 1, None))
    assert torch.equal(one.scales, other.scales) and torch.equal(one.opacities, other.opacities)
    assert not torch.allclose(one.features, other.features)
    table.copy_(table.mean(0).expand(5, 4).clone())
    torch.testing.assert_close(drawn(decoder.in_view(3)).features, unknown.features)


def test_every_option_gets_gradients_and_goes_through_a_state():
    decoder = make_decoder(0, color_init=False, options=EVERYTHING)
    decoder.find("appearance.table").add_(0.1)
    leaf = decoder.trainable()
    sum(field.square().sum() for field in fields(drawn(leaf.in_view(2)))).backward()
    for name, weight in zip(leaf.names, leaf.weights, strict=True):
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    table = leaf.find("appearance.table").grad
    assert table[2].abs().sum() > 0 and not table[[0, 1, 3, 4]].any()
    back = decoder_from_state(leaf.state("x"), "x")
    assert back.names == leaf.names and all(torch.equal(a, b) for a, b in zip(back.weights, leaf.weights, strict=True))


def test_the_plain_quaternion_loss_punishes_the_other_sign():
    g = drawn(make_decoder(0, color_init=True))
    flipped = replace(g, quats=-g.quats)
    assert float(consistency(g, flipped)) == pytest.approx(0.0, abs=1e-9)
    assert float(consistency(g, flipped, "plain")) == pytest.approx(1.0, rel=1e-5)  # |2q|^2 / 4
    assert float(consistency(g, g, "plain")) == pytest.approx(0.0, abs=1e-9)


def test_exposure_is_undone_where_it_is_affine_and_held_back_by_the_prior():
    photo = torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(0))
    render = (photo - 0.1) / 0.8
    none = torch.tensor([[1.0] * 3, [0.0] * 3])
    fit = exposure_fit(render, photo, 1e-8)
    torch.testing.assert_close(fit, torch.tensor([[0.8] * 3, [0.1] * 3]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(exposed(render, fit, none), photo, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(exposure_fit(render, photo, 1e8), none, rtol=1e-3, atol=1e-3)


def test_an_exposure_that_is_usual_changes_nothing():
    render = torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(0))
    usual, fit = torch.tensor([[1.5] * 3, [-0.2] * 3]), torch.tensor([[0.75] * 3, [0.1] * 3])
    torch.testing.assert_close(exposed(render, usual, usual), render)
    scene = 1.5 * render - 0.2  # any scene in an exposure of its own gives the photo
    torch.testing.assert_close(exposed(scene, fit, usual), 0.75 * render + 0.1)


def test_exposures_are_fitted_from_their_step_on_and_their_mean_stays_with_the_block(scene, tmp_path):
    plain = train(CONFIG, scene, tmp_path / "plain")
    never = train(replace(CONFIG, exposure=0.01, exposure_from=1.0), scene, tmp_path / "never")
    late = train(replace(CONFIG, exposure=0.01), scene, tmp_path / "late")
    models = [method.merge(runtime.states()).anchors.features for method, runtime in (plain, never, late)]
    assert torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])
    for saved in late[1].states().values():
        gain, bias = saved()["exposure.usual"]
        assert ((gain > 0.2) & (gain < 2)).all() and bias.abs().max() < 0.6
    assert all("exposure.usual" not in saved() for saved in never[1].states().values())


def test_the_teacher_and_the_memory_move_on_their_clocks(scene, tmp_path):
    for clock in ("step", "visit"):
        config = replace(CONFIG, teacher_clock=clock, memory=1.0, memory_momentum=0.5)
        method = MomentumGS(config, scene, ImageCache(scene.frames, config.image_width, 10**9))
        seen: dict[int, list] = {}

        def note(step, method=method, seen=seen):
            teachers = (method.shared.teacher, method.shared.memory)
            seen.setdefault(step.round, []).append([t.decoder.weights[0].clone() for t in teachers])

        Runtime(method, method.rounds, tmp_path / clock).run(note)
        learning = [r.index for r in method.rounds if not r.final]
        for index in learning:
            steps = seen[index]
            assert torch.equal(steps[0][0], steps[-1][0]) == (clock == "visit")
            assert torch.equal(steps[0][1], steps[-1][1])
        assert not torch.equal(seen[learning[0]][0][1], seen[learning[-1]][0][1])


def test_the_order_of_blocks_is_the_one_that_was_asked_for(scene):
    order = {}
    for name in ("interleaved", "contiguous"):
        config = replace(CONFIG, blocks=7, lanes=3, block_order=name)
        method = MomentumGS(config, scene, ImageCache(scene.frames, config.image_width, 10**9))
        order[name] = [visit.unit for round_ in method.rounds for visit in round_.visits]
        assert sorted(order[name]) == sorted(3 * list(range(7)))
    assert order["contiguous"] == 3 * list(range(7))
    assert order["interleaved"] != order["contiguous"]


def test_appearance_ids_survive_the_merge_and_the_file(scene, tmp_path):
    config = replace(CONFIG, appearance_dim=3, use_feat_bank=True, add_color_dist=True)
    method, runtime = train(config, scene, tmp_path)
    city = method.merge(runtime.states())
    city.save(tmp_path / "city.safetensors")
    back = MergedCity.load(tmp_path / "city.safetensors")
    names = [frame.name for frame in scene.train_frames]
    view = method.images.camera(scene.train_frames[0])
    table = back.decoders[0].find("appearance.table")
    assert table.shape == (len(names), 3) and table.abs().sum() > 0
    pictures = [back.as_photographed_in(name).render(view).image for name in names[:2]]
    assert not torch.equal(*pictures)
    assert torch.equal(pictures[0], city.as_photographed_in(names[0]).render(view).image)
    with pytest.raises(UserError, match="no photo that this city was trained on"):
        back.as_photographed_in("nobody.jpg")
