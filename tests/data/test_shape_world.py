"""The small world of 3D shapes: distances, voxels, words, shards."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes import COLOR_NAMES, SHAPE_NAMES
from scene_distill.data.captioned_shapes_distances import nearest, normals, signed_distance
from scene_distill.data.captioned_shapes_objects import KINDS
from scene_distill.data.captioned_shapes_primitives import ROOF_PLANES, ball, block, tube
from scene_distill.data.shape_shards import ShapeSet, make_shard, read_all, read_shard, write_shards
from scene_distill.data.shape_world import (
    NATURAL,
    RESOLUTION,
    SLOTS,
    distance_grid,
    draw_shape,
    prompt_words,
    shell,
    view_camera,
    voxel_centers,
    voxelise,
)

RED = np.array([0.8, 0.1, 0.1])
SOLIDS = {
    "ball": ball((0.1, -0.1, 0.05), (0.3, 0.2, 0.15), RED, yaw=30, pitch=20),
    "cylinder": tube((-0.2, 0.1, -0.3), (0.2, 0.0, 0.3), 0.15, RED),
    "cone": tube((0, 0, -0.3), (0.1, 0.1, 0.3), 0.3, RED, 0.0),
    "box": block((0.05, 0.1, 0), (0.2, 0.3, 0.1), RED, yaw=25, pitch=10),
    "roof": block((0, 0, 0), (0.3, 0.2, 0.2), RED, yaw=15, planes=ROOF_PLANES),
}


def surface_points(solid, count=400):
    """Points on a solid's surface, by casting rays from far away through the exact ray caster."""
    from scene_distill.data.captioned_shapes_primitives import Solids

    generator = np.random.default_rng(0)
    directions = generator.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points, outward = [], []
    for direction in directions:
        origin = solid.center + 3 * direction
        towards = solid.center + 0.03 * generator.normal(size=3) - origin
        which, reach, normal = Solids([solid]).first_hits(origin, towards[:, None])
        if which[0] >= 0:
            points.append(origin + reach[0] * towards)
            outward.append(normal[0])
    return np.array(points), np.array(outward)


@pytest.mark.parametrize("name", SOLIDS)
def test_distance_is_zero_on_the_surface_and_grows_outwards(name):
    solid = SOLIDS[name]
    points, outward = surface_points(solid, 120)
    assert np.abs(signed_distance(solid, points)).max() < 1e-4
    for step in (0.02, 0.05):
        outside = signed_distance(solid, points + step * outward)
        assert outside.min() > 0 and outside.max() < step * (1.6 if name == "ball" else 1 + 1e-3)
    found = normals([solid], points + 1e-3 * outward, 1e-4)
    assert np.median((found * outward).sum(1)) > 0.999


