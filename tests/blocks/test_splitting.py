"""A unit cut in two: nothing is lost, nothing is there twice, and the schedule goes on."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scene_distill.blocks.assignment import assign_views
from scene_distill.blocks.partition import partition
from scene_distill.blocks.schedule import make_schedule
from scene_distill.blocks.splitting import (
    Split,
    StateRows,
    cut_of,
    part_of_state,
    part_rows,
    seen_rows,
    split_assignment,
    split_partition,
    split_rounds,
)
from scene_distill.blocks.visibility import observe
from scene_distill.core import seeds


def state_of(positions):
    """Parameters, moments and statistics whose rows can be told apart, and a tensor that has no rows."""
    count = len(positions)
    ids = torch.arange(count, dtype=torch.float32)
    return {
        "means": torch.as_tensor(positions, dtype=torch.float32), "moments.first": ids[:, None] + torch.zeros(count, 3),
        "growth.views": ids, "decoder.weight": torch.arange(count + 1.0),
    }  # fmt: skip


ROWS = StateRows("means", "means", ("means", "moments.", "growth."))


def cut(scene, cells, unit, round_=0):
    axis, at = cut_of(cells, unit, scene.points)
    return Split(round_, unit, len(cells), axis, at, "")


def test_the_two_cells_are_the_old_one_exactly(flight, town):
    scene = flight(town())
    before = partition(scene, 3)
    split = cut(scene, before, 1)
    after = split_partition(before, split)
    owner, old = after.owner(scene.points), before.owner(scene.points)
    assert np.array_equal(np.where(owner == 3, 1, owner), old)
    halves = np.bincount(owner, minlength=4)[[1, 3]]
    assert abs(halves[0] - halves[1]) <= 0.04 * halves.sum()
    low, high = after.cells[1], after.cells[3]
    assert low.max[split.axis] == high.min[split.axis] == split.at
    assert low.min == before.cells[1].min and high.max == before.cells[1].max
    assert [after.cells[k] for k in (0, 2)] == [before.cells[k] for k in (0, 2)]
    with pytest.raises(ValueError, match="must be 4"):
        split_partition(after, split)


@pytest.mark.parametrize("cloud", ["town", "villages"])
def test_the_views_of_the_unit_are_shared_out_and_none_is_lost(cloud, request, flight):
    scene = flight(request.getfixturevalue(cloud)(), side=9)
    visibility = observe(scene)
    before_cells = partition(scene, 4)
    before = assign_views(scene, before_cells)
    for unit in range(4):
        split = cut(scene, before_cells, unit)
        after = split_assignment(scene, split_partition(before_cells, split), before, split, visibility)
        assert after.shape == (len(before), 5)
        others = [k for k in range(4) if k != unit]
        assert np.array_equal(after[:, others], before[:, others])
        assert np.array_equal(after[:, unit] | after[:, 4], before[:, unit])
        assert after[:, [unit, 4]].any(axis=0).all()
        assert after[:, [unit, 4]].sum() < 2 * before[:, unit].sum(), "the two do not train all the same views"


def test_rows_are_seen_in_the_image_and_a_little_beyond(make_scene):
    scene = make_scene(np.zeros((1, 3)), [[0, 0, 50.0]], [[0, 0, 0]])
    camera = scene.frames[0].camera
    x = np.array([0.0, 39, 41, 43, 45])  # the image ends at x = 40, its margin of 5 % at 44
    positions = np.column_stack([x, np.zeros(5), np.zeros(5)])
    assert seen_rows(positions, [camera]).tolist() == [True, True, True, True, False]
    assert not seen_rows(np.array([[0.0, 0, 60]]), [camera]).any(), "behind the camera"
    assert not seen_rows(positions, []).any()


def test_a_part_of_a_state_has_the_same_rows_everywhere_and_all_of_the_rest():
    state = state_of(np.arange(12.0).reshape(4, 3))
    part = part_of_state(state, ROWS, torch.tensor([True, False, True, False]))
    assert part["growth.views"].tolist() == [0, 2] and part["moments.first"][:, 0].tolist() == [0, 2]
    assert part["means"].tolist() == [[0, 1, 2], [6, 7, 8]]
    assert torch.equal(part["decoder.weight"], state["decoder.weight"])
    part["decoder.weight"] += 1
    assert state["decoder.weight"][0] == 0, "a copy"


def test_the_two_parts_merge_to_what_the_unit_would_have_merged_to(flight, town):
    scene = flight(town(), side=9)
    before_cells = partition(scene, 4)
    before = assign_views(scene, before_cells)
    unit = 2
    split = cut(scene, before_cells, unit)
    cells = split_partition(before_cells, split)
    after = split_assignment(scene, cells, before, split, observe(scene))
    frames = scene.train_frames
    state = state_of(scene.points)
    world = state["means"]
    parts = {}
    for child in (unit, split.added):
        cameras = [frames[row].camera for row in np.flatnonzero(after[:, child])]
        keep = part_rows(world.double().numpy(), cells, child, cameras)
        parts[child] = part_of_state(state, ROWS, torch.from_numpy(keep))
        assert len(parts[child]["means"]) < len(world), "what no view of the child sees is left behind"

    def merged(part, of, owner):
        return part["growth.views"][owner.owns(part["means"].double().numpy(), of)]

    together = torch.cat([merged(parts[child], child, cells) for child in parts]).sort()[0]
    assert torch.equal(together, merged(state, unit, before_cells))
    seen = parts[unit]["growth.views"].long().numpy()
    beyond = ~cells.owns(world[seen].double().numpy(), unit)
    assert beyond.any(), "each part has context beyond its cell"


counts = st.integers(1, 12)


@given(counts, counts, st.integers(1, 60), st.integers(1, 8), st.data())
def test_after_splits_every_unit_makes_its_steps_in_order_and_no_round_holds_one_twice(
    units, lanes, iterations, sweeps, data
):
    rounds = make_schedule(units, lanes, iterations, sweeps)
    width, last = len(rounds[0].visits), max(visit.sweep for round_ in rounds for visit in round_.visits)
    begins = dict.fromkeys(range(units), 0)
    for added in range(units, units + data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(rounds) - 1))
        visit = data.draw(st.sampled_from(rounds[at].visits))
        earlier = rounds[:at]
        rounds = split_rounds(rounds, Split(at, visit.unit, added, 0, 0.5, ""))
        begins[added] = visit.first_step
        assert rounds[:at] == earlier, "what was trained is not planned anew"
    steps, shared = Counter(begins), 0
    for index, round_ in enumerate(rounds):
        ids = [visit.unit for visit in round_.visits]
        assert round_.index == index and len(set(ids)) == len(ids) <= width
        assert [visit.lane for visit in round_.visits] == list(range(len(ids)))
        assert round_.shared_step == shared
        assert round_.final == (last > 0 and any(visit.sweep == last for visit in round_.visits))
        shared += round_.steps
        for visit in round_.visits:
            assert visit.first_step == steps[visit.unit]
            steps[visit.unit] += visit.steps
    assert steps == dict.fromkeys(begins, iterations)
    assert all(len(round_.visits) == width for round_ in rounds[:-1])


def test_a_split_is_plain_values():
    split = Split(3, 1, 8, 0, seeds.numpy_generator("test", "split").random(), "unit-0001-sweep-0002.safetensors")
    assert Split(**split.to_dict()) == split
