"""Plain splats: closed cases of densification, then training on a scene small enough to look into."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scene_distill.blocks.runtime import Runtime
from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods.splats.block import splats_of
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.methods.splats.merged import MergedSplats
from scene_distill.methods.splats.method import PlainSplats
from scene_distill.representations.splat_densification import (
    SHRINK,
    DensificationRules,
    ScreenGradients,
    children_of,
    densify,
    reset_opacities,
)
from scene_distill.representations.splats import Splats
from scene_distill.training.evaluation import SplatScene, evaluate, initial_points_psnr

CONFIG = SplatsConfig(iterations=90, visits=3, image_width=80, growth_views=2, growth_events=4)
RULES = DensificationRules(
    gradient=1.0, split_size=1.0, max_size=10.0, min_opacity=0.005, min_views=2, max_splats=100
)  # fmt: skip


def splats(sizes: list[float], opacities: list[float]) -> Splats:
    count = len(sizes)
    log_scales = torch.tensor(sizes).log()[:, None].repeat(1, 3)
    means = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, 3)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1)
    return Splats(means, log_scales, quats, torch.tensor(opacities).logit(), torch.randn(count, 4, 3))


def judged(gradients: list[float]) -> ScreenGradients:
    statistics = ScreenGradients.zeros(len(gradients))
    for _ in range(RULES.min_views):
        statistics.observe(torch.arange(len(gradients)), torch.tensor(gradients))
    return statistics


def event(parts: Splats, gradients: list[float], rules: DensificationRules = RULES, mine: list[bool] | None = None):
    allowed = torch.tensor(mine) if mine else torch.ones(len(parts), dtype=torch.bool)
    return densify(parts, judged(gradients), rules, allowed, torch.Generator().manual_seed(1))


def test_small_splats_are_cloned_large_ones_split_and_calm_ones_left_alone():
    parts = splats([0.5, 2.0, 0.5], [0.5, 0.5, 0.5])
    found = event(parts, [1.0, 1.0, 0.9])
    assert found.keep.tolist() == [True, False, True]
    assert len(found.added) == 3
    clone, children = found.added.select(torch.tensor([0])), found.added.select(torch.tensor([1, 2]))
    assert torch.equal(clone.means, parts.means[:1]) and torch.equal(clone.sh, parts.sh[:1])
    torch.testing.assert_close(children.log_scales.exp(), torch.full((2, 3), 2.0 / SHRINK))
    assert torch.equal(children.opacity_logits, parts.opacity_logits[[1, 1]])
    assert not torch.equal(children.means[0], children.means[1])


def test_transparent_and_huge_splats_are_removed_and_never_become_two():
    found = event(splats([0.5, 11.0, 0.5], [0.004, 0.5, 0.006]), [9.0, 9.0, 0.0])
    assert found.keep.tolist() == [False, False, True] and len(found.added) == 0


def test_the_largest_gradients_take_the_room_that_is_left():
    found = event(splats([0.5] * 4, [0.5] * 4), [2.0, 5.0, 3.0, 4.0], replace(RULES, max_splats=6))
    assert found.keep.all() and found.added.means[:, 0].tolist() == [1.0, 3.0]
    full = event(splats([0.5] * 4, [0.5] * 4), [2.0] * 4, replace(RULES, max_splats=3))
    assert full.keep.all() and len(full.added) == 0


def test_only_own_splats_seen_often_enough_become_two_and_their_sums_start_anew():
    parts, statistics = splats([0.5] * 3, [0.5] * 3), judged([3.0, 3.0, 3.0])
    statistics.views[2] = 1
    found = densify(parts, statistics, RULES, torch.tensor([True, False, True]), torch.Generator())
    assert found.added.means[:, 0].tolist() == [0.0]
    assert statistics.views.tolist() == [0, 0, 1] and statistics.gradient.tolist() == [0, 0, 6]


def test_children_are_spread_like_their_parent():
    turned = torch.tensor([[math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)]])  # x to y
    parent = replace(splats([1.0], [0.5]), log_scales=torch.tensor([[3.0, 0.5, 0.1]]).log(), quats=turned)
    children = children_of(parent.select(torch.zeros(4000, dtype=torch.long)), torch.Generator().manual_seed(0))
    torch.testing.assert_close(children.means.std(0), torch.tensor([0.5, 3.0, 0.1]), rtol=0.05, atol=0.0)
    torch.testing.assert_close(children.means.mean(0), parent.means[0], rtol=0.0, atol=0.15)


def test_reset_lowers_high_opacities_only():
    found = reset_opacities(torch.tensor([0.9, 0.002]).logit(), 0.01).sigmoid()
    torch.testing.assert_close(found, torch.tensor([0.01, 0.002]))


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """As in `training.loop.prepare`: torch's pool and that of the kernels would spin against each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return load_scene(make_city(load_recipe("city_test"), tmp_path_factory.mktemp("data") / "city"))


def build(config: SplatsConfig, scene) -> PlainSplats:
    return PlainSplats(config, scene, ImageCache(scene.frames, config.image_width, 10**9))


