"""Every score-distillation method on a mixture whose truth is known: 64 particles, 16 dimensions, 8 modes, 2 wanted.

Run: python benchmarks/score_pilot.py [--steps N] [--seeds N] [--table]; every run goes to
benchmarks/results/score_pilot.json as soon as it is done, and a stopped campaign continues. ``--table`` prints the
table of docs/score_distillation.md from that file. All arms share the levels t (one annealed schedule, unless the arm
is about the schedule), the guidance 7.5 (standard form), Adam and its rate; evaluations of the prior are counted and
printed.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from scene_distill.core.files import read_json, write_json
from scene_distill.core.seeds import torch_generator
from scene_distill.objectives.score import Objective, distill
from scene_distill.objectives.score_cds import CDS
from scene_distill.objectives.score_noise import FixedPerView, FixedShared, Fresh
from scene_distill.objectives.score_presets import on_equal_terms, published
from scene_distill.objectives.score_teacher import Progress
from scene_distill.objectives.score_times import AnnealedTimes, IntervalTimes, UniformTimes
from scene_distill.priors.mixture import MixturePrior
from scene_distill.priors.schedules import scaled_linear

RESULTS = Path(__file__).parent / "results" / "score_pilot.json"
PARTICLES, DIMENSIONS, MODES, RADIUS, SPREAD, GUIDANCE, RATE = 64, 16, 8, 4.0, 0.35, 7.5, 0.03
ANNEALED = AnnealedTimes(700, 20)
DIVERGED = 20.0
"""A particle further than this many spreads from every mode of the class has diverged."""


def equal(name: str) -> Objective:
    return on_equal_terms(published(name), ANNEALED, guidance=GUIDANCE)


def cds(noise, gap: float = 100, **switches) -> Objective:
    return Objective(CDS(GUIDANCE, noise=noise, **switches), IntervalTimes(ANNEALED, gap))


def ism_control() -> Objective:
    """ISM at the interval t - mu of TSM with the paper's gamma 0.3: 70 % of 80 levels."""
    return replace(equal("ism"), times=IntervalTimes(ANNEALED, 56))


ARMS: dict[str, Callable[[], Objective]] = {
    "SDS": lambda: equal("sds"),
    "SDS, uniform t": lambda: replace(equal("sds"), times=UniformTimes(20, 980)),
    "SJC": lambda: equal("sjc"),
    "CSD": lambda: on_equal_terms(published("csd"), ANNEALED),
    "ISM": lambda: equal("ism"),
    "ISM at interval t - mu": ism_control,
    "TSM, paper's gamma 0.3": lambda: equal("tsm"),
    "TSM, code's gamma 0.3": lambda: equal("tsm-code"),
    "CDS, fixed noise": lambda: cds(FixedShared()),
    "CDS, noise per view": lambda: cds(FixedPerView()),
    "CDS, fresh noise": lambda: cds(Fresh()),
    "CDS, fresh noise, gap 20": lambda: cds(Fresh(), 20),
    "CDS, literal sign": lambda: cds(Fresh(), sign="literal"),
    "SDI": lambda: equal("sdi"),
}


def mixture(seed: int) -> MixturePrior:
    """Orthogonal modes at radius 4, the first two of them in the class."""
    basis, _ = torch.linalg.qr(torch.randn(DIMENSIONS, DIMENSIONS, generator=torch_generator(seed, "modes")))
    weights = {"": torch.full((MODES,), 1 / MODES), "y": torch.tensor([0.5, 0.5] + [0.0] * (MODES - 2))}
    return MixturePrior(RADIUS * basis[:MODES], weights, SPREAD, scaled_linear())


def run(arm: str, seed: int, steps: int) -> dict:
    """Distances of the particles to the nearest mode of the class after ``steps`` of Adam, in spreads."""
    objective, prior = ARMS[arm](), mixture(seed)
    prompts = {"wanted": prior.describe(["y"]), "empty": prior.describe([""]), "unwanted": prior.describe([""])}
    x = torch.randn(PARTICLES, DIMENSIONS, generator=torch_generator(seed, "start")).requires_grad_()
    optimiser = torch.optim.Adam([x], RATE)
    generator, views, evaluations = torch_generator(seed, "steps"), torch.arange(PARTICLES), 0
    for step in range(steps):
        out = distill(objective, prior, x, prompts, generator, Progress(step, steps), view_ids=views)
        optimiser.zero_grad()
        out.loss("sum").backward()
        optimiser.step()
        evaluations += out.evaluations
    distance, mode = torch.cdist(x.detach(), prior.centres[:2]).min(1)
    distance = distance / SPREAD
    return {
        "arm": arm, "seed": seed, "steps": steps, "evaluations per particle": evaluations // PARTICLES,
        "median": float(distance.median()), "mean": float(distance.mean()),
        "within 1": float((distance < 1).float().mean()), "diverged": float((distance > DIVERGED).float().mean()),
        "size": float(x.detach().norm(dim=1).mean()), "first mode": float((mode == 0).float().mean()),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Markdown: mean and sample deviation over seeds."""
    lines = [
        "| arm | seeds | evaluations | median distance | within 1 s | diverged | size |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        cells = [_spread([row["median"] for row in mine], 2)]
        cells += [f"{100 * statistics.mean(row[key] for row in mine):.0f} %" for key in ("within 1", "diverged")]
        cells.append(_spread([row["size"] for row in mine], 1))
        calls = round(statistics.mean(row["evaluations per particle"] for row in mine))
        lines.append(f"| {arm} | {len(mine)} | {calls:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_json(RESULTS) if RESULTS.exists() else []
    done = {(row["arm"], row["seed"], row["steps"]) for row in rows}
    if not options.table:
        for seed in range(options.seeds):
            for arm in ARMS:
                if (arm, seed, options.steps) not in done:
                    rows.append(run(arm, seed, options.steps))
                    write_json(RESULTS, rows)
                    print(rows[-1], flush=True)
    print(table([row for row in rows if row["steps"] == options.steps]))


if __name__ == "__main__":
    main()
