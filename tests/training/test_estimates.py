"""Estimates before a run: what is timed, what is left as it was, and what the figures are made of."""

from dataclasses import replace

import pytest
import torch

from scene_distill.blocks.store import state_bytes
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods import find_method
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.training import estimates
from scene_distill.training.estimates import Growth, duration, estimate, plan_text, repeated
from scene_distill.training.loop import prepare

CONFIGS = {
    "splats": SplatsConfig(blocks=2, lanes=2, iterations=40, visits=4, image_width=64, growth_events=4),
    "momentum-gs": MomentumGSConfig(blocks=3, lanes=2, iterations=40, visits=4, image_width=64, growth_events=4),
}


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    return make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "city")


@pytest.fixture(params=CONFIGS)
def training(request, city, tmp_path):
    entry = find_method(request.param)
    return prepare(entry.name, replace(CONFIGS[request.param], data=city, output_dir=tmp_path / "run"), entry.build)


def test_growth_lies_where_the_schedule_puts_it():
    growth = Growth(0.2, 0.6, 3.0, 4)
    assert growth.weight == pytest.approx(0.4 + 0.2)
    assert growth.event_steps(100) == [29, 39, 49, 59]
    assert Growth(0.0, 1.0, 2.0, 200).event_steps(10) == list(range(10)), "at most one a step"
    assert Growth(0.1, 0.5, 2.0, 0).event_steps(10) == []


def test_repeated_rows_keep_to_their_place_and_cover_as_much(training):
    state, rows = training.method.first_state(0), training.method.rows
    grown = repeated(state, rows, 3.0)
    count = len(state[rows.positions])
    assert len(grown[rows.positions]) == 3 * count
    assert all(len(tensor) == 3 * count for name, tensor in grown.items() if rows.has(name))
    assert torch.equal(grown[rows.positions][:count], state[rows.positions])
    areas = (2 * grown[rows.log_scales][:, 0]).exp().sum() / (2 * state[rows.log_scales][:, 0]).exp().sum()
    assert float(areas) == pytest.approx(1.0, rel=1e-3)
    far = (grown[rows.positions][count : 2 * count] - state[rows.positions]).norm(dim=1)
    assert float((far / state[rows.log_scales][:, 0].exp()).median()) == pytest.approx(1.5, abs=0.2)


def test_every_tensor_with_rows_is_known_to_have_them(training):
    """A tensor that is forgotten would keep its rows when a block is cut or repeated, and no longer fit."""
    method = training.method
    visit = training.runtime.rounds[0].visits[0]
    unit = method.open(visit.unit, method.first_state(visit.unit), visit, training.runtime.rounds[0])
    for step in range(3):
        method.shared.begin_step(step, False)
        unit.step(step)
    state, _ = unit.close()
    count = len(state[method.rows.positions])
    assert {name for name, tensor in state.items() if tensor.shape[:1] == (count,)} == {
        name for name in state if method.rows.has(name)
    }


def test_an_estimate_leaves_the_run_as_it_was(training):
    before = {name: tensor.clone() for name, tensor in training.method.shared.state().items()}
    found = estimate(training)
    after = training.method.shared.state()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not training.folder.path.exists()
    assert training.images.get.__func__ is type(training.images).get
    factor = training.method.growth.factor
    first = sum(state_bytes(training.method.first_state(unit)) for unit in range(training.config.blocks))
    assert found.state_bytes == pytest.approx(factor * first / training.config.blocks, rel=0.25)
    assert found.memory_bytes > 10**8


def test_time_is_steps_and_visits_and_photos(training, monkeypatch):
    """Steps of 1 s on a unit as it starts, 3 s on one that has grown, 5 s with an event; 0.5 s to open and close."""

    def timed(training, visit, state, steps, watch):
        first = len(state[training.method.rows.positions])
        grown = first > len(training.method.first_state(visit.unit)[training.method.rows.positions])
        extra = len(steps) - estimates.TIMED_STEPS
        return estimates._Timed([3.0 if grown else 1.0] * estimates.TIMED_STEPS + [5.0] * extra, 0.5, state)

    monkeypatch.setattr(estimates, "_timed_visit", timed)
    monkeypatch.setattr(estimates, "_view_seconds", lambda training, merged, watch: 0.25)
    found = estimate(training, lambda: 0.0)
    growth, config = training.method.growth, training.config
    visits = sum(len(round_.visits) for round_ in training.runtime.rounds)
    step = 1.0 + growth.weight * 2.0 + len(growth.event_steps(config.iterations)) / config.iterations * 4.0
    assert found.step_s == pytest.approx(step)
    assert found.training_s == pytest.approx(config.blocks * config.iterations * step + 0.5 * visits)
    assert found.evaluation_s == pytest.approx(0.25 * len(training.scene.test_frames))


def test_durations_are_told_in_words_of_their_size():
    assert [duration(s) for s in (44.6, 119, 150, 3600, 12_600)] == ["45 s", "119 s", "2 min", "60 min", "3.5 h"]


def test_the_plan_says_blocks_views_memory_and_time(training):
    text = plan_text(training)
    assert f"{training.config.blocks} blocks" in text and "views" in text
    assert "memory: about" in text and "time: about" in text and "evaluation" in text
