"""Views and view prompts of text to 3D."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_rig import small_prior

from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes_renderer import orbit_camera as toy_camera
from scene_distill.methods.text_to_3d.view_prompts import (
    blended,
    describe_views,
    negative_weights,
    perp_neg,
    view_weights,
)
from scene_distill.methods.text_to_3d.views import ViewRange, Zoom, draw_views, orbit_camera, orbit_views
from scene_distill.objectives.score_teacher import Progress
from scene_distill.priors.prior import Condition


def angles_of(camera) -> tuple[float, float, float]:
    x, y, z = camera.center
    distance = float(np.linalg.norm(camera.center))
    return float(np.degrees(np.arctan2(y, x))), float(np.degrees(np.arcsin(z / distance))), distance


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 6))
def test_views_stand_where_they_say_and_look_at_the_object(seed: int, quarters: bool, count: int) -> None:
    views = ViewRange(size=20, count=count, quarters=quarters, distance=(3.0, 3.5))
    batch = draw_views(views, Progress(0, 10), torch.Generator().manual_seed(seed))
    for camera, azimuth, elevation in zip(batch.cameras, batch.azimuth, batch.elevation, strict=True):
        found = angles_of(camera)
        assert abs((found[0] - float(azimuth) + 180) % 360 - 180) < 1e-6
        assert found[1] == pytest.approx(float(elevation), abs=1e-6)
        assert 3.0 <= found[2] <= 3.5
        assert -5 <= float(elevation) <= 50 or 62 <= float(elevation) <= 85
        pixel, depth = camera.project(np.zeros((1, 3)))
        assert np.allclose(pixel, 10.0) and depth[0] == pytest.approx(found[2])
    if quarters and count > 1:
        steps = np.diff(np.sort(np.mod(batch.azimuth.numpy(), 360)))
        assert max(*steps, 360 - steps.sum()) <= 2 * 360 / count + 1e-6


def test_our_cameras_are_the_toy_worlds() -> None:
    ours, theirs = orbit_camera(32, 50.0, 20.0, 3.1, 40.0), toy_camera(32, 50.0, 20.0, 3.1)
    assert np.allclose(ours.cam_from_world, theirs.cam_from_world) and ours.fx == pytest.approx(theirs.fx)


def test_zoom_follows_dreamer_xl() -> None:
    views = ViewRange(distance=(5.2, 5.5), elevation=(-15, 45), field_of_view=(18.3, 34.4), zoom=Zoom(every=0.2))
    late = views.at(Progress(999, 1000))
    assert views.at(Progress(199, 1000)) == views
    assert views.at(Progress(200, 1000)).distance == pytest.approx((5.2 * 0.95, 5.5 * 0.95))
    assert late.distance == pytest.approx((5.2 * 0.95**4, 5.0))
    assert late.field_of_view == pytest.approx((9.2, 34.4)) and late.elevation == pytest.approx((-60.0, 80.0))


def test_turntables_begin_at_the_front_and_close_the_circle() -> None:
    circle, opened = orbit_views(8, 10), orbit_views(9, 10, ends="open")
    assert circle.azimuth.tolist() == [45.0 * n for n in range(8)]
    assert np.allclose(opened.cameras[0].cam_from_world, opened.cameras[-1].cam_from_world, atol=1e-12)
    assert angles_of(circle.cameras[2])[0] == pytest.approx(90.0)


def test_views_from_one_place_share_a_number() -> None:
    near = draw_views(ViewRange(count=1, azimuth=(10, 12), elevation=(10, 12), overhead=0, quarters=False),
                      Progress(), torch.Generator().manual_seed(1))  # fmt: skip
    again = draw_views(ViewRange(count=1, azimuth=(8, 9), elevation=(8, 9), overhead=0, quarters=False),
                       Progress(), torch.Generator().manual_seed(2))  # fmt: skip
    other = draw_views(ViewRange(count=1, azimuth=(48, 49), elevation=(8, 9), overhead=0, quarters=False),
                       Progress(), torch.Generator().manual_seed(2))  # fmt: skip
    assert near.ids.tolist() == again.ids.tolist() != other.ids.tolist()


def test_view_words_go_round_with_the_angle() -> None:
    azimuth = torch.tensor([0.0, 45.0, 90.0, -135.0, 180.0, 30.0, 360.0], dtype=torch.float64)
    elevation = torch.tensor([0.0, 0.0, 10.0, 0.0, 0.0, 60.0, 80.0], dtype=torch.float64)
    expected = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 1, 0], [1 / 3, 1 / 6, 0, 0.5],
                [0, 0, 0, 1]]  # fmt: skip
    found = view_weights(azimuth, elevation)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))
    assert view_weights(azimuth, elevation, "nearest").sum(1).tolist() == [1.0] * 7
    assert view_weights(azimuth[3:5], elevation[3:5], "nearest")[1].tolist() == [0, 0, 1, 0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_blending_conditions_is_a_weighted_sum(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = Condition(torch.randn(4, 3, 5, generator=generator), torch.randn(4, 6, generator=generator))
    weights = torch.rand(7, 4, generator=generator) * (torch.rand(7, 4, generator=generator) < 0.6)
    weights[:, 0] += 0.1
    weights = weights / weights.sum(1, keepdim=True)
    mixed = blended(table, weights)
    assert torch.allclose(mixed.pooled, weights @ table.pooled, atol=1e-5)
    assert torch.allclose(mixed.tokens, torch.einsum("ck,kld->cld", weights, table.tokens), atol=1e-5)


def test_prompts_from_all_sides_choose_the_pictures_of_that_side() -> None:
    prior = small_prior()
    prompts = describe_views(prior, "a red mug")
    roles = prompts.roles(torch.tensor([0.0, 180.0]), torch.tensor([5.0, 5.0]))
    chosen = [[prior.captions[i] for i in row.nonzero().flatten().tolist()] for row in roles["wanted"].pooled]
    assert all(caption == "a red mug, front view" for caption in chosen[0]) and chosen[0]
    assert all(caption == "a red mug, back view" for caption in chosen[1]) and chosen[1]
    assert roles["unwanted"].rows == roles["empty"].rows == 1


def test_negative_views_weigh_least_where_they_are_wanted() -> None:
    weights = negative_weights(torch.tensor([0.0, 45.0, 89.999, 90.0, 180.0]), 2.0).tolist()
    assert all(weight <= 0 for row in weights for weight in row)
    assert weights[0] == pytest.approx([-2 * np.exp(-2), -2.0])
    assert weights[2] == pytest.approx(weights[3], rel=1e-2, abs=1e-3)
    assert weights[3][1] == pytest.approx(-2 * np.exp(-10), rel=1e-4)
    assert weights[4] == pytest.approx([-2.0, -2.0])
    prior = small_prior()
    prompts = describe_views(prior, "a red mug")
    roles, combine = perp_neg(prompts, torch.tensor([0.0, 180.0]), 2.0)
    assert combine(7.5).roles == ("unwanted", "wanted", *roles)
    assert [row.pooled.tolist() for row in roles.values()] == [prompts.views.pooled[i : i + 1].tolist() for i in (0, 1)]
    with pytest.raises(UserError, match="needs view words"):
        perp_neg(describe_views(prior, "a red mug", blend="none"), torch.zeros(1), 2.0)


def test_prompts_that_name_a_view_or_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="names a view"):
        describe_views(small_prior(), "a red mug, side view")
    with pytest.raises(UserError, match="prompt is empty"):
        describe_views(small_prior(), "  ")
