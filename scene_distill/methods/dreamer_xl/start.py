"""Point clouds that objects begin from. The procedural ones know nothing of the text; Shap-E does, where it is present.

Lengths in radii of the object, z up. Colours are nearly grey: what a prior paints should come from the prior.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.errors import UserError

GREY_SPREAD = 0.05
"""Standard deviation of the first colours around middle grey."""

BOXES = 4


def start_points(kind: str, count: int, radius: float, generator: torch.Generator) -> Tensor:
    """Points [count, 3]: in a ball, on a shell (a little blurred), or in four random boxes within the radius."""
    if kind == "ball":
        return radius * _in_ball(count, generator)
    if kind == "shell":
        directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
        return directions * radius * (1 + 0.03 * torch.randn(count, 1, generator=generator))
    if kind == "boxes":
        centers = 0.5 * radius * _in_ball(BOXES, generator)
        halves = radius * (0.15 + 0.35 * torch.rand(BOXES, 3, generator=generator))
        which = torch.arange(count) % BOXES
        return centers[which] + halves[which] * (2 * torch.rand(count, 3, generator=generator) - 1)
    raise UserError(f"first points are ball, shell, boxes and shap-e, got {kind!r}")


def _in_ball(count: int, generator: torch.Generator) -> Tensor:
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    return directions * torch.rand(count, 1, generator=generator) ** (1 / 3)


def grey_colors(count: int, generator: torch.Generator) -> Tensor:
    """sRGB [count, 3] near middle grey."""
    return (0.5 + GREY_SPREAD * torch.randn(count, 3, generator=generator)).clamp(0, 1)


def shap_e_points(folder: Path, prompt: str, count: int, radius: float, generator: torch.Generator,
                  guidance: float = 15.0, steps: int = 64) -> Tensor:  # fmt: skip
    """Points [count, 3] on the surface of what Shap-E makes of the prompt, scaled into a ball of ``radius``.

    ``folder``: a pipeline that diffusers' save_pretrained has written. Its frame is kept: z up, as its own cameras have
    it; where an object's front is, the prior decides. Raises UserError when diffusers or the model is missing, or
    nothing was made.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(f"there is no Shap-E pipeline in {folder}; name a folder that save_pretrained has written")
    try:
        from diffusers import ShapEPipeline
    except ImportError as error:
        raise UserError(
            "--start shap-e needs diffusers; install it with pip install 'scene-distill[diffusion]'"
        ) from error
    try:
        pipeline: Any = ShapEPipeline.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise UserError(f"{folder} cannot be loaded as Shap-E ({error}); download it again") from error
    pipeline.set_progress_bar_config(disable=True)
    mesh = pipeline(
        prompt, guidance_scale=guidance, num_inference_steps=steps, output_type="mesh", generator=generator
    ).images[0]
    corners = mesh.verts.detach().cpu().float()[mesh.faces.detach().cpu().long()]
    if len(corners) == 0:
        raise UserError(f"Shap-E made nothing of '{prompt}'; use another --seed or a procedural --start")
    return _fitted(_on_surface(corners, count, generator), radius)


def _on_surface(corners: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Uniform points [count, 3] on triangles [F, 3, 3]."""
    a, b, c = corners.unbind(1)
    areas = torch.linalg.cross(b - a, c - a).norm(dim=1)
    chosen = torch.multinomial(areas.clamp(min=1e-12), count, True, generator=generator)
    u, v = torch.rand(2, count, 1, generator=generator)
    u = u.sqrt()
    return (1 - u) * a[chosen] + u * (1 - v) * b[chosen] + u * v * c[chosen]


def _fitted(points: Tensor, radius: float) -> Tensor:
    """Centred and scaled into the ball."""
    middle = (points.amax(0) + points.amin(0)) / 2
    points = points - middle
    return points * (radius / points.norm(dim=1).amax().clamp(min=1e-9))
