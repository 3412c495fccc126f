"""The simulated cluster against closed forms, and against runs of the real runtime."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from scene_distill.blocks import simulation
from scene_distill.blocks.runtime import Runtime
from scene_distill.blocks.schedule import make_schedule, place_lanes
from scene_distill.blocks.simulation import Cluster, Costs, Layout, Outcome, reduction_seconds

PLAIN = Costs(step=0.05, state=1e8)


def simulate(rounds, costs, cluster, *how, **more) -> Outcome:
    return simulation.simulate(Layout.of(rounds, cluster.workers), costs, cluster, *how, **more)


def maximum_of_lognormals(count, spread):
    """E[max of ``count`` lognormals of mean 1] by quadrature of 1 - F(x)^n."""
    from scipy.stats import lognorm

    law = lognorm(spread, scale=np.exp(-(spread**2) / 2))
    edges = np.linspace(0, float(law.ppf(1 - 1e-9 / count)), 200_001)
    middles = (edges[1:] + edges[:-1]) / 2
    return float((1 - law.cdf(middles) ** count).sum() * edges[1])


@pytest.mark.parametrize(("units", "lanes", "workers"), [(8, 4, 1), (8, 4, 4), (10, 4, 3), (7, 3, 8), (100, 16, 16)])
def test_without_chance_the_time_is_a_formula(units, lanes, workers):
    rounds = make_schedule(units, lanes, 60, 3)
    busiest = [max(np.bincount(owner)) for owner in place_lanes(rounds, workers)]
    outcome = simulate(rounds, PLAIN, Cluster(workers, latency=0.0))
    assert outcome.seconds == pytest.approx(0.05 * sum(b * r.steps for b, r in zip(busiest, rounds, strict=True)))
    assert outcome.work == pytest.approx(0.05 * 60 * units)
    assert outcome.efficiency == pytest.approx(outcome.work / workers / outcome.seconds)
    assert outcome.efficiency <= 1 + 1e-9 and (workers > 1 or outcome.efficiency == pytest.approx(1))


def test_reductions_follow_their_formulas():
    costs, cluster = replace(PLAIN, gradient=1e6, lane_sum=1e-4), Cluster(4, link=1e9, latency=1e-3)
    assert reduction_seconds("ordered", 8, costs, cluster) == pytest.approx(3e-3 + 0.75 * 8e-3 + 8e-4)
    assert reduction_seconds("all-reduce", 8, costs, cluster) == pytest.approx(6e-3 + 1.5e-3 + 2e-4)
    assert reduction_seconds("tree", 8, costs, cluster) == pytest.approx(4 * (1e-3 + 1e-3 + 1e-4) + 2e-4)
    assert reduction_seconds("none", 8, costs, cluster) == 0
    rounds = make_schedule(8, 4, 40, 2)
    trained = sum(round_.steps for round_ in rounds if not round_.final)
    for how in ("ordered", "all-reduce", "tree"):
        outcome = simulate(rounds, costs, cluster, how)
        assert outcome.reducing == pytest.approx(trained * reduction_seconds(how, 4, costs, cluster))
    assert simulate(rounds, costs, cluster, reduce_every=5).reducing == pytest.approx(
        trained / 5 * reduction_seconds("ordered", 4, costs, cluster)
    )


@pytest.mark.parametrize("workers", [2, 16, 256])
def test_stragglers_cost_the_expected_maximum(workers):
    rounds = make_schedule(4 * workers, workers, 4000, 4)[:4]
    outcome = simulate(rounds * 20, replace(PLAIN, step_spread=0.3), Cluster(workers, latency=0.0))
    expected = maximum_of_lognormals(workers, 0.3)
    assert (outcome.compute + outcome.waiting) / outcome.compute == pytest.approx(expected, rel=0.03)
    alone = simulate(rounds * 20, replace(PLAIN, step_spread=0.3), Cluster(workers, latency=0.0), "none")
    assert alone.waiting < 0.2 * outcome.waiting, "who waits once a visit waits for sums, which differ less"


def test_failures_cost_what_the_law_of_restarts_says():
    """Expected time of a round of d seconds with failures at rate r, each lost round and a restart of c: (1/r + c)
    (exp(r d) - 1), c counted per failure only (Daly 2006, equation 13)."""
    rounds = make_schedule(64, 1, 100, 1) * 40
    cluster = Cluster(1, latency=0.0, failures=10.0, restart=3.0)
    outcome = simulate(rounds, PLAIN, cluster)
    duration, rate = 100 * 0.05, 1 / 10.0
    expected = len(rounds) * (1 / rate + 3.0) * np.expm1(rate * duration)
    assert outcome.seconds == pytest.approx(expected, rel=0.05)
    with pytest.raises(ValueError, match="laid out for 2"):
        simulation.simulate(Layout.of(rounds, 2), PLAIN, cluster)
    with pytest.raises(ValueError, match="never ends"):
        simulate(rounds, PLAIN, replace(cluster, failures=0.1))


def test_the_best_length_of_a_visit_is_youngs():
    """A visit that costs c outside of its steps is best sqrt(2 c m) long, m the time between failures (Young 1974)."""
    costs, cluster = Costs(step=1.0, state=0.0, visit=20.0), Cluster(1, latency=0.0, failures=4000.0, restart=0.0)
    lengths = [50, 100, 200, 400, 800, 1600, 3200]
    seconds = {}
    for length in lengths:
        rounds = make_schedule(1, 1, 640_000, 640_000 // length)
        seconds[length] = simulate(rounds, costs, cluster).seconds
    assert min(seconds, key=seconds.get) == 400, "sqrt(2 * 20 * 4000) = 400"


def test_states_and_commits_cost_what_training_does_not_hide():
    rounds = make_schedule(40, 4, 20, 2)
    hidden = simulate(rounds, PLAIN, Cluster(4, link=1e12, latency=0.0, store=1e12))
    assert hidden.storing == 0
    bare = simulate(rounds, PLAIN, Cluster(4, link=1e12, latency=0.0, store=1e8))
    assert bare.storing == pytest.approx(20 * (4 * 2 * 1e8 / 1e8 - 10 * 0.05)), "four written and four read a round"
    resident = simulate(rounds, PLAIN, Cluster(4, link=1e12, latency=0.0, store=1e8, resident=10))
    assert bare.storing - resident.storing == pytest.approx(10 * 4), "the second sweep finds its units in RAM"
    slow = simulate(rounds, replace(PLAIN, manifest=0.1), Cluster(4, latency=0.0, store=1e12))
    known = np.minimum(np.arange(4, 84, 4), 40)
    assert slow.committing == pytest.approx(np.maximum(0.1 * known - 0.5, 0).sum())


class Sleepy:
    """A method whose steps only take time."""

    def __init__(self, seconds):
        self.shared, self.seconds, self.slept = self, seconds, 0.0

    def first_state(self, unit):
        return {"x": torch.zeros(1)}

    def open(self, unit, state, visit, round_):
        return self

    def step(self, step):
        started = time.perf_counter()
        time.sleep(self.seconds)
        self.slept += time.perf_counter() - started
        return None, {}

    def close(self):
        return {"x": torch.zeros(1)}, {}

    def parameters(self):
        return []

    def begin_step(self, shared_step, frozen):
        pass

    def publish(self, unit, scores):
        pass

    def state(self):
        return {}


def test_one_worker_takes_the_time_of_a_real_run(tmp_path):
    """The real runtime on real steps; the simulator is told what a step took, and finds the length of the run."""
    rounds = make_schedule(6, 3, 20, 2)
    method = Sleepy(0.004)
    runtime = Runtime(method, rounds, tmp_path)
    runtime.run()
    mean = method.slept / runtime.total_steps
    outcome = simulate(rounds, Costs(step=mean, state=4.0), Cluster(1))
    assert outcome.work == pytest.approx(method.slept)
    assert 0.98 * outcome.seconds <= runtime.seconds
