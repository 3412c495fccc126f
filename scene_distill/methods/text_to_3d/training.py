"""One object in training: draw views, ask the prior, push the gradient back, step the object.

Every random number of a step comes from a generator keyed by (seed, object, step), so a step does not depend on which
process makes it, nor on when training was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.core import seeds
from scene_distill.core.stages import Stage as Timed
from scene_distill.methods.text_to_3d.backgrounds import draw_backgrounds
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.methods.text_to_3d.representation import OpenObject
from scene_distill.methods.text_to_3d.stages import Place, Stage, place_of
from scene_distill.methods.text_to_3d.view_prompts import ViewPrompts, perp_neg
from scene_distill.methods.text_to_3d.views import draw_views
from scene_distill.objectives.score import Distilled, Objective, distill
from scene_distill.objectives.score_render_memory import KeepsState
from scene_distill.priors.guidance import Combination, Guided
from scene_distill.priors.prior import NoisePrior

OWN, HELD = "objective.", "object."
"""Prefixes of what an objective keeps between steps (VSD's model of the renders), and of the object's own state."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What an object is given and never changes: its number, prompt conditions, prior, stages and device."""

    unit: int
    prompt: str
    prompts: ViewPrompts
    prior: NoisePrior
    stages: tuple[Stage, ...]
    device: torch.device
    combine: Callable[[float], Combination] = Guided


class ObjectTraining:
    """An object that is open for a visit (`blocks.runtime.Unit`)."""

    def __init__(self, config: TextTo3DConfig, subject: Subject, state: State) -> None:
        self.config, self.subject = config, subject
        self.number = int(state["stage"])
        self.evaluations = int(state["evaluations"])
        self._previous: Tensor | None = None
        self.objective = subject.stages[self.number].objective()
        restore_own(self.objective, _under(OWN, state))
        self.object = self._opened(_under(HELD, state))

    def step(self, step: int) -> tuple[None, dict[str, float]]:
        """One batch of views; objects share nothing, so there are no gradients to return."""
        place = place_of(self.subject.stages, step, self.config.iterations)
        if place.number != self.number:
            self._enter(place)
        generator = seeds.torch_generator(self.config.seed, "text to 3d", self.subject.unit, step)
        log, total = self._look(place, generator)
        with Timed("backward"):
            total.backward()
        log |= self.object.step(place.progress, generator)
        return None, log

    def close(self) -> tuple[State, dict[str, float]]:
        """The object's state; there is no scoreboard."""
        return subject_state(self.number, self.object.state(), own_state(self.objective), self.evaluations), {}

    def _look(self, place: Place, generator: torch.Generator) -> tuple[dict[str, float], Tensor]:
        """Draw a batch and ask the prior about it: figures for the log, and the loss to go back from."""
        config, subject, stage = self.config, self.subject, place.stage
        batch = draw_views(stage.views, place.progress, generator)
        behind = draw_backgrounds(config.behind, len(batch.cameras), generator).to(subject.device)
        views = self.object.render(batch.cameras, behind, place.progress, generator)
        lesson = views.lesson
        if float(torch.rand(1, generator=generator)) < config.flip:
            lesson = lesson.flip(-1)
        roles, combine = subject.prompts.roles(batch.azimuth, batch.elevation), subject.combine
        if config.perp_neg:
            negative, combine = perp_neg(subject.prompts, batch.azimuth, config.perp_neg)
            roles |= negative
        with Timed("prior"):
            found = distill(
                self.objective, subject.prior, lesson, roles, generator, place.progress, view_ids=batch.ids,
                cameras=batch.matrices.to(subject.device), combine=combine, previous=self._previous,
            )  # fmt: skip
        self._previous = found.gradient
        self.evaluations += found.evaluations + found.own_evaluations
        losses = self.object.losses(views, place.progress)
        total = found.loss(stage.reduction)
        for loss in losses.values():
            total = total + loss
        log = {"alpha": float(views.alpha.detach().mean())} | figures_of(found)
        return log | {name: float(loss.detach()) for name, loss in losses.items()}, total

    def _enter(self, place: Place) -> None:
        """Begin the next stage from the state of the last."""
        generator = seeds.torch_generator(self.config.seed, "start", self.subject.unit, place.number)
        before = self.object.state()
        self.number, self._previous = place.number, None
        self.objective = place.stage.objective()
        first = place.stage.representation.first_state(self.subject.prompt, generator, before)
        self.object = self._opened(first)

    def _opened(self, state: State) -> OpenObject:
        placed = {name: tensor.to(self.subject.device) for name, tensor in state.items()}
        return self.subject.stages[self.number].representation.open(placed)


def figures_of(found: Distilled) -> dict[str, float]:
    """What a step's gradient tells."""
    figures = {
        "gradient": float(found.gradient.square().mean().sqrt()),
        "residual": found.residual_norm,
        "level": float(found.times.t.double().mean()),
        "evaluations": float(found.evaluations + found.own_evaluations),
    }
    optional = {"cosine": found.cosine_to_previous, "own loss": found.own_loss}
    figures |= {name: value for name, value in optional.items() if value is not None}
    return figures | ({"not finite": float(found.replaced)} if found.replaced else {})


def subject_state(stage: int, held: State, own: State, evaluations: int) -> State:
    """Everything of an object between visits as one flat dict."""
    state: State = {"stage": torch.tensor(stage), "evaluations": torch.tensor(evaluations)}
    state |= {f"{HELD}{name}": tensor for name, tensor in held.items()}
    return state | {f"{OWN}{name}": tensor for name, tensor in own.items()}


def object_state(state: State) -> tuple[int, State]:
    """The stage of a state of `subject_state`, and the object's own part."""
    return int(state["stage"]), _under(HELD, state)


def _under(prefix: str, state: State) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def own_state(objective: Objective) -> State:
    """What an objective's own model keeps (VSD); empty for all others."""
    model = getattr(objective.method, "renders", None)
    return model.state() if isinstance(model, KeepsState) else {}


def restore_own(objective: Objective, state: State) -> None:
    """Give an objective's own model back what `own_state` took; nothing where nothing was kept."""
    model = getattr(objective.method, "renders", None)
    if state and isinstance(model, KeepsState):
        model.restore(state)