@pytest.mark.parametrize("name", ["cylinder", "cone", "box", "roof"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_distance_never_overestimates(name, seed):
    """No step shorter than |distance| from anywhere changes sides: what sphere tracing and truncation rely on."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-0.6, 0.6, (50, 3))
    distance = signed_distance(SOLIDS[name], points)
    direction = generator.normal(size=(50, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    moved = signed_distance(SOLIDS[name], points + 0.999 * np.abs(distance)[:, None] * direction)
    assert (np.sign(moved) == np.sign(distance))[np.abs(distance) > 1e-9].all()


def test_grid_measures_where_it_matters():
    solids = [SOLIDS["ball"], SOLIDS["roof"]]
    grid = distance_grid(solids, 16)
    plain, _ = nearest(solids, voxel_centers(16))
    plain = plain.reshape(16, 16, 16) * 16
    np.testing.assert_allclose(grid[plain < 1], plain[plain < 1], atol=1e-5)
    assert grid[plain >= 1].min() >= 1 and grid.max() == 2


@pytest.fixture(scope="module")
def world():
    return [(draw_shape(3, "look", n), voxelise(draw_shape(3, "look", n))) for n in range(3 * len(SHAPE_NAMES))]


def test_every_kind_is_there_whole_and_inside(world):
    from scipy import ndimage

    assert len(SHAPE_NAMES) >= 10
    for recipe, voxels in world:
        grid = voxels.occupancy
        assert grid.sum() > 500, recipe
        assert ndimage.label(grid, np.ones((3, 3, 3)))[1] == 1, f"{recipe.toy.caption()} falls apart"
        assert not (grid[[0, -1]].any() or grid[:, [0, -1]].any() or grid[:, :, [0, -1]].any())
        corners = np.concatenate([primitive.extent() for primitive in recipe.primitives()])
        assert np.abs(corners).max() < 0.75  # boxes of round solids reach further than the solids


def test_up_is_z_and_front_is_x(world):
    """Tables are plates on legs, rockets and lamps stand on their middles, dogs look towards +x."""
    for recipe, voxels in world:
        layers = voxels.occupancy.sum((0, 1))
        low, high = np.flatnonzero(layers)[[0, -1]]
        middle = (low + high) // 2
        if recipe.toy.shape == "table":
            assert layers[high] > 8 * layers[middle] > 0
        if recipe.toy.shape == "lamp":
            assert layers[middle + 3 : high].mean() > 3 * layers[low + 8 : middle].mean()
        if recipe.toy.shape in ("dog", "duck"):
            top = np.argwhere(voxels.occupancy[:, :, high - 4 : high + 1])
            assert top[:, 0].mean() > RESOLUTION / 2 + 2


def test_kinds_can_be_told_apart(world):
    """By the nearest mean of the other objects' voxels, pooled to 8^3."""
    pooled = np.stack([v.occupancy.reshape(8, 4, 8, 4, 8, 4).mean((1, 3, 5)).reshape(-1) for _, v in world])
    kinds = np.array([recipe.words[0] for recipe, _ in world])
    right = 0
    for i, kind in enumerate(kinds):
        others = np.arange(len(kinds)) != i
        means = {k: pooled[others & (kinds == k)].mean(0) for k in np.unique(kinds)}
        right += min(means, key=lambda k: np.linalg.norm(pooled[i] - means[k])) == kind
    assert right >= 0.95 * len(kinds)


def test_no_two_chairs_are_alike(world):
    for kind in range(1, len(SHAPE_NAMES) + 1):
        grids = [v.occupancy for recipe, v in world if recipe.words[0] == kind]
        assert (grids[0] != grids[1]).any() and (grids[1] != grids[2]).any()


def test_shell_is_the_occupied_neighbours_of_the_empty(world):
    for _, voxels in world[:4]:
        grid = voxels.occupancy
        expected = [tuple(at) for at in np.argwhere(grid) if not grid[tuple(slice(c - 1, c + 2) for c in at)].all()]
        assert sorted(map(tuple, np.argwhere(shell(grid)))) == sorted(expected)
        assert (np.sort(voxels.index) == voxels.index).all() and voxels.distance.max() < 0.5
    whole = np.ones((4, 4, 4), bool)
    assert shell(whole).sum() == 64 - 8


def test_objects_are_functions_of_their_numbers(world):
    recipe, voxels = world[5]
    again = voxelise(draw_shape(3, "look", 5))
    assert (again.occupancy == voxels.occupancy).all() and (again.color == voxels.color).all()
    assert draw_shape(4, "look", 5).key != recipe.key and draw_shape(3, "look", 5) == recipe


def test_colours_are_those_of_the_words(world):
    for recipe, voxels in world:
        if recipe.toy.shape == "mushroom" and recipe.toy.color in ("red", "green", "blue"):
            channel = ("red", "green", "blue").index(recipe.toy.color)
            assert (voxels.color.argmax(1) == channel).mean() > 0.4


def test_pictures_show_the_object_from_every_side(world):
    recipe = world[1][0]
    for azimuth in (0, 90, 180, 270):
        picture = recipe.picture(view_camera(48, azimuth, 20))
        covered = picture[..., 3] > 128
        assert 0.05 < covered.mean() < 0.7
        assert not (covered[0].any() or covered[:, 0].any())


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a table", ("table", 0, 0)),
        ("A red chair with green legs", ("chair", "red", "green")),
        ("the orange duck", ("duck", "orange", 0)),
        ("mug with a blue handle", ("mug", 0, "blue")),
    ],
)
def test_prompts(prompt, words):
    shape, *colors = words
    expected = (1 + SHAPE_NAMES.index(shape), *(c and 1 + COLOR_NAMES.index(c) for c in colors))
    assert prompt_words(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("a dragon", "should name one object"),
        ("a table and a chair", "should name one object"),
        ("a shiny table", "'shiny'"),
        ("a table with red wheels", "'wheels'"),
        ("a table red", "belongs to nothing"),
        ("", "should name one object"),
    ],
)
def test_prompts_that_are_refused(prompt, complaint):
    with pytest.raises(UserError, match=complaint):
        prompt_words(prompt)


def test_captions_are_prompts():
    for number in range(64):
        recipe = draw_shape(0, "captions", number)
        kind, color, part = recipe.words
        said = 0 if part == NATURAL else part
        assert prompt_words(recipe.toy.caption()) == (kind, color, said)
        assert all(0 < word < slot for word, slot in zip(recipe.words, SLOTS, strict=True))
        assert KINDS[recipe.toy.shape].part


def test_shards_hold_what_was_drawn(tmp_path):
    wanted = ShapeSet("train", 7, 3, seed=2)
    write_shards(wanted, tmp_path, rank=1, ranks=2)
    assert len(list(tmp_path.iterdir())) == 1
    write_shards(wanted, tmp_path)
    everything = read_all(wanted, tmp_path)
    assert len(everything) == 7 and [len(read_shard(wanted, tmp_path, s)) for s in range(3)] == [2, 2, 3]
    for number in range(7):
        recipe = draw_shape(2, "train", number)
        voxels = voxelise(recipe)
        index, distance, color = everything.shell(number)
        assert tuple(everything.words[number].tolist()) == recipe.words
        assert (everything.grids(torch.tensor([number]))[0].numpy() == voxels.occupancy).all()
        assert (index.numpy() == voxels.index).all()
        np.testing.assert_allclose(distance.numpy(), voxels.distance, atol=0.01)
        assert ((color * 255).round().byte().numpy() == voxels.color).all()
    rows = torch.tensor([6, 0])
    drawn, distance, color = everything.sampled(rows, 50, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 50) and distance.shape == (2, 50) and color.shape == (2, 50, 3)
    assert set(drawn[1].tolist()) <= set(everything.shell(0)[0].tolist())
    again = make_shard(wanted, 1)
    assert torch.equal(again["color"], read_shard(wanted, tmp_path, 1).color)


def test_bad_shards_are_refused(tmp_path):
    wanted = ShapeSet("train", 2)
    with pytest.raises(UserError, match="cannot be read"):
        read_shard(wanted, tmp_path, 0)
    write_shards(wanted, tmp_path)
    path = wanted.path(tmp_path, 0)
    ShapeSet("train", 3).path(tmp_path, 0).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="other objects"):
        read_shard(ShapeSet("train", 3), tmp_path, 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        read_shard(wanted, tmp_path, 0)
    with pytest.raises(UserError, match="every shard needs one"):
        ShapeSet("train", 2, 3)
