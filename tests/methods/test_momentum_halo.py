"""Anchors that several blocks train: who owns them, which copy counts, and what reaches the merged city."""

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
from scene_distill.methods.momentum_gs.halo import OWNER, STAMP, STEPS, HaloRegion, exchanged
from scene_distill.methods.momentum_gs.method import MomentumGS
from scene_distill.representations.anchors import Anchors

CONFIG = MomentumGSConfig(blocks=3, lanes=2, iterations=24, visits=4, image_width=80, grow_from=0.1)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "halo_city"))


def train(config, scene, folder):
    method = MomentumGS(config, scene, ImageCache(scene.frames, config.image_width, 10**9))
    runtime = Runtime(method, method.rounds, folder)
    runtime.run()
    return method, runtime


def state_at(xs: list[float], owner: list[int], value: float, stamp: list[int], steps: list[float]):
    """A block's state: anchors at (x, 0, 0), features all ``value``."""
    count = len(xs)
    positions = torch.tensor([[x, 0.0, 0.0] for x in xs])
    anchors = Anchors(positions, torch.zeros(count, 10, 3), torch.full((count, 32), value), torch.zeros(count, 6))
    state = first_block_state(anchors, torch.tensor(owner))
    return state | {STAMP: torch.tensor(stamp, dtype=torch.int32), STEPS: torch.tensor(steps)}


def saved(state):
    return ComputedState(lambda: state)


def everywhere(positions):
    return torch.ones(len(positions), dtype=torch.bool)


def column(state, name):
    """A number of every anchor, by the anchor's x."""
    values = state[name].reshape(len(state[name]), -1)[:, 0].tolist()
    return dict(zip(state["anchors.positions"][:, 0].tolist(), values, strict=True))


def features(state):
    return column(state, "anchors.features")


def test_the_newest_copy_counts_and_untrained_copies_do_not():
    own = state_at([0.0, 1.0], [0, 1], 1.0, [2, 2], [3.0, 3.0])
    other = state_at([0.0, 1.0], [0, 1], 2.0, [4, -1], [5.0, 0.0])
    opened = exchanged(0, own, {1: saved(other)}, everywhere)
    assert features(opened) == {0.0: 2.0, 1.0: 1.0}
    assert column(opened, STAMP) == {0.0: 4, 1.0: 2} and column(opened, STEPS) == {0.0: 5.0, 1.0: 3.0}


def test_copies_of_the_same_round_are_averaged_by_steps_and_the_mean_beats_its_parts():
    own = state_at([0.0], [0], 1.0, [4], [1.0])
    other = state_at([0.0], [0], 5.0, [4], [3.0])
    opened = exchanged(0, own, {1: saved(other)}, everywhere)
    assert features(opened) == {0.0: 4.0}
    assert opened[STAMP].tolist() == [5] and opened[STEPS].tolist() == [4.0]
    again = exchanged(1, other, {0: saved(opened)}, everywhere)
    assert features(again) == {0.0: 4.0} and again[STAMP].tolist() == [5]


def test_the_owner_alone_says_which_anchors_there_are():
    """Block 1 has removed its anchor at 1 and grown one at 2; block 0 follows, and keeps its own at 0."""
    own = state_at([0.0, 1.0], [0, 1], 1.0, [2, 6], [1.0, 1.0])
    other = state_at([0.0, 2.0, 3.0], [0, 1, 1], 2.0, [-1, 4, 4], [0.0, 1.0, 1.0])
    opened = exchanged(0, own, {1: saved(other)}, lambda positions: positions[:, 0] < 2.5)
    assert features(opened) == {0.0: 1.0, 2.0: 2.0}
    assert column(opened, OWNER) == {0.0: 0, 2.0: 1}
    assert opened["moments.features.first"].shape == (2, 32) and opened["growth.gradient"].shape == (2, 10)