def train(config: SplatsConfig, scene, folder: Path, listen=lambda step: None) -> tuple[PlainSplats, Runtime]:
    method = build(config, scene)
    runtime = Runtime(method, method.rounds, folder)
    runtime.resume()
    runtime.run(listen)
    return method, runtime


@pytest.fixture(scope="module")
def trained(scene, tmp_path_factory) -> tuple[PlainSplats, MergedSplats]:
    method, runtime = train(CONFIG, scene, tmp_path_factory.mktemp("runs"))
    return method, method.merge(runtime.states())


def test_training_beats_the_initial_points_and_grows(trained, scene):
    method, merged = trained
    images = method.images
    before = initial_points_psnr(scene, scene.test_frames, images)
    assert evaluate(merged, scene.test_frames, images)["psnr"] > before + 3
    assert len(merged) > len(scene.points)


def test_absolute_gradients_do_not_cancel_and_nothing_is_summed_after_growth(scene):
    def sums(step: int, **changes: bool) -> torch.Tensor:
        method = build(replace(CONFIG, **changes), scene)
        block = method.open(0, method.first_state(0), method.rounds[0].visits[0], method.rounds[0])
        block.step(step)
        return block.statistics.gradient

    absolute, plain = sums(1, growth_absolute=True), sums(1, growth_absolute=False)
    assert torch.equal(absolute > 0, plain > 0) and bool((absolute >= plain * (1 - 1e-4)).all())
    assert absolute.sum() > 1.2 * plain.sum()
    assert not sums(CONFIG.iterations - 1, growth_absolute=True).any()


def test_an_interrupted_run_ends_with_the_same_bytes(trained, scene, tmp_path):
    class Stop(Exception):
        pass

    def stop(step):
        if step.done_steps == 50:
            raise Stop

    with pytest.raises(Stop):
        train(CONFIG, scene, tmp_path, stop)
    method, runtime = train(CONFIG, scene, tmp_path)
    again, whole = method.merge(runtime.states()).tensors(), trained[1].tensors()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_saved_scene_is_read_back_whole(trained, scene, tmp_path):
    method, merged = trained
    assert isinstance(merged, SplatScene)
    merged.save(tmp_path / "m.safetensors")
    back = MergedSplats.load(tmp_path / "m.safetensors")
    camera = method.images.camera(scene.frames[0])
    assert torch.equal(back.render(camera).image, merged.render(camera).image)
    assert back.metadata == merged.metadata and np.array_equal(back.origin, merged.origin)
    (tmp_path / "m.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match="not a readable"):
        MergedSplats.load(tmp_path / "m.safetensors")


def test_blocks_merge_by_cell_and_degrees_rise(scene, tmp_path):
    config = replace(CONFIG, blocks=3, lanes=2, iterations=20, visits=2, sh_rise=0.4)
    method, runtime = train(config, scene, tmp_path)
    merged = method.merge(runtime.states())
    owners = method.blocks.partition.owner(merged.local.means.double().numpy() + merged.origin)
    assert np.array_equal(owners, merged.block.numpy()) and set(owners) == {0, 1, 2}
    learned = splats_of(runtime.states()[0]()).sh.abs().amax((0, 2)) > 0
    assert learned.tolist() == [True] * 9 + [False] * 7  # degree 2 from 16 of 20 steps on


def test_a_block_tells_the_psnr_of_its_pictures_now_and_then(scene, tmp_path):
    told: dict[int, dict[int, float]] = {}

    def hear(step):
        for unit, numbers in step.lanes:
            if "psnr" in numbers:
                told.setdefault(unit, {})[step.done_steps] = numbers["psnr"]
                assert 1 <= numbers["psnr"] / (-10 * np.log10(numbers["l1"])) <= 2  # L1^2 <= MSE <= L1

    train(replace(CONFIG, blocks=3, lanes=3, iterations=20, visits=2), scene, tmp_path, hear)
    assert {unit: len(values) for unit, values in told.items()} == {0: 3, 1: 3, 2: 3}  # steps 0, 8, 16 of 20


def test_export_writes_the_splats_as_they_are(scene, tmp_path, capsys):
    from scene_distill.cli import main
    from scene_distill.export import read_splats

    folder = tmp_path / "run"
    flags = ["--iterations", "20", "--visits", "2", "--image-width", "80", "--output-dir", str(folder)]
    main.main(["train", "splats", "--data", str(scene.root), *flags])
    main.main(["export", str(folder)])
    lost = re.search(r"\(loss (-?[\d.]+) dB\)", capsys.readouterr().out)
    assert lost and abs(float(lost[1])) < 0.005
    merged = MergedSplats.load(folder / "model.safetensors")
    written = read_splats(folder / "exports" / "scene.ply")[0]
    world = merged.local.means + torch.from_numpy(merged.origin).float()
    torch.testing.assert_close(written.means, world)
    torch.testing.assert_close(written.sh, merged.local.sh)
    torch.testing.assert_close(written.log_scales, merged.local.log_scales)
