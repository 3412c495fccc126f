"""A text-to-3D method as the loop sees it: stages, each with a representation, an objective, and views.

Dreamer XL has one stage. Consistent3D has two: a radiance field, then a mesh that begins from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scene_distill.core.errors import UserError
from scene_distill.methods.text_to_3d.representation import Representation
from scene_distill.methods.text_to_3d.views import ViewRange
from scene_distill.objectives.score import Objective, Reduction
from scene_distill.objectives.score_teacher import Progress


@dataclass(frozen=True)
class Stage:
    """``share`` of the iterations spent in it. ``objective`` makes a fresh objective for every object: VSD's holds a
    network that learns, which is the object's own."""

    name: str
    share: float
    representation: Representation
    objective: Callable[[], Objective]
    views: ViewRange
    reduction: Reduction = "sum"


@dataclass(frozen=True)
class Place:
    """A step inside its stage."""

    number: int
    stage: Stage
    progress: Progress
    """Counts the stage's own steps."""


def place_of(stages: tuple[Stage, ...], step: int, iterations: int) -> Place:
    """The stage that a step of ``iterations`` belongs to; the step after the last one belongs to the last stage."""
    bounds = stage_bounds(stages, iterations)
    number = next((i for i in range(len(stages)) if step < bounds[i + 1]), len(stages) - 1)
    first, last = bounds[number], bounds[number + 1]
    return Place(number, stages[number], Progress(step - first, max(last - first, 1)))


def stage_bounds(stages: tuple[Stage, ...], iterations: int) -> list[int]:
    """First step of every stage, and ``iterations``."""
    total = sum(stage.share for stage in stages)
    if not stages or total <= 0 or min(stage.share for stage in stages) < 0:
        raise UserError("a text-to-3D method needs stages with shares above 0")
    bounds, so_far = [0], 0.0
    for stage in stages:
        so_far += stage.share
        bounds.append(round(iterations * so_far / total))
    return bounds
