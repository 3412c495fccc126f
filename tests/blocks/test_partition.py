"""Bounds, contraction and cells: every point of space has exactly one owner, whatever the cloud looks like."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.blocks.bounds import EDGE, ContractedSpace, automatic_bounds, weighted_quantiles
from scene_distill.blocks.partition import Cell, Partition, partition
from scene_distill.blocks.visibility import GRID, observe
from scene_distill.core import seeds
from scene_distill.core.errors import UserError

UP = np.array([0.0, 0.0, 1.0])


def rotation(name="turn") -> np.ndarray:
    q, _ = np.linalg.qr(seeds.numpy_generator("test", name).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def box(low=(-100.0, -50.0, 0.0), high=(100.0, 50.0, 30.0), axes=None) -> ContractedSpace:
    return ContractedSpace(np.eye(3) if axes is None else axes, np.asarray(low), np.asarray(high), 0.0)


coordinate = st.floats(-1e6, 1e6)
points_in_space = st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=20).map(np.array)


@given(points_in_space)
def test_contraction_follows_the_formula(points):
    space = box()
    for point, contracted in zip(points, space.contract(points), strict=True):
        x = 2 * (point - space.box_min) / (space.box_max - space.box_min) - 1
        m = np.abs(x).max()
        x = x if m <= 1 else (2 - 1 / m) * x / m
        assert contracted == pytest.approx(x / 4 + 0.5, abs=1e-15)


@given(points_in_space)
def test_contraction_has_an_inverse_and_stays_inside(points):
    space = box(axes=rotation())
    contracted = space.contract(points)
    assert ((contracted > 0) & (contracted < 1)).all()
    norm = np.abs(space.ground_from_world(points)).max(axis=1, keepdims=True)
    # Near the rim 1 - y falls as 1/m, so rounding of y costs m² in x: in boxes of 100 m, m is |x| / 15 here.
    assert (np.abs(space.expand(contracted) - points) <= 1e-9 + 1e-14 * norm**2).all()


def test_box_is_the_middle_half_and_the_rim_is_infinity():
    space = box()
    corners = space.contract(np.array([space.box_min, space.box_max, (space.box_min + space.box_max) / 2]))
    assert corners == pytest.approx(np.array([[0.25] * 3, [0.75] * 3, [0.5] * 3]))
    far = space.contract(np.array([[1e300, 0, 0], [-1e300, 0, 0]]))
    assert far[0, 0] == 1 - EDGE and far[1, 0] == EDGE
    assert np.isfinite(space.expand(far)).all()


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_contraction_undoes_expansion(x, y, z):
    contracted = np.array([[x, y, z]])
    assert box().contract(box().expand(contracted)) == pytest.approx(contracted, abs=1e-12)


def test_contraction_refuses_what_has_no_place():
    with pytest.raises(ValueError, match="finite"):
        box().contract(np.array([[np.nan, 0, 0]]))
    with pytest.raises(UserError, match="empty"):
        box(high=(100, -50, 30))


def test_weighted_quantiles_are_plain_ones_of_repeated_values():
    values, weights = np.array([5.0, 1.0, 3.0]), np.array([1.0, 2.0, 3.0])
    assert weighted_quantiles(values, weights, [0.0, 1 / 3, 0.34, 0.84, 1.0]).tolist() == [1, 1, 3, 5, 5]


def test_bounds_of_a_nadir_flight(flight, town):
    scene = flight(town())
    space = automatic_bounds(scene)
    assert np.allclose(space.axes @ space.axes.T, np.eye(3)) and np.linalg.det(space.axes) == pytest.approx(1)
    assert space.axes[2] == pytest.approx(UP, abs=0.01)
    assert abs(space.axes[0] @ [1, 0, 0]) > 0.99, "the long side of the footprint is the first axis"
    assert (space.box_max - space.box_min)[:2] == pytest.approx([240, 150], rel=0.1)
    assert space.box_max[2] > 60 and space.box_min[2] < 0
    assert abs(space.ground) < 1
    assert "ground plane" in space.how and "tracks" in space.how


def test_bounds_turn_with_the_world(flight, town):
    points, turn = town(), rotation()
    scene = flight(points)
    space = automatic_bounds(scene)
    turned_frames = []
    for frame in scene.frames:
        pose = frame.camera.cam_from_world.copy()
        pose[:3, :3] = pose[:3, :3] @ turn.T
        turned_frames.append(replace(frame, camera=replace(frame.camera, cam_from_world=pose)))
    turned = automatic_bounds(replace(scene, points=points @ turn.T, frames=tuple(turned_frames), up=turn @ UP))
    assert turned.axes[2] == pytest.approx(turn @ space.axes[2], abs=2e-3), "up to where the patches fall"
    assert (turned.box_max - turned.box_min) == pytest.approx(space.box_max - space.box_min, rel=0.05)


@pytest.mark.parametrize(("tilt", "found"), [(6.0, 6.0), (30.0, 0.0)])
def test_ground_plane_is_followed_up_to_a_limit(tilt, found, flight, town):
    points = town()
    points[:, 2] += np.tan(np.radians(tilt)) * points[:, 0]
    space = automatic_bounds(flight(points, height=120.0))
    angle = np.degrees(np.arccos(np.clip(space.axes[2] @ UP, -1, 1)))
    assert angle == pytest.approx(found, abs=1.0)


def test_a_quarter_of_high_rises_does_not_tip_the_ground(flight, town):
    points = town()
    points[:, 2] += np.tan(np.radians(4)) * points[:, 1]
    points[points[:, 0] > 60, 2] += 30
    space = automatic_bounds(flight(points, height=120.0))
    assert "ground plane" in space.how
    assert space.axes[2] == pytest.approx([0, -np.sin(np.radians(4)), np.cos(np.radians(4))], abs=0.01)


@pytest.mark.parametrize("slant", [0.0, 60.0])
@pytest.mark.parametrize(("tracks", "count"), [(True, 1500), (False, 60)])
def test_outliers_do_not_move_the_box(slant, tracks, count, flight, town):
    """False matches, each seen by two views, up to 1000 km away (without tracks every view has them in its frustum)."""
    points = town()
    scene = flight(points, slant=slant, tracks=tracks)
    clean = automatic_bounds(scene)
    rng = seeds.numpy_generator("test", "outliers")
    frames, outliers = list(scene.frames), []
    for index in range(count):
        camera = frames[index % len(frames)].camera
        ray = camera.cam_from_world[:3, :3].T @ [*rng.uniform(-0.6, 0.6, 2), 1.0]
        outliers.append(camera.center + ray * 10 ** rng.uniform(3, 6))
        for view in (index % len(frames), (index + 1) % len(frames)) if tracks else ():
            frames[view] = replace(frames[view], seen=np.append(frames[view].seen, len(points) + index))
    unusable = [[np.nan, np.inf, 0]]
    dirty = replace(scene, points=np.concatenate([points, outliers, unusable]), frames=tuple(frames))
    space = automatic_bounds(dirty)
    assert (space.box_max - space.box_min) == pytest.approx(clean.box_max - clean.box_min, rel=0.05)
    owners = np.bincount(partition(dirty, 5).owner(points), minlength=5)
    assert owners.min() > 0.1 * len(points)


def test_held_out_views_do_not_shape_the_bounds(flight, town):
    scene = flight(town(), side=5)
    hidden = {frame.name for frame in scene.frames[:5]}
    space = automatic_bounds(replace(scene, test=frozenset(hidden)))
    without = replace(scene, frames=scene.frames[5:])
    assert np.array_equal(space.box_max, automatic_bounds(without).box_max)


def assert_tiles(cells: Partition, name: str):
    """Disjoint and complete: by volume, by pairwise overlap, and by asking random, far and border points."""
    low, high = (np.array([getattr(cell, side) for cell in cells.cells]) for side in ("min", "max"))
    assert (high > low).all()
    assert np.prod(high - low, axis=1).sum() == pytest.approx(1.0, abs=1e-12)
    overlap = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    assert not ((overlap > 0).all(axis=2) & ~np.eye(len(cells), dtype=bool)).any()
    rng = seeds.numpy_generator("test", "tiles", name)
    world = np.concatenate([rng.normal(size=(500, 3)) * 10 ** rng.uniform(0, 8, (500, 1)), np.zeros((1, 3))])
    corners = np.clip(np.concatenate([low, high]), EDGE, 1 - EDGE)
    for contracted in (cells.space.contract(world), corners, rng.uniform(EDGE, 1 - EDGE, (500, 3))):
        owners = sum(cell.contains(contracted).astype(int) for cell in cells.cells)
        assert (owners == 1).all()
    assert ((cells.owner(world) >= 0) & (cells.owner(world) < len(cells))).all()


@pytest.mark.parametrize("scheme", ["balanced", "grid"])
@pytest.mark.parametrize("blocks", range(1, 18))
def test_cells_cover_space_exactly_once(blocks, scheme, flight, villages):
    scene = flight(villages(f"cover {blocks}", 800), side=4)
    cells = partition(scene, blocks, scheme=scheme)
    assert len(cells) == blocks
    assert_tiles(cells, f"{scheme} {blocks}")
    owner = cells.owner(scene.points)
    for block in range(blocks):
        assert np.array_equal(cells.owns(scene.points, block), owner == block)


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(
        st.tuples(*[st.floats(-50, 50, width=16)] * 2, st.floats(0, 5, width=16)), min_size=25, max_size=60
    ),
    blocks=st.integers(1, 17),
)
def test_any_cloud_can_be_split(points, blocks, make_scene):
    centers = [[x, y, 300.0] for x in (-40, 40) for y in (-40, 40)]
    scene = make_scene(np.array(points), centers, np.array(centers) * [1, 1, 0])
    if np.ptp(scene.points[:, :2], axis=0).max() > 1e-6:
        assert_tiles(partition(scene, blocks), "any")


@pytest.mark.parametrize("cloud", ["town", "villages"])
@pytest.mark.parametrize("blocks", [2, 3, 4, 5, 7, 8, 11, 13, 16, 17])
def test_balanced_blocks_hold_equal_shares_of_what_is_seen(cloud, blocks, request, flight):
    scene = flight(request.getfixturevalue(cloud)(), side=6)
    cells = partition(scene, blocks)
    weights = observe(scene).weights(len(scene.points))
    shares = np.bincount(cells.owner(scene.points), weights, blocks)
    assert shares.max() / shares.min() <= 1.5


def test_longer_side_is_cut_first(flight, town):
    two = partition(flight(town()), 2)
    assert two.cells[0].max[0] == two.cells[1].min[0] == pytest.approx(0.5, abs=0.02)
    assert two.cells[0].max[1:] == (1.0, 1.0)


def test_points_on_few_columns_are_still_balanced_by_the_other_axis(flight):
    rng = seeds.numpy_generator("test", "columns")
    points = np.column_stack([rng.choice([-60.0, 60.0], 900, p=[0.9, 0.1]), rng.uniform(-40, 40, 900), np.zeros(900)])
    scene = flight(points, side=5)
    weights = observe(scene).weights(len(points))
    shares = np.bincount(partition(scene, 6).owner(points), weights, 6)
    assert shares.max() / shares.min() <= 1.5


def test_grid_matches_the_aspect_and_equal_cells(flight, town):
    cells = partition(flight(town()), 6, scheme="grid")
    xs = sorted({cell.min[0] for cell in cells.cells})
    ys = sorted({cell.min[1] for cell in cells.cells})
    assert (xs, ys) == ([0, 1 / 3, 2 / 3], [0, 1 / 2])
    assert cells.cells[1] == Cell((1 / 3, 0.0, 0.0), (2 / 3, 0.5, 1.0))


def test_partition_survives_json_to_the_bit(flight, town):
    cells = partition(flight(town()), 7)
    again = Partition.from_dict(json.loads(json.dumps(cells.to_dict())))
    assert again.cells == cells.cells and again.scheme == cells.scheme
    assert np.array_equal(again.space.axes, cells.space.axes)
    points = seeds.numpy_generator("test", "json").normal(size=(1000, 3)) * 200
    assert np.array_equal(again.space.contract(points), cells.space.contract(points))


def test_same_scene_same_partition(flight, town):
    assert partition(flight(town()), 5).to_dict() == partition(flight(town()), 5).to_dict()


def test_outline_runs_on_the_ground_along_the_cell(flight, town):
    cells = partition(flight(town()), 3)
    outline = cells.outline(1)
    assert outline.shape == (129, 3) and np.array_equal(outline[0], outline[-1])
    ground = cells.space.ground_from_world(outline)
    assert ground[:, 2] == pytest.approx(np.full(129, cells.space.ground))


def test_partition_names_what_is_wrong(flight, town):
    scene = flight(town(count=50), side=3)
    with pytest.raises(UserError, match="--blocks 1"):
        partition(scene, 0)
    with pytest.raises(UserError, match="use fewer blocks"):
        partition(scene, 51)
    with pytest.raises(UserError, match="balanced or grid"):
        partition(scene, 2, scheme="rings")
    with pytest.raises(UserError, match="no direction"):
        automatic_bounds(replace(scene, up=np.zeros(3)))
    with pytest.raises(UserError, match="no points"):
        observe(replace(scene, points=np.zeros((0, 3))))
    with pytest.raises(UserError, match="no training photo left"):
        observe(replace(scene, test=frozenset(frame.name for frame in scene.frames)))
    with pytest.raises(UserError, match="check the poses"):
        observe(replace(scene, points=scene.points + np.array([0, 0, 1000.0])))
    with pytest.raises(UserError, match="one spot"):
        automatic_bounds(replace(scene, points=np.zeros_like(scene.points)))
    broken = replace(partition(scene, 2), cells=partition(scene, 2).cells[:1])
    with pytest.raises(ValueError, match="do not cover"):
        broken.owner(scene.points)


def test_observations_carry_bins_depths_and_nearness(make_scene):
    points = np.array([[0.0, 0, 0], [0, 0, 0.5], [30, 0, 0], [0, 0, -900]])
    scene = make_scene(points, [[0, 0, 50.0]], [[0, 0, 0]])
    seen = observe(scene)
    assert seen.point.tolist() == [0, 1, 2, 3] and seen.near.tolist() == [True, True, True, False]
    assert seen.depth_m[0] == pytest.approx(50.0)
    assert seen.bin[0] == (GRID // 2) * GRID + GRID // 2
    assert seen.weights(4).tolist() == [1, 1, 1, 0]
    hidden = observe(scene, by_projection=True)
    assert hidden.by_projection and hidden.point.tolist() == [0, 1, 2]


def test_suburb_seen_from_the_air(suburb):
    scene = suburb
    space = automatic_bounds(scene)
    assert space.axes[2] == pytest.approx(UP, abs=0.03)
    assert space.ground == pytest.approx(-62, abs=4)
    assert (space.box_max - space.box_min)[:2] == pytest.approx([220, 172], rel=0.1)
    for blocks in (4, 8, 13):
        cells = partition(scene, blocks)
        assert_tiles(cells, "suburb")
        shares = np.bincount(cells.owner(scene.points), observe(scene).weights(len(scene.points)), blocks)
        assert shares.max() / shares.min() <= 1.05
