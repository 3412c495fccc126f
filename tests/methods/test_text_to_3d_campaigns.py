"""Slices of the text-to-3D campaigns: runs are measured, kept, not made twice, and told; terms are equal."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import text_to_3d_ablation as ablation
import text_to_3d_precision as precision
from text_to_3d_runs import GUIDANCE, LEVELS, SIZE, SameSize, mean, steps_of, table

from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes import HELD_OUT, Toy
from scene_distill.methods.text_to_3d.teachers import toy_of
from scene_distill.nets.attribute_classifier import AttributeClassifier, ClassifierConfig
from scene_distill.objectives.score_cds import CDS
from scene_distill.objectives.score_noise import FixedPerView, FixedShared, Fresh
from scene_distill.objectives.score_teacher import Progress
from scene_distill.objectives.score_times import IntervalTimes
from scene_distill.priors.gaussian import GaussianPrior
from scene_distill.priors.renders import save_renders
from scene_distill.priors.schedules import cosine
from scene_distill.training.attribute_classifier import save_judge
from scene_distill.training.object_views import Orbit, object_views
from scene_distill.training.toy_objects import toy_object

OPTIONS = argparse.Namespace(prior="mixture", image_size=16, evaluations=96, threads=1, seeds=1, only=None, part=(1, 1),
                             precision="bfloat16")  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a small exact prior and a judge that was never trained: a slice tests the campaign, not them."""
    folder = tmp_path_factory.mktemp("bench")
    orbit, images, captions = Orbit(views=4, size=16), [], []
    for toy in (Toy("red", "chair"), Toy("blue", "car"), toy_of(precision.captions(1)[0])):
        for elevation in (15, 70):
            views = object_views(toy_object(toy, "bench"), Orbit(4, 16, elevation))
            images.append(views.images)
            captions += [toy.caption(word) for word in views.orbit.words]
    save_renders(folder / "renders.safetensors", torch.cat(images), captions)
    save_judge(folder / "judge.safetensors", AttributeClassifier(ClassifierConfig(orbit.size)), {})
    prior = ["--prior", "mixture", "--prior-path", str(folder / "renders.safetensors")]
    return [*prior, "--judge", str(folder / "judge.safetensors")]


@pytest.fixture(autouse=True)
def small_orbit(monkeypatch):
    """Figures from fewer and smaller pictures."""
    monkeypatch.setattr("text_to_3d_runs.Orbit", lambda size: Orbit(views=6, size=24))


def places(folder: Path) -> list[str]:
    return ["--results", str(folder / "found.json"), "--page", str(folder / "found.md")]


def test_a_slice_of_the_ablation_goes_on_where_it_was_stopped(bench, tmp_path, monkeypatch):
    flags = [*bench, *places(tmp_path), "--image-size", "16", "--evaluations", "96", "--prompts", "1", "--seeds", "1"]
    flags += ["--only", "tsm", "ism at interval t - mu", "tsm, spikes, pixel clip"]
    flags += ["--pictures", str(tmp_path / "pictures")]
    ablation.main([*flags, "--only", "tsm", "tsm, spikes, pixel clip"])
    first = json.loads((tmp_path / "found.json").read_text())
    beginning = "mixture/16px/96/"
    assert f"{beginning}tsm/a red chair/0" in first and f"{beginning}the toy itself/a red chair/0" in first
    made, run = [], ablation.run

    def counted(method, *rest):
        made.append(method.name)
        return run(method, *rest)

    monkeypatch.setattr(ablation, "run", counted)
    ablation.main(flags)
    assert made == ["ism"], "two of the three were there"
    assert len(list((tmp_path / "pictures").glob("mixture-16px-96-*.png"))) == 3
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(found[key] == value for key, value in first.items())
    row = found[f"{beginning}ism at interval t - mu/a red chair/0"]
    assert row["steps"] == pytest.approx(96 / 22, abs=1) and row["evaluations"] == pytest.approx(96, rel=0.3)
    assert row["diverged"] in (0, 1) and 0 <= row["r_precision"] <= 1 and row["overlap"] >= 0
    ablation.main([*flags, "--precision", "float32", "--only", "tsm"])
    assert made == ["ism", "tsm"], "what was measured with another setting is measured anew"
    page = (tmp_path / "found.md").read_text()
    assert "3 of 27 runs" in page and "## What TSM adds to ISM" in page and "the toy itself" in page


