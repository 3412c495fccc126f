"""Figures about text-to-3D objects on cases whose right answer is known."""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from toy_judges import ORBIT, NearestJudge, TwoFaced

from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.data.captioned_shapes import COLOR_NAMES, SHAPE_NAMES, Toy
from scene_distill.data.captioned_shapes_pictures import NATURAL
from scene_distill.data.captioned_shapes_primitives import ball
from scene_distill.priors.renders import RenderMixture
from scene_distill.training.caption_retrieval import (
    CHANCE_PAIRS,
    CHANCE_PARTS,
    caption_scores,
    first_share,
    place_of,
    retrieval,
)
from scene_distill.training.janus import Janus, has_face, janus_by_prior
from scene_distill.training.object_health import divergence, saturation
from scene_distill.training.object_views import ObjectViews, Orbit, object_views
from scene_distill.training.text_to_3d_metrics import FIGURES, Asked, ceiling, figures_of, measured
from scene_distill.training.toy_objects import ToyObject, ToyPicture, depth_of, toy_object
from scene_distill.training.view_consistency import consistency

ROBOT, DUCK, MUSHROOM = Toy("red", "robot"), Toy("blue", "duck", "pink"), Toy("green", "mushroom")


@pytest.fixture(scope="module")
def judge() -> NearestJudge:
    return NearestJudge([ROBOT, DUCK, MUSHROOM])


@dataclass(frozen=True)
class Painted:
    """A ball whose colours are a function of the pixel, given its exact depth."""

    paint: object

    def __call__(self, camera):
        solids = [ball((0, 0, 0), 0.8, np.ones(3))]
        depth = torch.from_numpy(depth_of(solids, camera))
        hit = (depth > 0).float()
        image = self.paint(camera) * hit[..., None] + 0.86 * (1 - hit[..., None])
        return ToyPicture(image, hit, depth)


def flat(value: float) -> Painted:
    return Painted(lambda camera: torch.full((camera.height, camera.width, 3), value))


def squares(raw: torch.Tensor, alpha: torch.Tensor | None = None) -> ObjectViews:
    """Views [V, 3, 8, 8] without depth, covered everywhere."""
    orbit = Orbit(views=len(raw), size=8)
    return ObjectViews(orbit, raw, torch.ones(len(raw), 8, 8) if alpha is None else alpha, None)


def test_the_toy_itself_scores_as_it_should(judge: NearestJudge):
    for toy in (ROBOT, DUCK):
        found = measured(toy_object(toy, "rig"), Asked(toy, judge), ORBIT)
        assert set(found) == {*FIGURES, "why"}
        assert found["r_precision"] == found["r_precision_parts"] == found["r_precision_object"] == 1
        assert found["janus"] == 0 and found["front_found"] == 1 and found["diverged"] == 0
        assert found["overlap"] > 0.4 and found["inconsistency"] < 0.06 and found["sharpness"] > 0.002


def test_a_two_faced_object_scores_janus_by_judge_and_by_prior(judge: NearestJudge):
    two_faced = object_views(TwoFaced(toy_object(ROBOT, "rig")), ORBIT)
    assert figures_of(two_faced, Asked(ROBOT, judge))["janus"] == 1
    prior = RenderMixture(judge.images, judge.captions)
    found = figures_of(two_faced, Asked(ROBOT, judge), prior)
    assert found["janus_prior"] == 1 and found["front_found_prior"] == 1
    honest = object_views(toy_object(ROBOT, "rig"), ORBIT)
    by_prior = janus_by_prior(prior, "a red robot", honest)
    assert by_prior.back == 0 and by_prior.front == 1


def test_a_face_is_what_is_told_apart():
    assert has_face(Janus(back=0.1, front=0.9)) and not has_face(Janus(back=0.6, front=0.9))
    assert not has_face(Janus(float("nan"), float("nan")))


def test_a_flat_grey_object_is_consistent_but_not_sharp(judge: NearestJudge):
    found = measured(flat(0.5), Asked(ROBOT, judge), ORBIT)
    assert found["inconsistency"] == pytest.approx(0, abs=1e-6) and found["sharpness"] == pytest.approx(0, abs=1e-9)
    assert found["overlap"] > 0.5 and found["r_precision"] == 0 and found["chroma"] == pytest.approx(0, abs=1e-6)
    assert found["diverged"] == 0


