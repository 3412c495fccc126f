"""Networks that learn from shards: the update, the batch, resumption and the log."""

import itertools

import pytest
import torch
from torch import nn

from scene_distill.blocks.runtime import Runtime
from scene_distill.core.errors import UserError
from scene_distill.objectives.transport_times import TimeBins
from scene_distill.training.sharded_learning import (
    BETAS,
    EPSILON,
    Learning,
    Means,
    Outcome,
    ShardedLearning,
    SharedNetwork,
)


class LineLesson:
    """y = 2 x of a shard's own numbers."""

    bins = TimeBins(2)

    def __init__(self, network, stop_after=None):
        self.network, self.calls, self.stop_after = network, 0, stop_after

    def read(self, shard):
        return torch.arange(1.0, 4.0)[:, None] + shard

    def outcome(self, data, batch, progress, generator):
        self.calls += 1
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        x = data[torch.randint(3, (batch,), generator=generator)]
        t = torch.rand(batch, generator=generator)
        each = (self.network(x) - 2 * x).square().mean(1)
        return Outcome(each.mean(), {"progress": progress}, each, t)


def line():
    torch.manual_seed(0)
    return nn.Linear(1, 1)


def runtime(folder, units=5, lanes=2, steps=12, stop_after=None, **more):
    network = line()
    lesson = LineLesson(network, stop_after)
    learning = Learning(steps, 0.05, 4, warmup=2, window=3, **more)
    method = ShardedLearning("line", network, lesson, learning, units, lanes, visit=2)
    return Runtime(method, method.rounds, folder), method


def test_updates_are_those_of_adamw():
    ours, theirs = line(), line()
    learning = Learning(20, 0.1, weight_decay=0.2, clip=1e9, ema=0.9, warmup=1)
    shared = SharedNetwork(ours, learning)
    optimiser = torch.optim.AdamW(theirs.parameters(), betas=BETAS, eps=EPSILON, weight_decay=0.2)
    average = [p.detach().clone() for p in theirs.parameters()]
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        gradients = [torch.randn(p.shape, generator=generator) for p in ours.parameters()]
        shared.apply(gradients, step)
        for p, g in zip(theirs.parameters(), gradients, strict=True):
            p.grad = g.clone()
        optimiser.param_groups[0]["lr"] = shared.schedule.at(step)
        optimiser.step()
        decay = min(0.9, (2 + step) / (11 + step))
        average = [a.lerp(p.detach(), 1 - decay) for a, p in zip(average, theirs.parameters(), strict=True)]
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    for mine, other in zip(shared.averaged().values(), average, strict=True):
        torch.testing.assert_close(mine, other)


def test_gradients_are_clipped_by_the_window_once_it_is_full():
    shared = SharedNetwork(line(), Learning(10, 0.1, clip=1.0, window=4))
    for step, norm in enumerate((0.1, 0.2, 0.1, 0.2)):
        shared.apply([torch.full((1, 1), norm), torch.zeros(1)], step)
    before = shared._first[0].clone()
    shared.apply([torch.full((1, 1), 50.0), torch.zeros(1)], 4)
    limit = float(torch.tensor([0.1, 0.2, 0.1, 0.2], dtype=torch.float64).quantile(0.95))
    assert float(shared._first[0]) == pytest.approx(float(before * 0.9 + 0.1 * limit), rel=1e-5)
    with pytest.raises(UserError, match="not a number"):
        shared.apply([torch.full((1, 1), float("nan")), torch.zeros(1)], 5)


@pytest.mark.parametrize(("units", "lanes"), [(5, 2), (1, 3), (4, 4)])
def test_every_round_learns_and_bins_count_every_batch(tmp_path, units, lanes):
    run, method = runtime(tmp_path, units, lanes)
    first = [p.detach().clone() for p in method.learner.network.parameters()]
    run.run()
    assert method.learner.done == sum(round_.steps for round_ in method.rounds) >= 12
    assert any(float((a - b).abs().max()) > 0 for a, b in zip(first, method.learner.network.parameters(), strict=True))
    hits = sum(float(saved()["bins"][1].sum()) for saved in run.states().values())
    assert hits == 4 * method.steps_of_unit * units


def test_a_stopped_training_ends_with_the_same_bytes(tmp_path):
    whole, method = runtime(tmp_path / "whole")
    whole.run()
    stopped, _ = runtime(tmp_path / "stopped", stop_after=17)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    again, resumed = runtime(tmp_path / "stopped")
    assert again.resume()
    again.run()
    for name, tensor in method.learner.state().items():
        assert torch.equal(tensor, resumed.learner.state()[name]), name


def test_an_update_is_the_mean_over_lanes(tmp_path):
    """Two lanes of two shards move the weights as the mean of the shards' gradients does."""
    _, method = runtime(tmp_path, 2, 2)
    first = method.rounds[0]
    units = [method.open(unit, method.first_state(unit), first.visits[0], first) for unit in (0, 1)]
    gradients = [unit.step(0)[0] for unit in units]
    mean = [(a + b) / 2 for a, b in zip(*gradients, strict=True)]
    other = SharedNetwork(line(), method.learning)
    other.apply(mean, 0)
    run, method = runtime(tmp_path / "run", 2, 2, steps=12)
    heard = []
    run.run(lambda progress: heard.append([p.detach().clone() for p in method.learner.parameters()]))
    for mine, theirs in zip(heard[0], other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_means_never_span_a_commit():
    told = []
    means = Means(lambda step, figures: told.append((step, figures["loss"])), 3, {4, 8}, 0)
    for value in range(8):
        means.hear([{"loss": value}, {"loss": value + 1}])
    assert [step for step, _ in told] == [3, 4, 6, 8]
    assert told[0][1] == pytest.approx(1.5) and all(a < b for (_, a), (_, b) in itertools.pairwise(told))