def test_neighbours_that_were_never_visited_leave_the_copies_a_block_began_with():
    own = state_at([0.0, 1.0, 2.0], [0, 1, 2], 1.0, [2, 2, 2], [1.0, 1.0, 1.0])
    opened = exchanged(0, own, {1: saved(state_at([0.5], [1], 2.0, [4], [1.0]))}, everywhere)
    assert features(opened) == {0.0: 1.0, 0.5: 2.0, 2.0: 1.0}


def test_opening_changes_nobody_elses_state():
    own, other = (state_at([0.0, 1.0], [0, 1], v, [4, 4], [1.0, 1.0]) for v in (1.0, 2.0))
    before = {name: tensor.clone() for name, tensor in other.items()}
    opened = exchanged(0, own, {1: saved(other)}, everywhere)
    for tensor in opened.values():
        tensor.add_(1)
    assert all(torch.equal(before[name], other[name]) for name in before)


def test_regions_hold_their_points_and_meet_where_they_overlap():
    near, far = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]), torch.tensor([[9.5, 0.0, 0.0], [40.0, 0.0, 0.0]])
    a, b = HaloRegion(near, 1.0), HaloRegion(far, 1.0)
    assert a.holds(near).all() and not a.holds(far)[1]
    assert a.meets(b) and not a.meets(HaloRegion(far[1:], 1.0))


def test_a_shared_halo_keeps_what_neighbours_learned_and_a_private_one_does_not(scene, tmp_path):
    config = replace(CONFIG, growth_events=0, lanes=1, visits=1)
    for halo in ("shared", "private"):
        method, runtime = train(replace(config, halo=halo), scene, tmp_path / halo)
        states = {unit: load() for unit, load in runtime.states().items()}
        last = method.rounds[-1].visits[0].unit
        first = method.rounds[0].visits[0].unit
        city = method.merge(runtime.states())
        mine = city.anchors.select(city.block == first)
        at = {tuple(p): i for i, p in enumerate(states[last]["anchors.positions"].tolist())}
        rows = torch.tensor([at.get(tuple(p), -1) for p in mine.positions.tolist()])
        trained = (rows >= 0) & (states[last][STAMP][rows.clamp(min=0)] == 2 * method.rounds[-1].index)
        assert trained.any()
        same = (states[last]["anchors.features"][rows[trained]] == mine.features[trained]).all(1)
        assert bool(same.all()) == (halo == "shared")


def test_every_anchor_of_the_merged_city_is_there_once(scene, tmp_path):
    method, runtime = train(CONFIG, scene, tmp_path)
    city = method.merge(runtime.states())
    assert len(torch.unique(city.anchors.positions, dim=0)) == len(city)
    for unit in range(3):
        state = runtime.states()[unit]()
        assert int((state[OWNER] == unit).sum()) == int((city.block == unit).sum())
        assert bool((state[OWNER] != unit).any())


def test_a_decoder_per_block_cannot_share_a_halo(scene):
    with pytest.raises(UserError, match="--halo private"):
        MomentumGS(replace(CONFIG, share_decoder=False), scene, ImageCache(scene.frames, 80, 10**9))


def test_copies_that_lanes_train_side_by_side_step_as_far_as_all_of_them_together(scene, tmp_path):
    config = replace(CONFIG, growth_events=0)
    images = ImageCache(scene.frames, config.image_width, 10**9)
    moved = {}
    for rate in (0.0, 1.0):
        method = MomentumGS(replace(config, copies_rate=rate), scene, images)
        round_ = method.rounds[0]
        visit = round_.visits[0]
        state = method.first_state(visit.unit)
        start = state["anchors.features"].clone()
        block = method.open(visit.unit, state, visit, round_)
        copies = block.copies.clone()
        block.step(0)
        moved[rate] = block.anchors.features - start
    assert set(copies.tolist()) == {1, 2}
    drawn = moved[0.0].abs().amax(1) > 0
    for count in (1, 2):
        of_them = drawn & (copies == count)
        assert of_them.any()
        torch.testing.assert_close(moved[1.0][of_them], count * moved[0.0][of_them], rtol=1e-3, atol=1e-6)
