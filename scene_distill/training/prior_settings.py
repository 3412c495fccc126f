"""How a tiny prior and its judge are trained and measured: settings alone, so that the command line can show them
without loading torch. The only copy of their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scene_distill.data.captioned_shapes_pictures import PictureSet
    from scene_distill.nets.text_unet import TextUNet

LENGTH = 8
"""Telling words that a prompt may have."""


@dataclass(frozen=True)
class PriorTraining:
    """How a tiny prior is trained."""

    size: int = 32
    """Pixels of a picture's side: 32 or 64."""
    patch: int = 2
    """Pixels folded into one cell of the network, per side."""
    pictures: int = 30_000
    """Training pictures."""
    steps: int = 12_000
    """Training steps."""
    batch: int = 64
    """Pictures a step."""
    rate: float = 6e-4
    """Highest learning rate."""
    warmup: int = 300
    """Steps in which the learning rate rises to it."""
    ema: float = 0.999
    """How slowly the average of the weights, which is what is kept, follows them."""
    mixed: bool = True
    """Convolutions in bfloat16."""
    seed: int = 0
    """Seed of pictures, weights and noise."""

    def picture_set(self) -> PictureSet:
        """Its pictures: known pairs only."""
        from scene_distill.data.captioned_shapes_pictures import PictureSet

        return PictureSet("prior", "known", self.pictures, self.size, self.seed)

    def network(self) -> TextUNet:
        """The untrained network, its weights drawn from the seed."""
        import torch

        from scene_distill.core.seeds import key
        from scene_distill.data.captioned_shapes import WORDS
        from scene_distill.nets.text_unet import TextUNet, TextUNetConfig

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(self.seed, "tiny prior", "weights"))
            config = TextUNetConfig(size=self.size, patch=self.patch, words=len(WORDS), length=LENGTH)
            unet = TextUNet(config).to(memory_format=torch.channels_last)
        unet.mixed = self.mixed
        return unet


@dataclass(frozen=True)
class JudgeTraining:
    """How the judge is trained."""

    size: int = 32
    pictures: int = 12_000
    steps: int = 2500
    batch: int = 64
    rate: float = 1e-3
    seed: int = 0

    def picture_set(self) -> PictureSet:
        """Its pictures: all pairs, drawn for it alone."""
        from scene_distill.data.captioned_shapes_pictures import PictureSet

        return PictureSet("judge", "all", self.pictures, self.size, self.seed)


@dataclass(frozen=True)
class PriorEvaluation:
    """How a prior is measured."""

    samples: int = 128
    """Pictures of known, and as many of held-out pairs."""
    guidance: float = 3.0
    """Classifier-free guidance in standard form: 1 is the prompt alone."""
    steps: int = 30
    """DDIM steps."""
    seed: int = 1
    """Seed of captions and noise."""