@settings(max_examples=6, deadline=None)
@given(st.floats(0.0, 0.5))
def test_colours_that_change_from_view_to_view_differ_by_as_much(step: float):
    cameras = Orbit(views=8, size=24).cameras()
    number = {camera.center.round(6).tobytes(): i for i, camera in enumerate(cameras)}

    def paint(camera):
        return torch.full((24, 24, 3), 0.2 + step * (number[camera.center.round(6).tobytes()] % 2))

    found = consistency(object_views(Painted(paint), Orbit(views=8, size=24)))
    assert found.inconsistency == pytest.approx(step, abs=1e-5) and found.overlap > 0.3


def test_a_texture_on_the_object_is_consistent_and_one_on_the_camera_is_not():
    def on_object(camera):
        depth = torch.from_numpy(depth_of([ball((0, 0, 0), 0.8, np.ones(3))], camera))
        y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        in_camera = torch.stack([(x - camera.cx) / camera.fx * depth, (y - camera.cy) / camera.fy * depth, depth,
                                 torch.ones_like(depth)], -1)  # fmt: skip
        world = in_camera.double() @ torch.from_numpy(camera.world_from_cam).T
        return (0.5 + 0.3 * torch.sin(4 * world[..., :3])).float()

    def on_camera(camera):
        y, x = torch.meshgrid(torch.arange(64) / 6, torch.arange(64) / 6, indexing="ij")
        return (0.5 + 0.3 * torch.sin(torch.stack([x, y, x + y], -1))).float()

    good, bad = (consistency(object_views(Painted(paint), Orbit())) for paint in (on_object, on_camera))
    assert good.inconsistency < 0.005 and bad.inconsistency > 0.1
    assert good.sharpness > 5e-4 and bad.sharpness > 5e-4


def test_without_a_place_nothing_is_compared():
    views = object_views(flat(0.5), ORBIT)
    fog = replace(views, depth=torch.where(views.depth > 0, views.depth + torch.arange(12.0)[:, None, None], 0.0))
    assert consistency(fog).overlap < 0.02
    none = consistency(replace(views, depth=None))
    assert math.isnan(none.inconsistency) and none.overlap == 0 and none.sharpness == pytest.approx(0)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.12), st.floats(0, 0.12))
def test_sharpness_is_the_gradient_energy_of_a_ramp(across: float, down: float):
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ramp = (across * x / 2 + down * y / 2).expand(2, 3, 8, 8)
    assert consistency(squares(ramp)).sharpness == pytest.approx((across**2 + down**2) / 4, abs=1e-6)


def test_the_outline_is_not_sharpness():
    image, alpha = torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8)
    image[..., 2:6, 2:6], alpha[..., 2:6, 2:6] = 0.9, 1
    assert consistency(squares(image, alpha)).sharpness == 0


def test_a_judge_that_sees_nothing_scores_chance_exactly():
    blind = {"color": torch.zeros(5, 10), "shape": torch.zeros(5, 16), "part_color": torch.zeros(5, 11)}
    found = retrieval(blind, DUCK)
    assert found.pairs == pytest.approx(CHANCE_PAIRS) == pytest.approx(1 / 160)
    assert found.parts == pytest.approx(CHANCE_PARTS) == pytest.approx(1 / 1760)
    assert found.whole_pairs == pytest.approx(CHANCE_PAIRS)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 40]))
