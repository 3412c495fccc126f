"""Views and first points of each block: nobody is left out, neighbours overlap, nothing is counted twice."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scene_distill.blocks.assignment import (
    AREA_THRESHOLD,
    area_shares,
    assign_views,
    assign_views_by_render,
    describe,
    empty_blocks,
    initial_points,
    point_spacing,
    summarize,
    view_spots,
)
from scene_distill.blocks.bounds import ContractedSpace
from scene_distill.blocks.partition import partition
from scene_distill.blocks.visibility import observe
from scene_distill.core import seeds
from scene_distill.core.errors import UserError


@pytest.fixture(scope="module")
def scene(flight, town):
    return flight(town(), slant=15.0, test={"003.png", "011.png"})


@pytest.mark.parametrize("scheme", ["balanced", "grid"])
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 8, 13, 17])
def test_every_view_trains_and_every_seen_block_is_trained(scene, blocks, scheme):
    cells = partition(scene, blocks, scheme=scheme)
    assignment = assign_views(scene, cells)
    assert assignment.shape == (len(scene.frames) - 2, blocks) and assignment.dtype == bool
    assert assignment.any(axis=1).all()
    seen = np.zeros(blocks, dtype=bool)
    seen[cells.owner(scene.points[np.unique(observe(scene).point)])] = True
    assert (assignment.any(axis=0) >= seen).all()
    assert set(empty_blocks(assignment)) == set(np.flatnonzero(~assignment.any(axis=0)))


def test_threshold_trades_views_for_focus(scene):
    cells = partition(scene, 4)
    counts = [assign_views(scene, cells, threshold=t).sum() for t in (0.01, AREA_THRESHOLD, 0.5, 1.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    loose, tight = (assign_views(scene, cells, threshold=t) for t in (0.1, 0.6))
    assert (loose >= tight).all()
    for threshold in (0.0, -1.0, 1.5):
        with pytest.raises(UserError, match="above 0"):
            assign_views(scene, cells, threshold=threshold)


def test_one_block_gets_every_view_and_every_point(scene):
    cells = partition(scene, 1)
    assignment = assign_views(scene, cells)
    own, context = initial_points(scene, cells, assignment, 0)
    assert assignment.all() and len(own) == len(scene.points) and len(context) == 0


def test_shares_are_areas_not_counts(make_scene):
    """Half the image is densely covered, half sparsely: by area both sides are equal."""
    rng = seeds.numpy_generator("test", "areas")
    dense = np.column_stack([rng.uniform(-30, 0, 5000), rng.uniform(-22, 22, 5000), np.zeros(5000)])
    sparse = np.column_stack([rng.uniform(0, 30, 400), rng.uniform(-22, 22, 400), np.zeros(400)])
    scene = make_scene(np.concatenate([dense, sparse]), [[0, 0, 40.0]], [[0, 0, 0]])
    space = ContractedSpace(np.eye(3), np.array([-30.0, -22, -1]), np.array([30.0, 22, 50]), 0.0)
    cells = partition(scene, 2, scheme="grid", space=space)
    shares = area_shares(scene, cells, observe(scene))
    assert shares.shape == (1, 2) and shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx([0.5, 0.5], abs=0.02)


def test_views_train_where_they_look_not_where_they_hover(make_scene, town):
    """An oblique camera over the left half that looks at the right half."""
    scene = make_scene(town(), [[-30.0, 0, 40], [-60, 0, 60], [60, 0, 60]], [[90.0, 0, 0], [-60, 0, 0], [60, 0, 0]])
    cells = partition(scene, 2, scheme="grid")
    visibility = observe(scene)
    spots = view_spots(scene, cells, visibility)
    assert spots[0] == pytest.approx([90, 0, 0], abs=3) and spots[1] == pytest.approx([-60, 0, 0], abs=1)
    left, right = cells.owner(np.array([[-60.0, 0, 0], [60, 0, 0]]))
    assert assign_views(scene, cells)[0, right] and assign_views(scene, cells)[1].tolist()[left]


def test_spot_of_a_view_above_the_horizon_is_at_its_points_depth(make_scene, town):
    scene = make_scene(town(), [[0.0, 0, 60], [-100, 0, 5.0], [0, 0, 60]], [[0.0, 0, 0], [0, 0, 6.0], [0, 0, 900.0]])
    cells, visibility = partition(scene, 2), observe(scene)
    assert np.isnan(visibility.depth_m[2])
    spots = view_spots(scene, cells, visibility)
    assert np.linalg.norm(spots[1] - [-100, 0, 5]) == pytest.approx(visibility.depth_m[1])
    assert spots[2] == pytest.approx([0, 0, 0], abs=1.5), "a view of the sky trains the block below it"
    assert assign_views(scene, cells).any(axis=1).all()


def test_own_points_tile_the_cloud_and_context_is_what_views_see_beyond(scene):
    cells, visibility = partition(scene, 5), observe(scene)
    assignment = assign_views(scene, cells)
    owner, claimed = cells.owner(scene.points), np.zeros(len(scene.points), dtype=int)
    for block in range(5):
        own, context = initial_points(scene, cells, assignment, block, visibility)
        claimed[own] += 1
        assert (owner[own] == block).all() and (owner[context] != block).all()
        views = [frame for frame, mine in zip(scene.train_frames, assignment[:, block], strict=True) if mine]
        seen = np.unique(np.concatenate([frame.seen for frame in views]))
        assert np.array_equal(context, seen[owner[seen] != block])
    assert (claimed == 1).all()


def test_context_by_projection_holds_points_without_tracks(scene):
    rng = seeds.numpy_generator("test", "thin tracks")
    thin = replace(
        scene,
        frames=tuple(replace(frame, seen=frame.seen[rng.random(len(frame.seen)) < 0.3]) for frame in scene.frames),
    )
    cells = partition(thin, 6)
    assignment = assign_views(thin, cells)
    tracked = initial_points(thin, cells, assignment, 2)[1]
    projected = initial_points(thin, cells, assignment, 2, observe(thin, by_projection=True))[1]
    assert len(projected) > 1.05 * len(tracked)


def test_points_with_nan_start_nothing(scene):
    broken = replace(scene, points=np.where(np.arange(len(scene.points))[:, None] == 7, np.nan, scene.points))
    cells = partition(broken, 3)
    assignment = assign_views(broken, cells)
    parts = [initial_points(broken, cells, assignment, block) for block in range(3)]
    assert all(7 not in own and 7 not in context for own, context in parts)
    assert sum(len(own) for own, _ in parts) == len(scene.points) - 1


def test_block_that_nobody_sees_is_named_and_left_empty(scene):
    far = np.array([[5000.0, 0.0, 0.0], [5010.0, 0.0, 0.0]])
    lonely = replace(
        scene, points=np.concatenate([scene.points, far]), colors=np.zeros((len(scene.points) + 2, 3), np.uint8)
    )
    space = ContractedSpace(np.eye(3), np.array([-120.0, -75, -1]), np.array([3000.0, 75, 80]), 0.0)
    cells = partition(lonely, 4, scheme="grid", space=space)
    assignment = assign_views(lonely, cells)
    empty = empty_blocks(assignment)
    assert cells.owner(far)[0] in empty
    table = describe(lonely, cells, assignment)
    assert "empty: no view sees it" in table and f"--blocks {4 - len(empty)}" in table


def test_render_difference_decides_by_tau_and_is_asked_once_per_pair(scene):
    cells, asked = partition(scene, 3), []

    def difference(view: int, block: int) -> float:
        asked.append((view, block))
        return 0.06 if (view + block) % 3 == 0 else 0.049 if block == 1 else 0.0

    assignment = assign_views_by_render(scene, cells, difference)
    views = len(scene.train_frames)
    assert sorted(asked) == [(view, block) for view in range(views) for block in range(3)]
    spots = cells.owner(view_spots(scene, cells, observe(scene)))
    for view in range(views):
        for block in range(3):
            assert assignment[view, block] == ((view + block) % 3 == 0 or spots[view] == block)


def test_render_difference_below_tau_still_gives_every_block_its_best_view(scene):
    cells = partition(scene, 12, scheme="grid")
    spots = set(cells.owner(view_spots(scene, cells, observe(scene))))
    overlooked = [block for block in range(12) if block not in spots]
    assert overlooked, "cells outside the box, where no view looks"
    assignment = assign_views_by_render(scene, cells, lambda view, block: 0.001 if view == 5 else 0.0)
    assert assignment.any(axis=1).all()
    for block in overlooked:
        assert np.flatnonzero(assignment[:, block]).tolist() == [5]
    assert empty_blocks(assign_views_by_render(scene, cells, lambda view, block: 0.0)) == tuple(overlooked)


def test_table_adds_up(scene):
    cells = partition(scene, 5)
    assignment = assign_views(scene, cells)
    rows = summarize(scene, cells, assignment)
    assert sum(row.own_points for row in rows) == len(scene.points)
    assert sum(row.views for row in rows) == assignment.sum()
    assert sum(row.work_share for row in rows) == pytest.approx(1)
    assert max(row.extent[0] for row in rows) <= 240 and min(row.extent[0] for row in rows) > 20
    table = describe(replace(scene, metadata={"unit": "metre"}), cells, assignment)
    assert len(table.splitlines()) == 3 + 5 and "extent (m)" in table
    assert "extent (units)" in describe(scene, cells, assignment)


def test_spacing_of_a_lattice_is_its_step():
    lattice = np.stack(np.meshgrid(*[np.arange(20) * 0.5] * 3), -1).reshape(-1, 3)
    assert point_spacing(lattice) == pytest.approx(0.5)
    doubled = np.concatenate([lattice, lattice, lattice[:50] * np.nan, [[1e9, 0, 0]]])
    assert point_spacing(doubled) == pytest.approx(0.5)
    assert point_spacing(lattice, samples=500) == pytest.approx(0.5)


@given(st.floats(1e-3, 1e3))
def test_spacing_scales_with_the_scene(scale):
    points = seeds.numpy_generator("test", "spacing").normal(size=(200, 3))
    assert point_spacing(points * scale) == pytest.approx(scale * point_spacing(points), rel=1e-9)


def test_spacing_needs_two_points():
    assert point_spacing(np.array([[0.0, 0, 0], [0, 3, 4]])) == pytest.approx(5)
    with pytest.raises(UserError, match="two distinct"):
        point_spacing(np.ones((10, 3)))


def test_suburb_blocks_keep_what_is_seen_of_them(suburb):
    visibility = observe(suburb)
    for blocks in (4, 8, 16):
        cells = partition(suburb, blocks, visibility=visibility)
        assignment = assign_views(suburb, cells, visibility=visibility)
        owner = cells.owner(suburb.points)[visibility.point]
        kept = np.bincount(owner, assignment[visibility.frame, owner], blocks) / np.bincount(owner, minlength=blocks)
        assert kept.min() > 0.75 and assignment.sum(axis=0).min() > 20 and not empty_blocks(assignment)