def test_a_slice_of_the_precision_campaign_measures_both_settings(bench, tmp_path):
    flags = [*bench, *places(tmp_path), "--captions", "1", "--seeds", "1", "--iterations", "2", "--image-size", "16"]
    precision.main([*flags, "--methods", "dreamer-xl"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(key.startswith("mixture/dreamer-xl") for key in found) == 2
    page = (tmp_path / "found.md").read_text()
    assert "**dreamer-xl, best**" in page and "**dreamer-xl, published**" in page
    assert "chance 0.6 %" in page and precision.captions(1)[0] in page


def test_captions_are_held_out_and_always_the_same():
    asked = precision.captions(24)
    assert len(set(asked)) == 24 and asked == precision.captions(24)
    toys = [toy_of(caption) for caption in asked]
    assert all((toy.color, toy.shape) in HELD_OUT for toy in toys)
    assert [toy.part_color is None for toy in toys] == [True, False] * 12


def test_published_switches_keep_the_toy_worlds_size():
    _, published = precision.setting("dreamer-xl", "published")
    _, best = precision.setting("dreamer-xl", "best")
    assert published.image_size == best.image_size and published.start_count == best.start_count
    assert published.gamma_rule == "code" and published.clamp == "hard" and published.depth_share == 0.2


def test_every_method_gets_the_same_levels_guidance_and_evaluations(monkeypatch):
    monkeypatch.setattr("text_to_3d_runs.PROBES", 12)
    prior = GaussianPrior({"": torch.zeros(3, 2, 2)}, 0.3, cosine(1000))
    for name, arm in ablation.GROUPS["Equal terms"].items():
        method, config = ablation.setting(arm, 0, OPTIONS)
        (stage,) = method.recipe(config, prior)
        objective = stage.objective()
        times = objective.times.base if isinstance(objective.times, IntervalTimes) else objective.times
        assert times == LEVELS and objective.method.guidance == GUIDANCE, name
        assert [type(each) for each in objective.transforms] == [SameSize] and config.clip == "none"
        steps = [steps_of(method, config, budget) for budget in (6000, 12000)]
        assert steps[1] == pytest.approx(2 * steps[0], abs=1), name
    assert steps_of(*ablation.setting(ablation.ARMS["sds"], 0, OPTIONS), 6000) == 6000 // (2 * 4)
    assert steps_of(*ablation.setting(ablation.ARMS["cds"], 0, OPTIONS), 6000) == 6000 // (4 * 4)


def test_parts_share_out_prompts_and_seeds_with_all_their_arms():
    options = argparse.Namespace(**vars(OPTIONS) | {"seeds": 2, "part": (1, 2)})
    other = argparse.Namespace(**vars(options) | {"part": (2, 2)})
    mine, others = (ablation.runs(each, ["a", "b", "c"]) for each in (options, other))
    assert len(set(mine) | set(others)) == len(mine) + len(others) == 6 * len(ablation.ARMS)
    assert not {(seed, prompt) for _, seed, prompt in mine} & {(seed, prompt) for _, seed, prompt in others}


def test_on_equal_terms_sjc_is_not_sds_and_spikes_come_last():
    prior = GaussianPrior({"": torch.zeros(3, 2, 2)}, 0.3, cosine(1000))
    method, config = ablation.setting(ablation.ARMS["sjc"], 0, OPTIONS)
    assert method.recipe(config, prior)[0].objective().method.variance_reduction is False
    method, config = ablation.setting(ablation.ARMS["cds, published"], 0, OPTIONS)
    kinds = [type(each).__name__ for each in method.recipe(config, prior)[0].objective().transforms]
    assert kinds == ["Clip", "SameSize"]
    method, config = ablation.setting(ablation.ARMS["tsm, spikes, pixel clip"], 0, OPTIONS)
    kinds = [type(each).__name__ for each in method.recipe(config, prior)[0].objective().transforms]
    assert kinds == ["SameSize", "Spikes"]


def test_arms_differ_as_their_names_say():
    prior = GaussianPrior({"": torch.zeros(3, 2, 2)}, 0.3, cosine(1000))

    def objective(name):
        method, config = ablation.setting(ablation.ARMS[name], 0, OPTIONS)
        return method.recipe(config, prior)[0].objective()

    noises = {"cds": FixedShared, "cds, noise per view": FixedPerView, "cds, fresh noise": Fresh}
    for name, kind in noises.items():
        method = objective(name).method
        assert isinstance(method, CDS) and isinstance(method.noise, kind), name
    control, tsm = objective("ism at interval t - mu"), objective("tsm")
    for step in (0, 40, 80):
        draws = [each.times.sample(Progress(step, 100), 1, cosine(1000), torch.Generator()) for each in (control, tsm)]
        widths = [int(times.t - times.cleaner) for times in draws]
        assert widths[0] == pytest.approx(0.7 * widths[1], abs=1), "t - mu is 70 % of t - s"
    assert len(objective("tsm, spikes, no clip").transforms) == 2 and len(tsm.transforms) == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(1e-6, 1e6))
def test_gradients_have_one_size_and_their_own_direction(seed, scale):
    gradient = scale * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    changed = SameSize()(gradient, Progress())
    assert float(changed.square().mean().sqrt()) == pytest.approx(SIZE, rel=1e-4)
    assert torch.allclose(changed / changed.abs().max(), gradient / gradient.abs().max(), atol=1e-5)
    assert not SameSize()(torch.zeros(1, 3, 2, 2), Progress()).any()


def test_answers_pair_runs_of_one_prompt_and_seed():
    def rows(value, seeds=(0, 1, 2)):
        return [
            {"prompt": p, "seed": s, "r_precision": value + 0.1 * s, "inconsistency": None} for p in "ab" for s in seeds
        ]

    told = ablation.answers({"tsm": rows(0.5), "ism at interval t - mu": rows(0.3, (2, 1, 0)), "ism": rows(0.5, (7,))})
    assert "tsm minus ism at interval t - mu | 6 | **+20.0 [+20.0, +20.0]** | – | – |" in told
    assert "Does TSM beat ISM" not in told, "no run of the same prompt and seed"


def test_objects_whose_toy_has_no_face_have_no_janus_figure():
    toys = [{"prompt": "a", "janus": 0.0, "front_found": 1.0}, {"prompt": "b", "janus": 0.9, "front_found": 1.0}]
    arms = {"one": [{"prompt": p, "janus": j, "steps": 1} for p, j in (("a", 0.2), ("b", 1.0))], "the toy itself": toys}
    line = table(arms).splitlines()[2]
    assert "| 20 |" in line and line.startswith("| one | 2 |")


def test_tables_have_means_and_deviations_over_seeds():
    rows = [{"seed": s, "r_precision": v, "diverged": 0.0, "steps": 10} for s, v in ((0, 0.5), (0, 0.7), (1, 0.8))]
    assert mean(rows, "r_precision", 1, 100.0) == "66.7 ± 14.1" and mean(rows, "janus") == "–"
    lines = table({"one": rows, "none": []}).splitlines()
    assert (
        len(lines) == 3
        and lines[2].startswith("| one | 3 | 66.7 ± 14.1 |")
        and lines[2].count("|") == lines[0].count("|")
    )


def test_a_missing_judge_is_told_in_one_sentence(bench, tmp_path):
    with pytest.raises(UserError, match="there is no attribute classifier at"):
        ablation.main([*bench[:4], "--judge", str(tmp_path / "none"), *places(tmp_path), "--prompts", "1"])