def test_every_picture_retrieves_one_caption(seed: int, values: int):
    """Over all captions the shares add up to one, ties included."""
    generator = torch.Generator().manual_seed(seed)
    logs = {
        name: torch.randint(values, (3, count), generator=generator).double()
        for name, count in (("color", 10), ("shape", 16), ("part_color", 11))
    }
    scores = caption_scores(logs, parts=False)
    total = sum(first_share(scores, place) for place in range(160))
    assert torch.allclose(total, torch.ones(3, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(COLOR_NAMES), st.sampled_from(SHAPE_NAMES), st.sampled_from([None, *COLOR_NAMES]))
def test_a_sure_judge_retrieves_its_own_caption_and_no_other(color, shape, part):
    toy = Toy(color, shape, part)
    places = (COLOR_NAMES.index(color), SHAPE_NAMES.index(shape), COLOR_NAMES.index(part) if part else NATURAL)
    sizes = {"color": 10, "shape": 16, "part_color": 11}
    sure = {name: 9 * torch.eye(size)[[place]] for (name, size), place in zip(sizes.items(), places, strict=True)}
    assert retrieval(sure, toy).parts == 1 and 0 <= place_of(toy, True) < 1760
    other = Toy(color, shape, "red" if part is None else None)
    assert retrieval(sure, other).pairs == 1 and retrieval(sure, other).parts == 0


def test_a_whole_object_is_read_from_all_its_views():
    votes = torch.full((3, 10), -5.0)
    votes[0, 1], votes[1, 2], votes[2, 1] = 3, 0, 3
    logits = {"color": votes, "shape": 9 * torch.eye(16)[[4] * 3], "part_color": torch.zeros(3, 11)}
    found = retrieval(logits, Toy(COLOR_NAMES[1], SHAPE_NAMES[4]))
    assert found.pairs == pytest.approx(2 / 3) and found.whole_pairs == 1


def test_saturation_counts_the_ends_of_the_range_inside_the_object():
    raw = torch.full((2, 3, 8, 8), 0.5)
    raw[:, 0, :2], raw[:, 1, 7] = 1.3, -0.2
    found = saturation(squares(raw))
    assert found.clipped == pytest.approx(3 / 8)
    assert found.chroma == pytest.approx((2 * 0.5 + 0.5) / 8, abs=1e-6)
    assert math.isnan(saturation(squares(raw, torch.zeros(2, 8, 8))).clipped)


def gaussians(scale: float, opacity: float = 0.8) -> Gaussians:
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(50, 1)
    return Gaussians(torch.zeros(50, 3), quats, torch.full((50, 3), scale), torch.full((50,), opacity),
                     torch.zeros(50, 3))  # fmt: skip


def test_reasons_of_divergence():
    views = object_views(flat(0.5), ORBIT)
    assert divergence(views) == "" and divergence(views, gaussians(0.05)) == ""
    broken = views.raw.clone()
    broken[3, 0, 5, 5] = torch.nan
    assert divergence(replace(views, raw=broken)) == "not a number"
    assert divergence(replace(views, alpha=torch.zeros_like(views.alpha))) == "nothing there"
    assert divergence(replace(views, alpha=torch.ones_like(views.alpha))) == "fills the picture"
    assert divergence(views, gaussians(3.0)) == "exploded"
    assert divergence(views, gaussians(0.05, 0.001)) == "nothing there"
    assert divergence(views, gaussians(torch.inf)) == "not a number"
    one = views.alpha.clone()
    one[0] = 0
    assert divergence(replace(views, alpha=one)) == "", "a single empty view is no divergence"


def test_what_is_not_there_has_no_face(judge: NearestJudge):
    views = object_views(flat(0.5), ORBIT)
    found = figures_of(replace(views, alpha=torch.zeros_like(views.alpha)), Asked(ROBOT, judge))
    assert found["diverged"] == 1 and math.isnan(found["janus"]) and math.isnan(found["front_found"])


def test_the_ceiling_of_an_exact_prior_is_what_the_judge_can_read(judge: NearestJudge):
    prior = RenderMixture(judge.images, judge.captions, std=0.02)
    found = ceiling(prior, judge, [ROBOT, DUCK], Orbit(views=4, size=32), guidance=1.0, steps=12)
    assert found["r_precision"] == found["r_precision_parts"] == 1 and found["janus"] == 0
    assert found["pictures"] == 8 and found["chance"] == pytest.approx(0.00625)


def test_orbits_name_their_views():
    orbit = Orbit(views=8, size=16)
    assert orbit.words == ("front", "front", "side", "back", "back", "back", "side", "front")
    assert [round(float(c.center[2]), 3) for c in orbit.cameras()] == [round(3.2 * math.sin(math.radians(15)), 3)] * 8
    assert Orbit(views=4, elevation=70).words == ("overhead",) * 4
    with pytest.raises(UserError, match="at least 2 views"):
        Orbit(views=1)


def test_a_ball_has_the_depth_of_its_surface():
    camera = Orbit(views=4, size=33, elevation=0).cameras()[0]
    drawn = ToyObject([ball((0, 0, 0), 0.5, np.ones(3))])(camera)
    assert float(drawn.depth[16, 16]) == pytest.approx(3.2 - 0.5, abs=1e-4)
    assert float(drawn.depth[0, 0]) == 0 and float(drawn.alpha[0, 0]) == 0 and float(drawn.alpha[16, 16]) == 1
