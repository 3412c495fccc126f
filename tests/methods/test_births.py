"""When primitives were made is known through growth, copies, cuts, the merge and the file; older files do without."""

import pytest
import torch

from scene_distill.blocks.runtime import ComputedState, Runtime
from scene_distill.blocks.splitting import part_of_state
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods import find_method
from scene_distill.methods.momentum_gs.block import first_block_state
from scene_distill.methods.momentum_gs.halo import STAMP, exchanged
from scene_distill.representations.anchors import Anchors
from scene_distill.representations.births import BORN, UNKNOWN, births_after, births_of

SETTINGS = {"blocks": 2, "iterations": 20, "visits": 4, "image_width": 64, "grow_from": 0.1, "seed": 1}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "births_city"))


@pytest.mark.parametrize("name", ["momentum-gs", "splats"])
def test_what_grows_is_born_at_an_event_and_the_merged_scene_and_its_file_know_it(scene, tmp_path, name):
    entry = find_method(name)
    extra = {"points_per_voxel": 1.0, "lanes": 2} if name == "momentum-gs" else {}
    config = entry.config(**SETTINGS, **extra)
    method = entry.build(config, scene, ImageCache(scene.frames, config.image_width, 10**9))
    runtime = Runtime(method, method.rounds, tmp_path / "units")
    runtime.run()
    for load in runtime.states().values():
        state = load()
        assert len(state[BORN]) == len(state[method.rows.positions]) and state[BORN].dtype == torch.int32
        keep = torch.arange(len(state[BORN])) % 3 == 0
        assert torch.equal(part_of_state(state, method.rows, keep)[BORN], state[BORN][keep])
    merged = method.merge(runtime.states())
    assert len(merged.born) == len(merged) and (merged.born == 0).any()
    grown = merged.born[merged.born != 0]
    first, last = config.grow_from * config.iterations, config.grow_until * config.iterations
    assert len(grown) and first < int(grown.min()) and int(grown.max()) <= last + 1
    merged.save(tmp_path / "model.safetensors")
    assert torch.equal(entry.load(tmp_path / "model.safetensors").born, merged.born)
    type(merged).save(type(merged)(**{**vars_of(merged), "born": None}), tmp_path / "old.safetensors")
    assert entry.load(tmp_path / "old.safetensors").born is None


def vars_of(scene) -> dict:
    return {name: getattr(scene, name) for name in scene.__dataclass_fields__}


def state_at(xs: list[float], born: list[int] | None):
    count = len(xs)
    positions = torch.tensor([[x, 0.0, 0.0] for x in xs])
    anchors = Anchors(positions, torch.zeros(count, 10, 3), torch.ones(count, 32), torch.zeros(count, 6))
    state = first_block_state(anchors, torch.arange(count) % 2) | {STAMP: torch.full((count,), 4, dtype=torch.int32)}
    del state[BORN]
    return state if born is None else state | {BORN: torch.tensor(born, dtype=torch.int32)}


def test_copies_that_are_averaged_keep_their_birth_and_states_without_one_count_as_unknown():
    own, other = state_at([0.0, 1.0], [7, 9]), state_at([0.0, 1.0, 2.0, 3.0], [7, 9, 11, 13])
    for state in (own, other):
        state["halo.steps"] += 2.0

    def everywhere(positions):
        return torch.ones(len(positions), dtype=torch.bool)

    def found(own, other):
        state = exchanged(0, own, {1: ComputedState(lambda: other)}, everywhere)
        return dict(zip(state["anchors.positions"][:, 0].tolist(), state.get(BORN, torch.zeros(0)).tolist()))  # noqa: B905

    assert found(own, other) == {0.0: 7, 1.0: 9, 3.0: 13}
    old = {name: tensor for name, tensor in other.items() if name != BORN}
    assert found(own, old)[3.0] == UNKNOWN
    assert births_of(exchanged(0, old, {}, everywhere), "anchors.positions").tolist() == [UNKNOWN] * 4


def test_after_an_event_the_kept_come_first():
    born = births_after(torch.tensor([0, 3, 5], dtype=torch.int32), torch.tensor([True, False, True]), 2, 9)
    assert born.tolist() == [0, 5, 10, 10] and born.dtype == torch.int32
