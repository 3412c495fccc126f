"""The render mixture: a mixture of Gaussians around captioned pictures, with the exact score and a known truth.

Every picture is one component of `mixture.MixturePrior`; a prompt gives equal weight to the pictures whose captions
hold its words, the empty prompt to all. Nothing is trained. It is a memorising prior: its samples are its pictures with
a little noise, and a composition without a picture does not exist for it. That is its use: whatever a method makes of a
prompt can be compared with the pictures the prior meant.

With K pictures of D values an evaluation costs about 4 K D floating-point operations: 25 M for 2000 of 32 x 32 x 3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.priors.captions import CaptionIndex
from scene_distill.priors.mixture import MixturePrior
from scene_distill.priors.pixels import PixelCodec
from scene_distill.priors.prior import Condition, require_prompts
from scene_distill.priors.schedules import NoiseSchedule, cosine


class RenderMixture:
    """A `prior.NoisePrior` around ``images`` [K, 3, H, W] in [0, 1] and their K captions.

    ``std``: spread of every component in x0 units (x0 is 2 image - 1). ``partly``: whether a prompt whose words no
    caption holds together takes the captions that hold the most of them (otherwise it is refused).
    """

    def __init__(
        self,
        images: Tensor,
        captions: Sequence[str],
        std: float = 0.1,
        schedule: NoiseSchedule | None = None,
        partly: bool = False,
    ) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or len(images) != len(captions) or len(images) == 0:
            raise UserError(f"a render mixture needs images [K, 3, H, W] and K captions, got {tuple(images.shape)}")
        if not bool(torch.isfinite(images).all()) or float(images.min()) < 0 or float(images.max()) > 1:
            raise UserError("the images of a render mixture must lie between 0 and 1")
        self.captions = tuple(captions)
        self.codec = PixelCodec(*images.shape[2:])
        self.index = CaptionIndex(captions)
        self.partly = partly
        self.mixture = MixturePrior(self.codec.encode(images), {}, std, schedule or cosine())

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise at every level."""
        return self.mixture.schedule

    @property
    def x0_shape(self) -> tuple[int, ...]:
        """(3, H, W)."""
        return self.codec.shape

    def describe(self, prompts: Sequence[str]) -> Condition:
        """Weights [B, K] over the pictures; UserError for a prompt it has no picture of."""
        require_prompts(prompts)
        weights = torch.zeros(len(prompts), len(self.captions))
        for row, prompt in enumerate(prompts):
            chosen = self.index.matching(prompt, self.partly)
            weights[row, chosen] = 1.0 / len(chosen)
        return Condition(pooled=weights)

    def eps(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The exact noise of the noised pictures."""
        return self.mixture.eps(z, level, condition)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images in [0, 1] as x0 in [-1, 1], with gradient."""
        return self.codec.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """x0 as images in [0, 1]."""
        return self.codec.decode(x0)

    def nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """For each image [B, 3, H', W']: the most similar picture's number [B], and its root-mean-square difference."""
        own = self.mixture.centres.flatten(1)
        distance = torch.cdist(self.encode(images).detach().to(own).flatten(1), own)
        least, number = distance.min(1)
        return number, least / (2 * own.shape[1] ** 0.5)

    def truth(self, images: Tensor, prompt: str) -> Tensor:
        """Whether each image's most similar picture is one that the prompt means: bool [B]."""
        return torch.isin(self.nearest(images)[0], self.index.matching(prompt, self.partly))


def save_renders(path: Path, images: Tensor, captions: Sequence[str]) -> None:
    """Write images [K, 3, H, W] in [0, 1] (8 bits per value) and captions to one .safetensors file."""
    from safetensors.torch import save_file

    stored = {"images": (images * 255).round().to(torch.uint8).contiguous()}
    header = {"captions": json.dumps(list(captions))}
    write_atomically(path, lambda temporary: save_file(stored, temporary, header))


def load_renders(path: Path) -> tuple[Tensor, list[str]]:
    """Images [K, 3, H, W] in [0, 1] and captions of a file of `save_renders`; UserError if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            captions = json.loads((file.metadata() or {})["captions"])
            images = file.get_tensor("images")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no captioned renders ({error}); write one with save_renders") from error
    sound = images.dtype == torch.uint8 and images.ndim == 4 and isinstance(captions, list)
    if not sound or len(captions) != len(images) or not all(isinstance(c, str) for c in captions):
        raise UserError(f"{path} holds no captioned renders; images must be uint8 [K, 3, H, W] with K captions")
    return images.float() / 255, captions
