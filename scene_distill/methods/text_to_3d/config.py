"""The settings that every text-to-3D method shares: one flat frozen dataclass, extended by each method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from scene_distill.core.errors import UserError

PriorName = Literal["tiny", "mixture", "sd", "sdxl"]
ObjectiveName = Literal["sds", "sjc", "csd", "vsd", "ism", "tsm", "cds", "sdi"]
Levels = Literal["published", "uniform", "annealed"]
NoiseName = Literal["published", "fresh", "shared", "per-view"]


@dataclass(frozen=True)
class TextTo3DConfig:
    """An object from words: renders of it are moved towards what a text-to-picture prior expects to see.

    Angles are in degrees, lengths in radii of the object, schedules in fractions of ``iterations``.
    """

    prompts: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """What to make: one object each."""
    output_dir: Path | None = None
    """Run folder. Default: outputs/<prompt>-<method>."""

    prior: PriorName = "tiny"
    """Teacher: the tiny prior trained in this project, an exact mixture around captioned renders, Stable Diffusion, or
    SDXL."""
    prior_path: Path | None = None
    """File or folder of the prior. tiny: prior.safetensors (default: the packaged one); mixture: captioned renders
    (default: rendered now, of each prompt); sd, sdxl: a folder of diffusers or the name of a model in the cache."""
    prior_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers of the prior's network. auto: bfloat16 where the CPU has matrix units for it, float16 on a GPU."""
    prior_batch: int = 16
    """Most pictures that pass the prior's network together."""
    prior_parts: int = 2
    """Parts that pictures are cut into for the cores of a CPU. Results depend on it by rounding, not on the cores."""
    negative: str = ""
    """Negative prompt: the reference of guidance. Empty: the empty prompt."""

    guidance_rescale: float = 0.0
    """Share by which guided predictions are brought back to the spread of the unguided ones (0 to 1), against
    saturation."""

    iterations: int = 600
    """Steps of an object. Every schedule is a fraction of it."""
    views: int = 4
    """Views in a step."""
    image_size: int = 64
    """Pixels of a view's side; the prior resamples to its own."""
    lanes: int = 1
    """Prompts trained side by side (L); any number from 1. Results do not depend on it."""
    visits: int = 10
    """Stays of an object on a lane; each ends with a commit."""
    seed: int = 0
    """Seed of every random number of the run."""

    view_words: Literal["interpolated", "nearest", "none"] = "nearest"
    """How 'front view', 'side view', ... are added to the prompt: the nearest word, embeddings interpolated by angle
    (Dreamer XL, LucidDreamer), or not at all."""
    perp_neg: float = 0.0
    """Strength with which guidance is pushed away from other views than the wanted one (Perp-Neg; LucidDreamer: 2)."""
    distance: tuple[float, float] = (3.0, 3.4)
    """Distance of the cameras."""
    elevation: tuple[float, float] = (-5.0, 50.0)
    """Elevation above the horizon."""
    field_of_view: tuple[float, float] = (40.0, 40.0)
    """Field of view, one draw per step."""
    overhead: float = 0.1
    """Share of views from above (62 to 85 degrees)."""
    quarters: bool = True
    """Views of a step share the circle evenly instead of being drawn one by one."""
    zoom_every: float = 0.0
    """Fraction of the steps after which cameras move nearer and angles widen, again and again (Dreamer XL: 0.2)."""
    camera_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Standard deviations of the cameras' centre, target and up vector (Dreamer XL: 0.0144, 0.05, 0.01)."""
    background: Literal["auto", "plain", "greys", "random"] = "auto"
    """Behind the object while it is trained: the toy world's own grey; now and then another grey, as the tiny prior has
    seen, so that nothing of the background's colour can hide before it; or white, black and random colours (Dreamer
    XL). auto: greys for the tiny prior, plain for the mixture, whose pictures are, random for others."""
    flip: float = 0.0
    """Share of steps whose views are shown mirrored (Dreamer XL: 0.5)."""

    workers: int = 1
    """Processes on this machine that share the lanes (N). Results do not depend on it."""
    worker_timeout: float = 600.0
    """Seconds that a worker waits for another before it gives up."""
    threads: int = 0
    """CPU threads; 0 takes all, shared among the workers. Results do not depend on it."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Continue the run in the run folder from its last commit."""

    @property
    def behind(self) -> Literal["plain", "greys", "random"]:
        """The background, settled."""
        if self.background != "auto":
            return self.background
        return {"tiny": "greys", "mixture": "plain"}.get(self.prior, "random")  # type: ignore[return-value]

    def __post_init__(self) -> None:
        """Raise UserError for numbers that no run can have."""
        for name in ("iterations", "views", "image_size", "lanes", "visits", "prior_batch", "prior_parts", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        for name in ("distance", "elevation", "field_of_view"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"--{name.replace('_', '-')} goes from {low} to {high}; give the smaller number first")
        if self.perp_neg and self.guidance_rescale:
            raise UserError("--perp-neg and --guidance-rescale exclude each other; choose one")
        if self.distance[0] <= 0 or not 0 < self.field_of_view[0] <= self.field_of_view[1] < 180:
            raise UserError("cameras need a --distance above 0 and a --field-of-view between 0 and 180 degrees")
