"""Gaussians of text to 3D: starts, clips, clamps, depth, growth."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_rig import small_config

from scene_distill.core.errors import UserError
from scene_distill.methods.dreamer_xl.config import DreamerXLConfig
from scene_distill.methods.dreamer_xl.gaussians import GaussianObjects
from scene_distill.methods.dreamer_xl.pictures import clamped, disparity
from scene_distill.methods.dreamer_xl.recipe import Spikes
from scene_distill.methods.dreamer_xl.start import shap_e_points, start_points
from scene_distill.methods.dreamer_xl.trained import TrainedGaussians
from scene_distill.methods.text_to_3d.backgrounds import draw_backgrounds, plain
from scene_distill.methods.text_to_3d.views import orbit_views
from scene_distill.objectives.score_teacher import Progress
from scene_distill.objectives.total_variation import total_variation

CAMERAS = orbit_views(3, 24, 20.0).cameras


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def opened(config: DreamerXLConfig):
    objects = GaussianObjects(config)
    return objects.open(objects.first_state("a red mug", generator()))


def gradients(config: DreamerXLConfig, upstream: torch.Tensor) -> dict[str, torch.Tensor]:
    live = opened(config)
    views = live.render(CAMERAS, plain().expand(3, 3), Progress(), generator(1))
    (views.image * upstream).sum().backward()
    return {name: tensor.grad for name, tensor in live.parameters.items()}


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["ball", "shell", "boxes"]), st.integers(4, 200), st.integers(0, 100))
def test_starts_fill_their_radius(kind: str, count: int, seed: int) -> None:
    points = start_points(kind, count, 0.5, generator(seed))
    assert points.shape == (count, 3) and bool(torch.isfinite(points).all())
    assert float(points.norm(dim=1).max()) < 1.2
    assert torch.equal(points, start_points(kind, count, 0.5, generator(seed)))


def test_shap_e_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no Shap-E pipeline"):
        shap_e_points(tmp_path, "a red mug", 10, 0.5, generator())
    with pytest.raises(UserError, match="belong together"):
        small_config("dreamer-xl", start="shap-e")


def test_clips_inside_the_rasterizer_equal_clips_of_the_picture() -> None:
    """The kernel's bound (no depth drawn) and the hook on the picture (depth drawn) give the Gaussians the same."""
    upstream = torch.randn(3, 24, 24, 3, generator=generator(2))
    upstream[0, 12, 12] *= 100
    plain_config = small_config("dreamer-xl", clip="pixel", clip_limit=0.1)
    inside = gradients(plain_config, upstream)
    outside = gradients(replace(plain_config, tv_depth=1.0, depth_clip=0.0), upstream)
    without = gradients(replace(plain_config, clip="none"), upstream)
    for name in inside:
        assert torch.allclose(inside[name], outside[name], rtol=1e-3, atol=1e-5), name
        assert float(inside[name].abs().sum()) < float(without[name].abs().sum())
    with_spike, spikeless = upstream.clone(), upstream.clone()
    spikeless[0, 12, 12] /= 100
    moved = [gradients(replace(plain_config, clip="tensor"), u)["means"].norm() for u in (with_spike, spikeless)]
    assert moved[0] < 0.25 * moved[1]


def test_colours_that_left_the_range_find_back() -> None:
    values = torch.tensor([-0.5, 0.5, 1.5, 1.5, -0.5], requires_grad=True)
    shown = clamped(values, True)
    (shown * torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])).sum().backward()
    assert shown.tolist() == [0.0, 0.5, 1.0, 1.0, 0.0]
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 0.0, -1.0]
    hard = torch.tensor([1.5], requires_grad=True)
    clamped(hard, False).sum().backward()
    assert hard.grad.tolist() == [0.0]


def test_disparity_is_one_in_front_and_zero_behind() -> None:
    depth = torch.tensor([[2.0, 3.0, 4.0, 0.0]])
    alpha = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    near = disparity(depth, alpha, CAMERAS[0])
    assert near[0, 0] == 1 and near[0, 2] == 0 and near[0, 3] == 0 and 0 < near[0, 1] < 0.5
    assert disparity(depth, torch.zeros(1, 4), CAMERAS[0]).sum() == 0


def test_total_variation_of_a_ramp() -> None:
    ramp = torch.linspace(0, 1, 11).reshape(1, 1, 11, 1).expand(2, 5, 11, 3)
    assert float(total_variation(ramp)) == pytest.approx(2 * 0.01, rel=1e-4)


def test_the_prior_can_be_shown_depth() -> None:
    live = opened(small_config("dreamer-xl", depth_share=1.0, start_opacity=0.99))
    views = live.render(CAMERAS, plain().expand(3, 3), Progress(), generator(1))
    assert views.taught is not None and views.lesson.shape == (3, 3, 24, 24)
    shown = views.lesson.detach()
    assert 0 <= float(shown.min()) < float(shown.max()) <= 1
    views.lesson.sum().backward()
    assert float(live.parameters["means"].grad.abs().sum()) > 0


