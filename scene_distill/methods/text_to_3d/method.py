"""Text to 3D on the runtime of units: every prompt's object is a unit, objects share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch

from scene_distill.blocks.runtime import Shared
from scene_distill.blocks.schedule import Round, Visit, make_schedule
from scene_distill.blocks.store import State
from scene_distill.core import seeds
from scene_distill.core.errors import UserError
from scene_distill.methods.splats.method import NothingShared
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.methods.text_to_3d.representation import TrainedObject
from scene_distill.methods.text_to_3d.stages import Stage
from scene_distill.methods.text_to_3d.training import ObjectTraining, Subject, object_state, subject_state
from scene_distill.methods.text_to_3d.view_prompts import describe_views
from scene_distill.priors.guidance import Guided
from scene_distill.priors.prior import NoisePrior


class Recipe(Protocol):
    """What a method adds to the frame: ``stages(config, prior)`` in its module ``recipe``."""

    def __call__(self, config: TextTo3DConfig, prior: NoisePrior) -> tuple[Stage, ...]:
        """The stages of a config."""
        ...


@dataclass
class TextTo3D:
    """The method as the runtime sees it (`blocks.runtime.Method`)."""

    config: TextTo3DConfig
    prompts: tuple[str, ...]
    prior: NoisePrior
    stages: tuple[Stage, ...]
    device: torch.device

    def __post_init__(self) -> None:
        """Ask the prior about every prompt, so that one it cannot know is refused before anything is trained."""
        config = self.config
        if not self.prompts:
            raise UserError('there is no prompt; say what to make, for example "a red chair"')
        self.shared: Shared = NothingShared()
        self.rounds: tuple[Round, ...] = make_schedule(
            len(self.prompts), config.lanes, config.iterations, config.visits, config.seed
        )
        self.described = [
            describe_views(self.prior, prompt, config.negative, config.view_words) for prompt in self.prompts
        ]

    def subject(self, unit: int) -> Subject:
        """What an object is given."""
        combine = partial(Guided, rescale=self.config.guidance_rescale)
        return Subject(unit, self.prompts[unit], self.described[unit], self.prior, self.stages, self.device, combine)

    def first_state(self, unit: int) -> State:
        """The state of the first stage's beginning."""
        generator = seeds.torch_generator(self.config.seed, "start", unit, 0)
        held = self.stages[0].representation.first_state(self.prompts[unit], generator)
        return subject_state(0, held, {}, 0)

    def open(self, unit: int, state: State, visit: Visit, round_: Round) -> ObjectTraining:
        """An object for one visit."""
        return ObjectTraining(self.config, self.subject(unit), dict(state))

    def trained(self, state: State) -> TrainedObject:
        """The object of a state, on the CPU."""
        number, held = object_state(state)
        return self.stages[number].representation.trained({name: tensor.cpu() for name, tensor in held.items()})


def training_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bound(config: TextTo3DConfig, prompts: Sequence[str], prior: NoisePrior, recipe: Recipe,
          device: torch.device | None = None) -> TextTo3D:  # fmt: skip
    """The method for some prompts."""
    config = replace(config, prompts=tuple(prompts))
    return TextTo3D(config, config.prompts, prior, recipe(config, prior), device or training_device())
