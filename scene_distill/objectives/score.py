"""Score distillation: one gradient behind SDS, SJC, CSD, VSD, ISM, TSM, CDS and SDI.

Teacher:   a diffusion prior that knows what pictures of a prompt look like.
Student:   the renderer's parameters theta, through the clean state x0 of a render.
Gradient:  G = T( w(t) (e_A - e_B) ) into x0, and from there to theta; the prior's own Jacobian is dropped.
Cost:      the predictions that e_A and e_B need, counted per step in `Distilled.evaluations`.

An objective is four choices: how noise is made (`score_noise`), what e_A and e_B are (one file per method), w, and the
levels t (`score_times`). T are clips (`score_clip`). G is a descent gradient for every method: the noisier or
conditional prediction minus its reference. Its target form is x0* = x0 - G; with w = sigma_t and e_B = the noise that
made z_t this is the denoised state D(z_t).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score_clip import GradientTransform
from scene_distill.objectives.score_teacher import Progress, Teacher, Times
from scene_distill.objectives.score_times import TimeSampler
from scene_distill.priors.guidance import Combination, Guided, Request
from scene_distill.priors.prior import Condition, Counted, NoisePrior

Reduction = Literal["sum", "sum_per_image", "mean"]


@dataclass(frozen=True)
class Pair:
    """e_A and e_B: a prediction to be asked for, or one that is already there (a noise, an earlier prediction)."""

    a: Request | Tensor
    b: Request | Tensor


class ScoreMethod(Protocol):
    """The part that differs between methods."""

    def pair(self, x0: Tensor, times: Times, teacher: Teacher) -> Pair:
        """The two predictions for clean states x0 [B, *x0_shape]."""
        ...

    def weight(self, times: Times, teacher: Teacher) -> Tensor:
        """w, float64 [B]."""
        ...


@runtime_checkable
class LearnsFromRenders(Protocol):
    """A method that trains a network of its own on the renders, once per step, after the gradient was taken (VSD)."""

    def learn(self, x0: Tensor, teacher: Teacher) -> float:
        """One update on clean states x0; its loss."""
        ...


@dataclass(frozen=True)
class Objective:
    """A method, the levels it looks at, and what is done to its gradient."""

    method: ScoreMethod
    times: TimeSampler
    transforms: tuple[GradientTransform, ...] = ()


@dataclass(frozen=True)
class Distilled:
    """The gradient of one step, and how it came about. Tensors are detached except x0."""

    x0: Tensor
    """[B, *x0_shape], with the graph to the images."""
    gradient: Tensor
    """G, after weight and transforms."""
    a: Tensor
    b: Tensor
    times: Times
    evaluations: int
    """Pictures the prior's network looked at; guidance counts twice."""
    calls: int
    own_evaluations: int
    """The same for the method's own network (VSD)."""
    residual_norm: float
    """Root-mean-square of e_A - e_B."""
    replaced: int
    """Values of G that were not finite and became 0."""
    cosine_to_previous: float | None = None
    own_loss: float | None = None

    @property
    def target(self) -> Tensor:
        """x0* = x0 - G: the state this step pulls towards."""
        return self.x0.detach() - self.gradient

    def loss(self, reduction: Reduction = "sum_per_image") -> Tensor:
        """A scalar whose gradient is G (see `attach`)."""
        return attach(self.x0, self.gradient, reduction)


def distill(
    objective: Objective,
    prior: NoisePrior,
    images: Tensor,
    prompts: Mapping[str, Condition],
    generator: torch.Generator,
    progress: Progress | None = None,
    *,
    view_ids: Tensor | None = None,
    cameras: Tensor | None = None,
    combine: Callable[[float], Combination] = Guided,
    previous: Tensor | None = None,
) -> Distilled:
    """The gradient of one step for images [B, 3, H, W] in [0, 1].

    prompts: conditions by role: 'wanted'; 'unwanted' (the negative prompt, reference of guidance); 'empty' (ISM, TSM).
    ``previous``: the last step's gradient, for a cosine. Every random number comes from ``generator``, so equal states
    of it give equal bytes. Raises UserError where a method needs a prompt or a level that is not there.
    """
    x0 = prior.encode(images, generator)
    counted = Counted(prior)
    teacher = Teacher(counted, prompts, generator, progress or Progress(), view_ids, cameras, combine)
    clean = x0.detach()
    with torch.no_grad():
        times = objective.times.sample(teacher.progress, len(clean), counted.schedule, generator)
        a, b = _predictions(objective.method.pair(clean, times, teacher), teacher)
        weight = objective.method.weight(times, teacher).to(clean.device, clean.dtype)
        gradient = weight.reshape(-1, *[1] * (clean.ndim - 1)) * (a - b)
        finite = torch.isfinite(gradient)
        gradient = torch.where(finite, gradient, torch.zeros_like(gradient))
        for transform in objective.transforms:
            gradient = transform(gradient, teacher.progress)
    own_loss = objective.method.learn(clean, teacher) if isinstance(objective.method, LearnsFromRenders) else None
    return Distilled(
        x0,
        gradient,
        a,
        b,
        times,
        counted.evaluations,
        counted.calls,
        teacher.own_evaluations,
        float((a - b).square().mean().sqrt()),
        int((~finite).sum()),
        None if previous is None else _cosine(gradient, previous),
        own_loss,
    )


def attach(x0: Tensor, gradient: Tensor, reduction: Reduction = "sum_per_image") -> Tensor:
    """The loss 0.5 |x0 - stopgrad(x0 - G)|^2, whose gradient with respect to x0 is G times 1, 1/B or 1/numel.

    'sum': G itself (LucidDreamer, Dreamer XL). 'sum_per_image': G / B (threestudio, Consistent3D), so that the number
    of views does not change the step. 'mean': G / numel.
    """
    shares = {"sum": 1, "sum_per_image": len(x0), "mean": x0.numel()}
    if reduction not in shares:
        raise UserError(f"reductions are {', '.join(shares)}, got {reduction!r}")
    return 0.5 * (x0 - (x0 - gradient).detach()).square().sum() / shares[reduction]


def _predictions(pair: Pair, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """Both predictions; what has to be asked for goes into one call."""
    asked = [side for side in (pair.a, pair.b) if isinstance(side, Request)]
    answers = iter(teacher.ask(*asked) if asked else [])
    a, b = (next(answers) if isinstance(side, Request) else side for side in (pair.a, pair.b))
    return a, b


def _cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm() * b.norm())
    return float((a * b).sum()) / size if size > 0 else 0.0
