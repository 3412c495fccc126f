"""Private blocks that train their borders jointly at the end: when they switch, what is dropped, what they share."""

from dataclasses import replace

import pytest
import torch

from scene_distill.blocks.runtime import ComputedState, Runtime
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods.momentum_gs.block import first_block_state
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.halo import OWNER, STAMP
from scene_distill.methods.momentum_gs.method import MomentumGS
from scene_distill.methods.momentum_gs.seam_finish import BEFORE, JOINED, PHASE, PRIVATE, opened
from scene_distill.representations.anchors import Anchors

CONFIG = MomentumGSConfig(
    blocks=3, lanes=2, iterations=24, visits=4, image_width=60, grow_from=0.1, halo="private", seam_finish=0.5
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "seam_city"))


def build(config, scene):
    return MomentumGS(config, scene, ImageCache(scene.frames, config.image_width, 10**9))


def train(config, scene, folder, listen=lambda step: None):
    method = build(config, scene)
    runtime = Runtime(method, method.rounds, folder)
    runtime.resume()
    runtime.run(listen)
    return method, {unit: load() for unit, load in runtime.states().items()}, method.merge(runtime.states())


def state_at(xs: list[float], unit: int, value: float, phase: int, stamp: int = 2):
    """A private block's state: anchors at (x, 0, 0), features all ``value``. Cells are [0, 10), [10, 20), ..."""
    count = len(xs)
    positions = torch.tensor([[x, 0.0, 0.0] for x in xs])
    anchors = Anchors(positions, torch.zeros(count, 10, 3), torch.full((count, 32), value), torch.zeros(count, 6))
    state = first_block_state(anchors, torch.full((count,), unit))
    return state | {STAMP: torch.full((count,), stamp, dtype=torch.int32), PHASE: torch.tensor([phase])}


def cells(block, state):
    return (state["anchors.positions"][:, 0] // 10).to(torch.int32)


def open_it(own, other):
    around = {1: ComputedState(lambda: other)}
    state = opened(0, own, around, lambda positions: positions[:, 0] < 15, cells)
    return dict(zip(state["anchors.positions"][:, 0].tolist(), state["anchors.features"][:, 0].tolist(), strict=True))


def test_a_private_block_opens_as_it_was_closed_whatever_its_neighbours_do():
    own = state_at([1.0, 11.0], 0, 1.0, PRIVATE)
    assert open_it(own, state_at([1.0, 11.0, 12.0], 1, 2.0, JOINED, stamp=9)) == {1.0: 1.0, 11.0: 1.0}


def test_a_block_that_joins_drops_its_copies_and_takes_its_neighbours_anchors_in_the_halo():
    own = state_at([1.0, 11.0, 13.0], 0, 1.0, BEFORE, stamp=8)
    assert open_it(own, state_at([11.0, 12.0, 16.0], 1, 2.0, BEFORE)) == {1.0: 1.0, 11.0: 2.0, 12.0: 2.0}


def test_copies_of_a_neighbour_count_once_it_has_joined_and_not_before():
    own = state_at([1.0], 0, 1.0, BEFORE)
    for phase, value in ((PRIVATE, 1.0), (BEFORE, 1.0), (JOINED, 2.0)):
        assert open_it(own, state_at([1.0, 11.0], 1, 2.0, phase, stamp=8))[1.0] == value


def test_the_finish_begins_with_the_first_visit_in_the_last_part_of_the_steps(scene, tmp_path):
    """Before it a run is the private run bit for bit; a block's states are private until its third visit of four."""
    plain, plain_opened = build(replace(CONFIG, seam_finish=0.0), scene), {}
    method, now = build(CONFIG, scene), {}
    for each, log in ((plain, plain_opened), (method, now)):
        first = each.open

        def note(unit, state, visit, round_, first=first, log=log):
            log[unit, visit.sweep] = {name: tensor.clone() for name, tensor in state.items()}
            return first(unit, state, visit, round_)

        each.open = note
        Runtime(each, each.rounds, tmp_path / f"{each is plain}").run()
    for (unit, sweep), state in now.items():
        before = plain_opened[unit, sweep]
        if sweep < 2:
            assert all(torch.equal(before[name], state[name]) for name in before)
            assert bool((state[OWNER] == unit).all())
        else:
            assert bool((state[OWNER] != unit).any())
            own = state["anchors.positions"][state[OWNER] == unit]
            assert bool(method.blocks.owns(unit, own).all())


def test_the_merged_city_keeps_what_neighbours_learned_in_the_finish(scene, tmp_path):
    for finish in (0.5, 0.0):
        config = replace(CONFIG, lanes=1, seam_finish=finish)
        method, states, city = train(config, scene, tmp_path / str(finish))
        last = method.rounds[-1].visits[0].unit
        others = city.anchors.select(city.block != last)
        at = {tuple(p): i for i, p in enumerate(states[last]["anchors.positions"].tolist())}
        rows = torch.tensor([at.get(tuple(p), -1) for p in others.positions.tolist()])
        trained = (rows >= 0) & (states[last][STAMP][rows.clamp(min=0)] == 2 * method.rounds[-1].index)
        assert trained.any()
        same = (states[last]["anchors.features"][rows[trained]] == others.features[trained]).all(1)
        assert bool(same.all()) == (finish > 0)
        assert len(torch.unique(city.anchors.positions, dim=0)) == len(city)


class _KilledError(Exception):
    pass


def test_a_run_that_was_stopped_in_the_finish_ends_with_the_same_bytes(scene, tmp_path):
    _, states, city = train(CONFIG, scene, tmp_path / "whole")

    def stop(progress):
        if progress.round == progress.rounds - 2:
            raise _KilledError

    with pytest.raises(_KilledError):
        train(CONFIG, scene, tmp_path / "cut", stop)
    _, again, merged = train(CONFIG, scene, tmp_path / "cut")
    assert all(torch.equal(states[unit][name], again[unit][name]) for unit in states for name in states[unit])
    assert all(torch.equal(a, b) for a, b in zip(city.tensors().values(), merged.tensors().values(), strict=True))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"halo": "shared"}, "needs --halo private"),
        ({"share_decoder": False}, "--no-share-decoder"),
        ({"seam_finish": 1.5}, "between 0 and 1"),
        ({"seam_finish": 0.2}, "shorter than a visit; give at least 0.25"),
        ({"visits": 1}, "at least two visits"),
    ],
)
def test_settings_without_a_finish_are_refused(scene, changes, says):
    with pytest.raises(UserError, match=says):
        build(replace(CONFIG, **changes), scene)
