"""A float64 bench for score distillation: analytic priors, levels by hand, one step at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scene_distill.objectives.score import Distilled, Objective, distill
from scene_distill.objectives.score_ism import Inversion
from scene_distill.objectives.score_teacher import Progress, Teacher, Times
from scene_distill.priors.gaussian import GaussianPrior
from scene_distill.priors.mixture import MixturePrior
from scene_distill.priors.prior import Counted
from scene_distill.priors.schedules import scaled_linear

DOUBLE = {"dtype": torch.float64}
SCHEDULE = scaled_linear()
SHAPE = (4, 2, 2)
S0 = 0.35
PLAIN = {"weighting": "uniform", "strength": 1.0}
"""ISM and TSM without weight: G is the residual."""
CLEAN = Inversion(first_noise=False)
T = torch.tensor([380, 520, 900])
S = torch.tensor([300, 250, 700])


@dataclass(frozen=True)
class At:
    """Levels chosen by the test."""

    t: torch.Tensor = T
    s: torch.Tensor | None = S

    def sample(self, progress, batch, schedule, generator):
        return Times(self.t, self.s)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


M_N, M_Y, M_BAD = (draw(100 + i, *SHAPE) for i in range(3))
X0 = draw(1, 3, *SHAPE)
KAPPA = draw(2, 3, *SHAPE)


def gaussian(std: float = S0, shift: float = 0.0) -> GaussianPrior:
    means = {"": M_N + shift, "y": M_Y + shift, "bad": M_BAD + shift}
    return GaussianPrior(means, std, SCHEDULE)


def mixture(shift: float = 0.0) -> MixturePrior:
    """Eight centres, two of them in the class."""
    centres = 1.5 * draw(7, 8, *SHAPE) + shift
    weights = {
        "": torch.full((8,), 1 / 8, **DOUBLE),
        "y": torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0], **DOUBLE),
        "bad": torch.tensor([0, 0, 0, 0, 0.2, 0.8, 0, 0], **DOUBLE),
    }
    return MixturePrior(centres, weights, S0, SCHEDULE)


PRIORS = {"gaussian": gaussian, "mixture": mixture}


def prompts_of(prior, unwanted: str = "", wanted: str = "y") -> dict:
    return {
        "wanted": prior.describe([wanted]),
        "empty": prior.describe([""]),
        "unwanted": prior.describe([unwanted]),
    }


def step(method, prior, x0=X0, times=None, seed=0, unwanted="", progress=None, **how) -> Distilled:
    """One step of a method on x0."""
    objective = Objective(method, times or At(), how.pop("transforms", ()))
    generator = torch.Generator().manual_seed(seed)
    prompts = how.pop("prompts", None) or prompts_of(prior, unwanted)
    return distill(objective, prior, x0, prompts, generator, progress or Progress(), **how)


def teacher(prior, unwanted: str = "", seed: int = 0) -> Teacher:
    return Teacher(Counted(prior), prompts_of(prior, unwanted), torch.Generator().manual_seed(seed))


def sigma(level: torch.Tensor) -> torch.Tensor:
    """[B, 1, 1, 1]."""
    return SCHEDULE.sigma(level, X0)


def close(actual, expected, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
