"""A small network that names what a toy picture shows: colour, object, colour of the part, view."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ClassifierConfig:
    """Picture size and how many answers each question has, in the order of `QUESTIONS`."""

    size: int = 32
    answers: tuple[int, ...] = (10, 16, 11, 4)
    widths: tuple[int, ...] = (32, 64, 96)


QUESTIONS = ("color", "shape", "part_color", "view")


class AttributeClassifier(nn.Module):
    """Log-odds per question of pictures [B, 3, H, W] in [0, 1]; other sizes are resampled to its own."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        before = 3
        for width in config.widths:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU(), nn.MaxPool2d(2)]
            before = width
        self.trunk = nn.Sequential(*layers)
        cells = before * (config.size // 2 ** len(config.widths)) ** 2
        self.narrow = nn.Linear(cells, 128)
        self.heads = nn.ModuleList([nn.Linear(128, count) for count in config.answers])

    def features(self, images: Tensor) -> Tensor:
        """What it has seen, [B, 128]; for distances between sets of pictures."""
        size = self.config.size
        if images.shape[-1] != size or images.shape[-2] != size:
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return functional.relu(self.narrow(self.trunk(2 * images - 1).flatten(1)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B, answers] by question."""
        features = self.features(images)
        return {name: head(features) for name, head in zip(QUESTIONS, self.heads, strict=True)}


@torch.no_grad()
def retrieved(logits: dict[str, Tensor], colors: Tensor, shapes: Tensor) -> Tensor:
    """Whether the caption 'a COLOR SHAPE' is the first of all pairs for each picture: bool [B] (R-precision at 1).

    A pair's score is the product of the two probabilities, so the first pair holds the two best answers.
    """
    return (logits["color"].argmax(1) == colors) & (logits["shape"].argmax(1) == shapes)
