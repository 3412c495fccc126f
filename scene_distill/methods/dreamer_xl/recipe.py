"""Dreamer XL wired up: one stage of Gaussians under one objective."""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.core import seeds
from scene_distill.methods.dreamer_xl.config import DreamerXLConfig
from scene_distill.methods.dreamer_xl.gaussians import GaussianObjects
from scene_distill.methods.dreamer_xl.trained import TrainedGaussians
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.methods.text_to_3d.objectives import ObjectiveSetting, objective_maker
from scene_distill.methods.text_to_3d.stages import Stage
from scene_distill.methods.text_to_3d.views import view_range
from scene_distill.objectives.score import Objective
from scene_distill.objectives.score_teacher import Progress
from scene_distill.priors.prior import NoisePrior


def stages(config: TextTo3DConfig, prior: NoisePrior) -> tuple[Stage, ...]:
    """One stage; gradients are summed over views as in the released code."""
    assert isinstance(config, DreamerXLConfig)
    setting = ObjectiveSetting(
        config.objective, config.guidance, config.strength, config.levels, config.level_range, config.interval,
        config.inversion_stride, config.gamma, config.gamma_rule, config.noise, seed=config.seed,
    )  # fmt: skip
    make = objective_maker(setting, prior)
    if config.spikes:
        plain, spikes = make, Spikes(config.spikes, config.spike_size, config.seed)

        def make() -> Objective:
            objective = plain()
            return Objective(objective.method, objective.times, (*objective.transforms, spikes))

    return (Stage("gaussians", 1.0, GaussianObjects(config), make, view_range(config)),)


load = TrainedGaussians.load
"""A trained object from its file."""


class Spikes:
    """A `score_clip.GradientTransform` that multiplies a share of the pixels by ``size``: what the backward pass of a
    large autoencoder does now and then."""

    def __init__(self, share: float, size: float, seed: int) -> None:
        self.share, self.size, self.seed = share, size, seed

    def __call__(self, gradient: Tensor, progress: Progress) -> Tensor:
        """The gradient [B, C, H, W] with spikes, the same ones for a step whoever asks."""
        generator = seeds.torch_generator(self.seed, "spikes", progress.step)
        shape = (len(gradient), 1, *gradient.shape[2:])
        hit = (torch.rand(shape, generator=generator) < self.share).to(gradient.device)
        return torch.where(hit, self.size * gradient, gradient)
