"""`scene-distill generate --model DIR`, where DIR holds TRELLIS models: a picture or a text becomes files."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scene_distill.core.console import progress, say
from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.cli.generate import Generate
    from scene_distill.priors.trellis_files import FlowSettings

DECODED = {"glb": "mesh", "ply": "gaussians"}
"""What latents become for a format."""


def generate_from_trellis(options: Generate) -> list[Path]:
    """All stages of a folder of TRELLIS models, on a GPU where there is one; the files that were written."""
    import torch

    from scene_distill.cli.generate import write_object
    from scene_distill.priors.trellis import load_trellis

    assert options.model is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prior = load_trellis(options.model, options.models_root, options.conditioner, device)
    prior = prior.with_settings(structure=_changed(prior.structure, options), latent=_changed(prior.latent, options))
    described = _descriptions(options, prior.files.conditioned_by)
    steps = prior.structure.steps.steps + prior.latent.steps.steps
    started = time.perf_counter()
    with progress("flows", steps) as meter:

        def watch(stage: str, step: int, of: int) -> None:
            before = prior.structure.steps.steps if stage == "latent" else 0
            meter.update(before + step, f"{stage} {step + 1}/{of}")

        formats = [DECODED[name] for name in options.format]
        made = prior.with_settings(watch=watch).generate(described, formats, options.seed, options.count)
    say(f"{steps} steps of two flows, and decoding: {time.perf_counter() - started:.1f} s")
    paths = []
    for row in range(options.count):
        mesh = made["mesh"][row].mesh() if "mesh" in made else None
        splats = made["gaussians"][row] if "gaussians" in made else None
        paths += write_object(mesh, splats, row, options)
    return paths


def _changed(settings: FlowSettings, options: Generate) -> FlowSettings:
    """The folder's settings with the steps, sampler and guidance that were asked for."""
    from scene_distill.cli.generate import check_student

    steps = settings.steps
    if options.steps is not None:
        steps = replace(steps, steps=options.steps)
    if options.sampler != "auto":
        steps = replace(steps, sampler=options.sampler)
    weight = settings.weight if options.guidance is None else options.guidance
    if settings.phases:
        check_student(settings.phases, settings.guided, steps.steps, weight)
    return replace(settings, steps=steps, weight=weight)


def _descriptions(options: Generate, conditioned_by: str) -> list[Any]:
    """What the folder's conditioner takes: pictures, or the prompt."""
    from scene_distill.priors.trellis_conditions import read_picture

    if conditioned_by == "text":
        if options.image or not options.prompt:
            raise UserError(f"the models of {options.model} are conditioned on text; give --prompt and no --image")
        return [options.prompt]
    if options.prompt or not options.image:
        raise UserError(f"the models of {options.model} are conditioned on pictures; give --image and no --prompt")
    return [read_picture(path) for path in options.image]
