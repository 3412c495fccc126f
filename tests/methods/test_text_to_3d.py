"""The frame of text to 3D: runs, resuming, stages, objectives, priors by name."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from text_rig import PROMPTS, SIZE, small_config, small_prior

from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes import WORDS
from scene_distill.methods.text_to_3d import teachers
from scene_distill.methods.text_to_3d.generate import text_to_3d
from scene_distill.methods.text_to_3d.method import TextTo3D
from scene_distill.methods.text_to_3d.objectives import ObjectiveSetting, make_objective
from scene_distill.methods.text_to_3d.registry import TEXT_METHODS, find_text_method
from scene_distill.methods.text_to_3d.representation import Views
from scene_distill.methods.text_to_3d.stages import Stage, place_of, stage_bounds
from scene_distill.methods.text_to_3d.teachers import open_prior, toy_mixture, toy_of
from scene_distill.methods.text_to_3d.training import ObjectTraining, object_state
from scene_distill.methods.text_to_3d.views import ViewRange
from scene_distill.nets.text_unet import TextUNet, TextUNetConfig
from scene_distill.objectives.score_presets import published
from scene_distill.objectives.score_times import AnnealedTimes, ConsistencyTimes, IntervalTimes, UniformTimes
from scene_distill.priors.captions import words_of
from scene_distill.priors.parts import InParts
from scene_distill.priors.prior import NoisePrior
from scene_distill.priors.tiny import TinyNetwork, Vocabulary, settled

CPU = torch.device("cpu")
GAUSSIANS = tuple(name for name, method in TEXT_METHODS.items() if method.config_class == "DreamerXLConfig")


class Stopped(Exception):
    pass


def made(folder: Path, method: str = "dreamer-xl", prompts=PROMPTS, stop_after=0, prior: NoisePrior | None = None,
         **changes):  # fmt: skip
    heard = []

    def listen(progress) -> None:
        heard.append(progress)
        if stop_after and len(heard) == stop_after:
            raise Stopped

    config = small_config(method, **changes)
    return text_to_3d(find_text_method(method), config, prompts, prior or small_prior(), folder, listen, device=CPU)


def files_of(objects) -> list[bytes]:
    return [(each.folder / "object.safetensors").read_bytes() for each in objects]


@pytest.mark.parametrize("method", GAUSSIANS)
def test_every_objective_trains_and_a_stopped_run_ends_with_the_same_bytes(method: str, tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", method)
    assert all(each.finite and each.evaluations > 0 for each in whole)
    with pytest.raises(Stopped):
        made(tmp_path / "stopped", method, stop_after=11)
    assert files_of(made(tmp_path / "stopped", method, resume=True)) == files_of(whole)


def test_objects_do_not_depend_on_lanes_and_differ_by_seed_and_prompt(tmp_path: Path) -> None:
    one = files_of(made(tmp_path / "one"))
    assert files_of(made(tmp_path / "two", lanes=2)) == one
    assert files_of(made(tmp_path / "other", seed=1)) != one
    assert one[0] != one[1]


def test_training_moves_renders_towards_the_pictures_the_prompt_means(tmp_path: Path) -> None:
    prior = small_prior()
    (before,) = made(tmp_path / "before", prompts=PROMPTS[:1], iterations=1, visits=1, prior=prior)
    (after,) = made(tmp_path / "after", prompts=PROMPTS[:1], iterations=120, start_count=250, growth_limit=400,
                    level_range=(20.0, 980.0), clip_limit=0.05, prior=prior)  # fmt: skip
    from scene_distill.methods.text_to_3d.backgrounds import plain
    from scene_distill.methods.text_to_3d.views import orbit_views

    def seen(each) -> torch.Tensor:
        return each.trained.render(orbit_views(12, SIZE, 15.0).cameras, plain()).lesson

    assert float(prior.nearest(seen(after))[1].mean()) < 0.6 * float(prior.nearest(seen(before))[1].mean())
    assert prior.truth(seen(after), "a red mug").float().mean() > 0.9


def test_negative_views_cost_two_evaluations_a_picture(tmp_path: Path) -> None:
    plain, pushed = (
        made(tmp_path / str(strength), "sds", PROMPTS[:1], iterations=2, visits=1, perp_neg=strength)[0].evaluations
        for strength in (0.0, 2.0)
    )
    assert pushed == 2 * plain == 2 * 2 * 3 * 2


def test_a_folder_with_a_run_is_not_overwritten_nor_continued_with_other_settings(tmp_path: Path) -> None:
    made(tmp_path, iterations=2, visits=1)
    with pytest.raises(UserError, match="already holds a run"):
        made(tmp_path, iterations=2, visits=1)
    with pytest.raises(UserError, match="--views 3, not 2"):
        made(tmp_path, iterations=2, visits=1, views=2, resume=True)


@dataclass
class Paint:
    """A representation of one colour: the whole picture. Stage two begins with what stage one painted."""

    offset: float

    def first_state(self, prompt, generator, before=None):
        return {"color": torch.full((3,), 0.5) if before is None else before["color"] + self.offset}

    def open(self, state):
        return OpenPaint(state["color"].clone().requires_grad_())

    def trained(self, state):
        return state["color"]


@dataclass
class OpenPaint:
    color: torch.Tensor

    def render(self, cameras, background, progress, generator):
        size = cameras[0].width
        image = self.color.expand(len(cameras), size, size, 3)
        return Views(image, torch.ones(len(cameras), size, size))

    def losses(self, views, progress):
        return {"none": 0.0 * self.color.sum()}

    def step(self, progress, generator):
        self.color = (self.color.detach() - 1e-12 * self.color.grad).requires_grad_()
        return {"step": float(progress.step)}

    def state(self):
        return {"color": self.color.detach().clone()}


def test_a_stage_begins_from_the_one_before_and_counts_its_own_steps() -> None:
    views = ViewRange(size=SIZE, count=2)
    parts = [Stage(name, share, Paint(10.0), lambda: published("sds"), views) for name, share in (("a", 1), ("b", 3))]
    config = small_config("dreamer-xl", iterations=8, views=2)
    method = TextTo3D(config, PROMPTS[:1], small_prior(), tuple(parts), CPU)
    training = ObjectTraining(config, method.subject(0), method.first_state(0))
    steps = [training.step(step)[1]["step"] for step in range(8)]
    assert steps == [0, 1, 0, 1, 2, 3, 4, 5]
    number, held = object_state(training.close()[0])
    assert number == 1 and bool((held["color"] > 5).all())
    assert stage_bounds(tuple(parts), 8) == [0, 2, 8]
    assert place_of(tuple(parts), 8, 8).progress.step == 6


def test_objectives_take_the_settings_of_a_config() -> None:
    prior = small_prior()
    tsm = make_objective(ObjectiveSetting("tsm", 3.0, 1.0, gamma_rule="code", stride=100), prior)
    assert tsm.method.guidance == 3.0 and tsm.method.strength == 1.0
    assert tsm.method.mu_fraction == pytest.approx(0.9539, abs=1e-4) and tsm.method.inversion.stride == 100
    times = make_objective(ObjectiveSetting("ism", levels="annealed", level_range=(50, 700)), prior).times
    assert isinstance(times, IntervalTimes) and times.base == AnnealedTimes(700, 50)
    assert make_objective(ObjectiveSetting("sds", levels="uniform"), prior).times == UniformTimes(20.0, 980.0)
    assert isinstance(make_objective(ObjectiveSetting("cds"), prior).times, ConsistencyTimes)
    assert isinstance(make_objective(ObjectiveSetting("cds", levels="annealed"), prior).times, IntervalTimes)
    with pytest.raises(UserError, match="inversion"):
        make_objective(ObjectiveSetting("tsm", noise="fresh"), prior)


def tiny_network(size: int = SIZE) -> TinyNetwork:
    torch.manual_seed(0)
    config = TextUNetConfig(size=size, patch=2, widths=(8, 8, 8), text_width=32, embedding=16, words=len(WORDS))
    unet = TextUNet(config)
    torch.nn.init.normal_(unet.leave.weight, std=0.1)
    return TinyNetwork(settled(unet), Vocabulary(tuple(WORDS), config.length))


def test_vsd_with_a_network_resumes_exactly_and_leaves_the_prior_alone(tmp_path: Path) -> None:
    network = tiny_network()
    before = [parameter.clone() for parameter in network.unet.parameters()]
    settings = {"prompts": PROMPTS[:1], "iterations": 4, "visits": 2}
    whole = made(tmp_path / "whole", "vsd", prior=InParts(network.prior(), 2), **settings)
    with pytest.raises(Stopped):
        made(tmp_path / "stopped", "vsd", prior=InParts(network.prior(), 2), stop_after=3, **settings)
    again = made(tmp_path / "stopped", "vsd", prior=InParts(network.prior(), 2), resume=True, **settings)
    assert files_of(again) == files_of(whole)
    assert all(torch.equal(a, b) for a, b in zip(before, network.unet.parameters(), strict=True))


def test_a_prior_in_parts_answers_the_same_on_any_number_of_threads() -> None:
    prior = tiny_network().prior()
    z, level = torch.randn(11, 3, SIZE, SIZE), torch.arange(11) * 80
    condition = prior.describe(["a red mug"] * 11)
    one, three = (InParts(prior, 4, threads).eps(z, level, condition) for threads in (1, 3))
    assert torch.equal(one, three)
    assert torch.allclose(one, prior.eps(z, level, condition), atol=1e-5)
    assert torch.equal(InParts(prior, 11, 2, parts=3).eps(z, level, condition), one)
    with pytest.raises(UserError, match="at least 1 row"):
        InParts(prior, 0)


def test_priors_by_name_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("dreamer-xl", prior="tiny")
    monkeypatch.setattr(teachers, "PACKAGED", tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="scene-distill prior train"):
        open_prior(config, CPU)
    with pytest.raises(UserError, match="no tiny prior at"):
        open_prior(replace(config, prior_path=tmp_path / "absent"), CPU)
    with pytest.raises(UserError, match="--prior-path"):
        open_prior(replace(config, prior="sdxl"), CPU)
    with pytest.raises(UserError, match="no toy is called"):
        toy_of("a red unicorn")
    with pytest.raises(UserError, match="no text-to-3d method"):
        find_text_method("dreamfusion")


def test_a_mixture_rendered_for_prompts_knows_them_from_every_side() -> None:
    prior = toy_mixture(["a red chair with green legs", "a blue duck"], 16, 0, views=20, others=6)
    known = [set(words_of(caption)) for caption in prior.captions[40:]]
    assert not any({"blue", "duck"} <= words for words in known)
    assert len(prior.captions) == 46
    for prompt in ("a red chair with green legs", "a blue duck"):
        for word in ("front", "side", "back", "overhead"):
            assert len(prior.index.matching(f"{prompt}, {word} view")) > 0
