"""Small captioned renders as a prior, and configs that train in a second."""

import functools
from dataclasses import replace

import numpy as np
import torch

from scene_distill.data.captioned_shapes import BACKGROUND, Shot, Toy
from scene_distill.data.captioned_shapes_renderer import over
from scene_distill.methods.text_to_3d.registry import find_text_method
from scene_distill.priors.renders import RenderMixture

SIZE = 16
PROMPTS = ("a red mug", "a blue house")


@functools.cache
def captioned_renders() -> tuple[torch.Tensor, list[str]]:
    """Two toys from 24 sides each, [48, 3, 16, 16], and their captions."""
    toys = (Toy("red", "mug"), Toy("blue", "house"))
    shots = [Shot(toy, 15.0 * n, (5.0, 30.0, 70.0)[n % 3], 3.2, (0, toy.shape)) for toy in toys for n in range(24)]
    images = np.stack([over(shot.picture(SIZE), np.array(BACKGROUND)) for shot in shots])
    return torch.from_numpy(images).permute(0, 3, 1, 2).clamp(0, 1), [shot.caption for shot in shots]


def small_prior() -> RenderMixture:
    return RenderMixture(*captioned_renders())


def small_config(method: str, **changes):
    """A config of a method with 16-pixel pictures and few Gaussians."""
    small = {"prior": "mixture", "image_size": SIZE, "iterations": 8, "visits": 4, "start_count": 60,
             "growth_limit": 90, "growth_events": 3, "threads": 1, "views": 3}  # fmt: skip
    return replace(find_text_method(method).default(), **(small | changes))
