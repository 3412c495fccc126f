"""Fit baked splats to the renders of the scene they were baked from.

Teacher:   renders of the neural scene, from any camera; no photograph is needed.
Student:   the baked splats, all parameters.
Gradient:  through the rasterizer into the splats; the teacher's renders are constants.
Cost:      two renders and one backward pass a step; Adam only on the splats that the step's camera sees.

L = 0.8 L1 + 0.2 (1 - SSIM) of the two renders (3DGS eq. 7). A bake averages over views what only a picture can decide
(which of two overlapping splats a pixel needs); a few hundred steps recover most of what that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from scene_distill.core import seeds
from scene_distill.core.cameras import Camera
from scene_distill.objectives.photometric import reconstruction
from scene_distill.renderers.splat import render
from scene_distill.representations.splats import Splats
from scene_distill.training.optimisers import AdamMoments, log_linear

_DSSIM = 0.2


@dataclass(frozen=True)
class RefineSettings:
    """Steps, one camera each, and Adam's learning rates, which fall log-linearly to ``final_fraction`` of themselves.

    ``means_rate`` is in units of the median splat size; the others are 3DGS's own, as is the factor of 20 between the
    constant and the other colour coefficients.
    """

    steps: int = 300
    seed: int = 0
    final_fraction: float = 0.1
    means_rate: float = 0.02
    log_scales_rate: float = 5e-3
    quats_rate: float = 1e-3
    opacity_logits_rate: float = 2.5e-2
    sh_rate: float = 2.5e-3
    sh_rest_fraction: float = 0.05


def refine_bake(
    splats: Splats,
    cameras: Sequence[Camera],
    render_teacher: Callable[[Camera], Tensor],
    settings: RefineSettings = RefineSettings(),
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Splats:
    """Splats of the same number that look more like ``render_teacher(camera)`` [H, W, 3] from the given cameras.

    Every camera is used once before any is used again, in an order that depends on the seed alone. ``report`` gets
    the step, counted from 1, and its loss.
    """
    leaves = _leaves(splats)
    moments = {name: AdamMoments.zeros_like(leaf) for name, leaf in leaves.items()}
    spacing = float(splats.log_scales.mean(1).median().exp())
    order: list[int] = []
    for step in range(1, settings.steps + 1):
        if not order:
            generator = seeds.torch_generator(settings.seed, "refine", step)
            order = torch.randperm(len(cameras), generator=generator).tolist()
        camera = cameras[order.pop()]
        with torch.no_grad():
            teacher = render_teacher(camera)
        rendering = render(_splats(leaves), camera)
        loss, _, _ = reconstruction(rendering.image, teacher, _DSSIM)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        seen = (rendering.extents > 0).any(1).to(torch.uint8)
        fall = log_linear((1.0, settings.final_fraction), step / settings.steps)
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
            with torch.no_grad():
                moments[name].step(leaf, gradient.contiguous(), fall * _rate(name, settings, spacing), step, seen)
        report(step, loss.item())
    return _splats({name: leaf.detach() for name, leaf in leaves.items()})


def _leaves(splats: Splats) -> dict[str, Tensor]:
    """Trainable copies of the parameters; the constant colour apart from the rest, which learns slower."""
    tensors = {field.name: getattr(splats, field.name) for field in fields(splats) if field.name != "sh"}
    tensors |= {"sh_constant": splats.sh[:, :1], "sh_rest": splats.sh[:, 1:]}
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items() if tensor.numel()}
    return {name: tensor.requires_grad_(True) for name, tensor in copies.items()}


def _splats(leaves: dict[str, Tensor]) -> Splats:
    sh = torch.cat([leaves[name] for name in ("sh_constant", "sh_rest") if name in leaves], dim=1)
    return Splats(**{name: leaf for name, leaf in leaves.items() if not name.startswith("sh_")}, sh=sh)


def _rate(name: str, settings: RefineSettings, spacing: float) -> float:
    if name == "means":
        return settings.means_rate * spacing
    if name == "sh_constant":
        return settings.sh_rate
    if name == "sh_rest":
        return settings.sh_rate * settings.sh_rest_fraction
    return getattr(settings, f"{name}_rate")
