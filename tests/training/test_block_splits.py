"""Blocks that outgrow --max-block-memory in real training: cells, views, merge, resume and the plan."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scene_distill.blocks.balance import block_costs, view_costs
from scene_distill.blocks.partition import partition
from scene_distill.blocks.runtime import Runtime
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.method import MomentumGS
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.methods.splats.method import PlainSplats

SHORT = {"blocks": 2, "lanes": 2, "iterations": 24, "visits": 4, "image_width": 64, "growth_events": 6}
METHODS = {
    "splats": (PlainSplats, SplatsConfig(**SHORT, growth_views=1, max_block_memory="5MB")),
    "momentum-gs": (MomentumGS, MomentumGSConfig(**SHORT, growth_views=1, max_block_memory="8MB")),
    "private halo": (MomentumGS, MomentumGSConfig(**SHORT, growth_views=1, max_block_memory="8MB", halo="private")),
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may catch it."""


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    return load_scene(make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "city"))


def trained(name, city, folder, kill_at=None, **changes):
    build, config = METHODS[name]
    config = replace(config, **changes)
    method = build(config, city, ImageCache(city.frames, config.image_width, 10**9))
    runtime = Runtime(method, method.rounds, folder)
    runtime.resume()
    heard = []

    def listen(progress):
        heard.append(progress)
        if len(heard) == kill_at:
            raise Killed

    runtime.run(listen)
    return method, runtime, method.merge(runtime.states())


def positions(merged):
    local = merged.local.means if hasattr(merged, "local") else merged.anchors.positions
    return local.double().numpy() + merged.origin


@pytest.mark.parametrize("name", METHODS)
def test_blocks_are_split_and_the_scene_is_whole(name, city, tmp_path):
    method, runtime, merged = trained(name, city, tmp_path)
    cells = method.blocks.partition
    assert len(cells) > 2 and set(runtime.states()) == set(range(len(cells)))
    low, high = (np.array([getattr(cell, side) for cell in cells.cells]) for side in ("min", "max"))
    assert np.prod(high - low, axis=1).sum() == pytest.approx(1.0, abs=1e-12)
    before = partition(city, 2)
    for cell in cells.cells:
        inside = [
            o for o in before.cells if np.all(cell.min >= np.array(o.min)) and np.all(cell.max <= np.array(o.max))
        ]
        assert len(inside) == 1, "every cell lies in one of the first ones"
    assert np.array_equal(cells.owner(positions(merged)), merged.block.numpy())
    assert set(merged.block.tolist()) == set(range(len(cells)))
    assert len(merged.metadata["blocks"]["cells"]) == len(cells)
    assert len(np.unique(positions(merged), axis=0)) > 0.99 * len(merged), "nothing is there twice"
    assert method.blocks.assignment.any(axis=1).all()
    assert runtime.done_steps == runtime.total_steps > 2 * 24
    image = merged.render(method.images.camera(city.frames[0])).image
    assert torch.isfinite(image).all() and image.max() > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_killed_around_splits_ends_with_the_same_bytes(name, city, tmp_path):
    _, whole, scene = trained(name, city, tmp_path / "whole")
    for kill_at in (5, 14):
        for attempt in range(50):
            try:
                _, again, merged = trained(name, city, tmp_path / f"killed{kill_at}", kill_at=kill_at + 7 * attempt)
                break
            except Killed:
                continue
        assert again.rounds == whole.rounds
        assert np.array_equal(positions(merged), positions(scene)) and torch.equal(merged.block, scene.block)


def test_a_block_is_smaller_after_its_split(city, tmp_path):
    method, runtime, _ = trained("splats", city, tmp_path)
    sizes = [len(load()["splats.means"]) for load in runtime.states().values()]
    _, without, _ = trained("splats", city, tmp_path / "without", max_block_memory="")
    assert len(without.states()) == 2
    assert max(sizes) < max(len(load()["splats.means"]) for load in without.states().values())
    assert method.plan()["working_set_bytes"] <= 2 * 5e6


def test_blocks_may_be_cut_and_ordered_by_cost(city, tmp_path):
    changes = {"partition": "cost", "block_order": "cost", "blocks": 4, "max_block_memory": ""}
    method, _, merged = trained("momentum-gs", city, tmp_path, **changes)
    assert merged.metadata["blocks"]["scheme"] == "cost" and set(merged.block.tolist()) == {0, 1, 2, 3}
    costs = block_costs(method.assignment, view_costs(city, 64)).step
    order = [visit.unit for round_ in method.rounds[:2] for visit in round_.visits]
    pairs = [sorted(np.argsort(np.argsort(costs))[order[k : k + 2]]) for k in (0, 2)]
    assert sorted(map(list, pairs)) == [[0, 1], [2, 3]], "lanes of a round are neighbours by cost"


def test_a_limit_below_a_steps_pictures_is_refused(city):
    build, config = METHODS["splats"]
    method = build(replace(config, max_block_memory="300kB"), city, ImageCache(city.frames, 64, 10**9))
    with pytest.raises(UserError, match="pictures take"):
        method.state_limit  # noqa: B018
