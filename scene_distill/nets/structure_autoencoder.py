"""Occupancy of an object as one vector: the structure latent of the small world, and back.

The grid is cut into cells of 4^3 voxels. A perceptron that all cells share packs each into a few numbers; two layers
make one vector of all of them, and the decoder goes the same way back. Objects stand upright in one frame, so this
needs no convolutions: about 10 MFLOP an object. Loss: Dice + cross entropy of voxels + a little KL to N(0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CELL = 4
"""Voxels along a side of a cell."""


@dataclass(frozen=True)
class StructureConfig:
    """Sizes; ``resolution`` is a multiple of `CELL`."""

    resolution: int = 32
    dimensions: int = 64
    packed: int = 8
    hidden: int = 160
    cell_hidden: int = 64

    @property
    def cells(self) -> int:
        """Number of cells."""
        return (self.resolution // CELL) ** 3


class StructureEncoder(nn.Module):
    """Occupancy to the mean and log-variance of its latent."""

    def __init__(self, config: StructureConfig) -> None:
        super().__init__()
        self.config = config
        self.cell = nn.Sequential(nn.Linear(CELL**3, config.cell_hidden), nn.GELU(),
                                  nn.Linear(config.cell_hidden, config.packed), nn.GELU())  # fmt: skip
        self.whole = nn.Sequential(nn.Linear(config.cells * config.packed, config.hidden), nn.GELU(),
                                   nn.Linear(config.hidden, 2 * config.dimensions))  # fmt: skip

    def forward(self, grids: Tensor) -> tuple[Tensor, Tensor]:
        """grids [B, R, R, R] (0 or 1): mean and log-variance [B, Z]."""
        mean, log_variance = self.whole(self.cell(to_cells(grids)).flatten(1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)


class StructureDecoder(nn.Module):
    """A latent to logits of occupancy."""

    def __init__(self, config: StructureConfig) -> None:
        super().__init__()
        self.config = config
        self.whole = nn.Sequential(nn.Linear(config.dimensions, config.hidden), nn.GELU(),
                                   nn.Linear(config.hidden, config.hidden), nn.GELU(),
                                   nn.Linear(config.hidden, config.cells * config.packed))  # fmt: skip
        self.place = nn.Parameter(0.5 * torch.randn(config.cells, config.packed))
        self.cell = nn.Sequential(nn.Linear(2 * config.packed, config.cell_hidden), nn.GELU(),
                                  nn.Linear(config.cell_hidden, CELL**3))  # fmt: skip

    def forward(self, latent: Tensor) -> Tensor:
        """latent [B, Z]: logits [B, R, R, R], above 0 where occupied."""
        packed = self.whole(latent).unflatten(1, (self.config.cells, self.config.packed))
        place = self.place.expand(len(latent), -1, -1)
        return from_cells(self.cell(torch.cat([packed, place], dim=2)))


def to_cells(grids: Tensor) -> Tensor:
    """[B, R, R, R] as [B, cells, 64], z fastest in both."""
    count, side = len(grids), grids.shape[1] // CELL
    parts = grids.reshape(count, side, CELL, side, CELL, side, CELL)
    return parts.permute(0, 1, 3, 5, 2, 4, 6).reshape(count, side**3, CELL**3)


def from_cells(cells: Tensor) -> Tensor:
    """Inverse of `to_cells`."""
    count, side = len(cells), round(cells.shape[1] ** (1 / 3))
    parts = cells.reshape(count, side, side, side, CELL, CELL, CELL)
    return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(count, side * CELL, side * CELL, side * CELL)


def structure_loss(logits: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
    """Dice, 1 - (2 sum p y + 1) / (sum p + sum y + 1), and mean cross entropy of voxels; each [B]."""
    target = grids.to(logits.dtype)
    p, y = logits.sigmoid().flatten(1), target.flatten(1)
    dice = 1 - (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(1)
    return dice, entropy


def kl_to_unit(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) per dimension, mean over dimensions: [B]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(1)


def sampled_latent(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A draw of the posterior from unit noise."""
    return mean + (0.5 * log_variance).exp() * noise