def steps_of(config: DreamerXLConfig, count: int) -> list[float]:
    live, numbers = opened(config), []
    for step in range(count):
        progress = Progress(step, count)
        views = live.render(CAMERAS, plain().expand(3, 3), progress, generator(step))
        (views.image.square().sum() + sum(live.losses(views, progress).values())).backward()
        numbers.append(live.step(progress, generator(100 + step))["splats"])
    return numbers


def test_growth_fills_its_room_and_stops() -> None:
    config = small_config("dreamer-xl", grow_from=0.2, grow_until=0.8, growth_events=3, size_loss=0.5, tv=0.1)
    counts = steps_of(config, 20)
    assert counts[:4] == [60.0] * 4 and counts[-1] == max(counts) <= 90 and counts[-1] > 60
    assert len(set(counts[16:])) == 1


@pytest.mark.parametrize(("bounds", "far"), [(0.0, 1), (1.1, 0)])
def test_growth_removes_what_lies_outside(bounds: float, far: int) -> None:
    live = opened(small_config("dreamer-xl", bounds=bounds, grow_from=0.0, grow_until=1.0, growth_events=1))
    with torch.no_grad():
        live.parameters["means"][0] = torch.tensor([0.0, 0.0, 1.5])
    views = live.render(CAMERAS, plain().expand(3, 3), Progress(9, 10), generator())
    views.image.square().sum().backward()
    live.step(Progress(9, 10), generator())
    assert int((live.parameters["means"].norm(dim=1) > 1.2).sum()) == far


def test_opacity_that_no_picture_asks_for_fades() -> None:
    live = opened(small_config("dreamer-xl", opacity_loss=10.0, tv=0.0, size_loss=0.0))
    views = live.render(CAMERAS, plain().expand(3, 3), Progress(), generator())
    found = live.losses(views, Progress())
    opacity = live.parameters["opacity_logits"].sigmoid()
    assert set(found) == {"opacity"}
    assert float(found["opacity"].detach()) == pytest.approx(10 * float(opacity.detach().mean()))
    found["opacity"].backward()
    assert bool((live.parameters["opacity_logits"].grad > 0).all())


def test_growth_looks_at_all_views_of_the_batch() -> None:
    config = small_config("dreamer-xl")
    seen = {}
    for which in ("all", "last"):
        live = opened(replace(config, growth_views=which))
        views = live.render(CAMERAS, plain().expand(3, 3), Progress(0, 10), generator())
        views.image[0].square().sum().backward()
        live.step(Progress(0, 10), generator())
        seen[which] = live.statistics
    assert float(seen["all"].views.max()) == 3 and float(seen["last"].views.max()) == 1
    assert float(seen["all"].gradient.sum()) > 0 and float(seen["last"].gradient.sum()) == 0


def test_a_prior_that_answers_nonsense_does_not_break_the_gaussians() -> None:
    live = opened(small_config("dreamer-xl"))
    views = live.render(CAMERAS, plain().expand(3, 3), Progress(0, 10), generator())
    (views.image * float("nan")).sum().backward()
    live.step(Progress(0, 10), generator())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in live.parameters.values())


def test_spikes_hit_whole_pixels_and_repeat() -> None:
    gradient, spikes = torch.ones(2, 3, 32, 32), Spikes(0.05, 50.0, 0)
    hit = spikes(gradient, Progress(3, 10))
    assert set(hit.unique().tolist()) == {1.0, 50.0} and torch.equal(hit, spikes(gradient, Progress(3, 10)))
    assert bool((hit == hit[:, :1]).all()) and not torch.equal(hit, spikes(gradient, Progress(4, 10)))
    assert 0.02 < float((hit > 1).float().mean()) < 0.09


@pytest.mark.parametrize("kind", ["plain", "greys", "random"])
def test_backgrounds_are_colours(kind: str) -> None:
    drawn = torch.stack([draw_backgrounds(kind, 3, generator(seed)) for seed in range(30)])
    assert drawn.shape == (30, 3, 3) and 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    if kind == "random":
        assert {0.0, 1.0} <= set(drawn.flatten().tolist())


def test_trained_gaussians_come_back_from_their_file(tmp_path: Path) -> None:
    objects = GaussianObjects(small_config("dreamer-xl"))
    trained = objects.trained(objects.first_state("a red mug", generator()))
    trained.save(tmp_path / "object.safetensors")
    loaded = TrainedGaussians.load(tmp_path / "object.safetensors")
    assert torch.equal(loaded.render(CAMERAS, plain()).image, trained.render(CAMERAS, plain()).image)
    (tmp_path / "object.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="make them again"):
        TrainedGaussians.load(tmp_path / "object.safetensors")


@pytest.mark.parametrize("changes", [{"clip_limit": 0.0}, {"growth_limit": 10}, {"flip": 1.5}, {"iterations": 0},
                                     {"bounds": -1.0}, {"distance": (3.0, 2.0)},
                                     {"field_of_view": (0.0, 40.0)}])  # fmt: skip
def test_settings_that_no_run_can_have_are_refused(changes: dict) -> None:
    with pytest.raises(UserError):
        small_config("dreamer-xl", **changes)
