"""The prior that a run names: loaded, on its device, and cut into parts for the threads there are."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import numpy_generator
from scene_distill.data.captioned_shapes import (
    BACKGROUND,
    COLOR_NAMES,
    PARTS,
    SHAPE_NAMES,
    Shot,
    Toy,
    draw_shot,
)
from scene_distill.data.captioned_shapes_renderer import over
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.priors.captions import words_of
from scene_distill.priors.parts import InParts
from scene_distill.priors.prior import NoisePrior
from scene_distill.priors.renders import RenderMixture, load_renders
from scene_distill.priors.stable_diffusion_files import LatentOptions, load_stable_diffusion
from scene_distill.priors.tiny import PACKAGED, load_tiny

MIXTURE_VIEWS, MIXTURE_OTHERS = 256, 256
"""Pictures of every prompt's toy, and of other toys, in a mixture that is rendered for a run."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_prior(config: TextTo3DConfig, device: torch.device, threads: int = 1) -> NoisePrior:
    """The prior of a config. Raises UserError when it is not there, and says how to get it."""
    precision = _precision(config, device)
    if config.prior == "tiny":
        if config.prior_path is None and not PACKAGED.exists():
            raise UserError(
                "this installation has no weights of the tiny prior; train one with 'scene-distill prior train' and "
                "name its folder with --prior-path, or take another --prior"
            )
        return _in_parts(load_tiny(config.prior_path, device, precision), config, device, threads)
    if config.prior == "mixture":
        return _in_parts(_mixture(config), config, device, threads)
    if config.prior_path is None:
        raise UserError(f"--prior {config.prior} needs --prior-path: a folder written by diffusers' save_pretrained")
    options = LatentOptions(str(device), None if config.prior_precision == "auto" else precision,
                            at_once=config.prior_batch)  # fmt: skip
    return load_stable_diffusion(config.prior_path, config.prior, options)


def _precision(config: TextTo3DConfig, device: torch.device) -> torch.dtype:
    if config.prior_precision != "auto":
        return PRECISIONS[config.prior_precision]
    if device.type == "cuda":
        return torch.float32 if config.prior == "tiny" else torch.float16
    return torch.bfloat16 if has_matrix_units() else torch.float32


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware tiles (AMX)."""
    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(ask is not None and ask())


def cores_of(threads: int) -> int:
    """``threads``, or for 0 all cores that this process may use."""
    return threads or len(os.sched_getaffinity(0))


def _in_parts(prior: NoisePrior, config: TextTo3DConfig, device: torch.device, threads: int) -> InParts:
    """Cut for the cores of a CPU; on a GPU only as its memory asks."""
    if device.type != "cpu":
        return InParts(prior, config.prior_batch)
    return InParts(prior, config.prior_batch, max(threads, 1), config.prior_parts)


def _mixture(config: TextTo3DConfig) -> RenderMixture:
    """Captioned renders as a prior: those of a file, or rendered for the prompts."""
    if config.prior_path is not None:
        return RenderMixture(*load_renders(config.prior_path))
    return toy_mixture(config.prompts, config.image_size, config.seed)


def toy_mixture(prompts: Sequence[str], size: int, seed: int, views: int = MIXTURE_VIEWS,
                others: int = MIXTURE_OTHERS) -> RenderMixture:  # fmt: skip
    """A mixture around pictures of one toy per prompt from all sides, and of other toys, ``size`` pixels square.

    Every prompt's toy keeps its proportions in all its pictures; no other toy's caption has all words of a prompt.
    Raises UserError for a prompt that is no toy.
    """
    toys = list(dict.fromkeys(toy_of(prompt) for prompt in prompts))
    meant = [set(words_of(toy.caption())) for toy in toys]
    shots = [shot for number, toy in enumerate(toys) for shot in _around(toy, views, (seed, "toy", number))]
    more = (draw_shot(seed, "mixture", number, "all") for number in range(4 * others))
    shots += [shot for shot in more if not any(words <= set(words_of(shot.caption)) for words in meant)][:others]
    pictures = np.stack([over(shot.picture(size), np.array(BACKGROUND)) for shot in shots])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).clamp(0, 1)
    return RenderMixture(images, [shot.caption for shot in shots])


def toy_of(prompt: str) -> Toy:
    """The toy that a prompt names: 'a red chair with green legs'."""
    words = words_of(prompt)
    colors = [word for word in words if word in COLOR_NAMES]
    shapes, parts = ([word for word in words if word in known] for known in (SHAPE_NAMES, PARTS))
    left = [word for word in words if word not in (*COLOR_NAMES, *SHAPE_NAMES, *PARTS)]
    if left or len(shapes) != 1 or len(colors) != 1 + len(parts) or len(parts) > 1:
        raise UserError(
            f"no toy is called '{prompt}'; a mixture that is rendered now knows 'a COLOUR OBJECT' and 'a COLOUR OBJECT "
            f"with COLOUR PARTS', objects: {', '.join(SHAPE_NAMES)}; colours: {', '.join(COLOR_NAMES)}"
        )
    return Toy(colors[0], shapes[0], colors[1] if parts else None)


def _around(toy: Toy, views: int, key: tuple[int | str, ...]) -> list[Shot]:
    """Pictures of one toy from evenly spread azimuths; elevations as in the toy world."""
    generator = numpy_generator(*key, "views")
    shots = []
    for number in range(views):
        overhead = number % 10 == 9
        elevation = generator.uniform(62, 85) if overhead else generator.uniform(-5, 50)
        azimuth = -180 + 360 * ((number * 0.6180339887498949) % 1.0)
        distance = generator.uniform(3.0, 3.4)
        shots.append(Shot(toy, float(azimuth), float(elevation), float(distance), (*key, "proportions")))
    return shots
