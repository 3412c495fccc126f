from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_distill.blocks.schedule import make_schedule, place_lanes, shared_steps
from scene_distill.core.errors import UserError

counts = st.integers(1, 24)


@given(counts, counts, st.integers(1, 300), st.integers(1, 40), st.integers(0, 5))
def test_every_unit_gets_its_steps_once_and_in_order(units, lanes, iterations, sweeps, seed):
    rounds = make_schedule(units, lanes, iterations, sweeps, seed)
    steps = Counter()
    for round_ in rounds:
        ids = [visit.unit for visit in round_.visits]
        assert len(set(ids)) == len(ids) <= min(lanes, units)
        assert [visit.lane for visit in round_.visits] == list(range(len(ids)))
        for visit in round_.visits:
            assert visit.first_step == steps[visit.unit]
            steps[visit.unit] += visit.steps
    assert steps == {unit: iterations for unit in range(units)}


@given(counts, counts, st.integers(1, 300), st.integers(1, 40))
def test_no_lane_idles_before_the_last_round(units, lanes, iterations, sweeps):
    rounds = make_schedule(units, lanes, iterations, sweeps)
    assert all(len(round_.visits) == min(lanes, units) for round_ in rounds[:-1])


@given(counts, counts, st.integers(2, 300), st.integers(2, 40))
def test_shared_state_is_frozen_once_a_unit_makes_its_last_visit(units, lanes, iterations, sweeps):
    rounds = make_schedule(units, lanes, iterations, sweeps)
    last = max(visit.sweep for round_ in rounds for visit in round_.visits)
    frozen = False
    for round_ in rounds:
        frozen = frozen or any(visit.sweep == last for visit in round_.visits)
        assert round_.final == (frozen and last > 0)
    assert shared_steps(rounds) == sum(round_.steps for round_ in rounds if not round_.final)


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_numbers_below_one_are_refused(bad):
    with pytest.raises(UserError, match="at least 1"):
        make_schedule(*bad, sweeps=1)


@given(counts, counts, st.integers(1, 40), st.integers(1, 12))
def test_every_lane_has_a_worker_and_no_worker_has_more_than_its_share(units, lanes, sweeps, workers):
    rounds = make_schedule(units, lanes, 50, sweeps)
    for round_, owners in zip(rounds, place_lanes(rounds, workers), strict=True):
        assert len(owners) == len(round_.visits)
        load = [owners.count(rank) for rank in range(workers)]
        assert sum(load) == len(owners) and max(load) <= -(-len(owners) // workers)


@pytest.mark.parametrize(("units", "lanes", "workers"), [(8, 4, 2), (4, 4, 3), (9, 3, 3), (3, 2, 2)])
def test_units_stay_with_their_worker_where_that_has_room(units, lanes, workers):
    rounds = make_schedule(units, lanes, 50, 10)
    homes, moves = {}, 0
    for round_, owners in zip(rounds, place_lanes(rounds, workers), strict=True):
        for visit in round_.visits:
            moves += homes.get(visit.unit, owners[visit.lane]) != owners[visit.lane]
            homes[visit.unit] = owners[visit.lane]
    assert moves == 0 if units % lanes == 0 else moves < len(rounds)
