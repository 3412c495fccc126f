"""How much noise each level holds: abar_t, and the two coordinate systems it joins.

VP (what networks are fed):    x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) n
VE (what this project thinks): z_t = x_t / sqrt(abar_t) = x0 + sigma_t n,   sigma_t = sqrt((1 - abar_t) / abar_t)

In VE, a DDIM step (eta = 0), up or down, is Euler in sigma: z_b = z_a + (sigma_b - sigma_a) eps(z_a).

A *level* is an integer 0 .. n_levels - 1, from clean to noisy. A network's *timestep* is level + steps_offset: Stable
Diffusion's schedulers start at timestep 1, so that its level 0 is timestep 1. Level 0 is almost clean, not clean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.errors import UserError


@dataclass(frozen=True)
class NoiseSchedule:
    """abar of every training timestep, float64 [T], falling in (0, 1); and the offset from level to timestep."""

    abars: Tensor
    steps_offset: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for a table that is no schedule."""
        table = self.abars
        if table.ndim != 1 or table.dtype != torch.float64 or len(table) <= self.steps_offset + 1:
            raise UserError("a noise schedule needs a one-dimensional float64 table longer than its steps_offset + 1")
        if not bool(((table > 0) & (table < 1)).all()) or not bool((table.diff() < 0).all()):
            raise UserError("abar must fall strictly from one timestep to the next and stay between 0 and 1")

    @property
    def n_levels(self) -> int:
        """Levels that can be asked for: 0 .. n_levels - 1."""
        return len(self.abars) - self.steps_offset

    def timestep(self, level: Tensor) -> Tensor:
        """What the network is told: int64 [B] of levels int64 [B]. Raises IndexError outside 0 .. n_levels - 1."""
        if bool((level < 0).any()) or bool((level >= self.n_levels).any()):
            raise IndexError(f"noise levels run from 0 to {self.n_levels - 1}, asked for {level.tolist()}")
        return level + self.steps_offset

    def abar(self, level: Tensor, like: Tensor | None = None) -> Tensor:
        """abar [B] in float64; or, with ``like`` [B, ...], in its dtype and device and shaped to multiply it."""
        values = self.abars[self.timestep(level).to(self.abars.device)]
        return values if like is None else _shaped(values, like)

    def sigma(self, level: Tensor, like: Tensor | None = None) -> Tensor:
        """sigma [B] in float64; or, with ``like`` [B, ...], in its dtype and device and shaped to multiply it."""
        abar = self.abar(level)
        values = torch.sqrt((1 - abar) / abar)
        return values if like is None else _shaped(values, like)

    def level_of_sigma(self, sigma: float) -> int:
        """The level whose sigma is nearest in logarithm."""
        table = torch.log((1 - self.abars) / self.abars) / 2
        nearest = int((table[self.steps_offset :] - math.log(sigma)).abs().argmin())
        return nearest

    def level_of_fraction(self, fraction: float) -> int:
        """The level int(fraction * n_levels), held inside the table: how papers write t_min = 0.02, t_max = 0.98."""
        return min(max(int(fraction * self.n_levels), 0), self.n_levels - 1)


def _shaped(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def from_betas(betas: Tensor, steps_offset: int = 0) -> NoiseSchedule:
    """The schedule of betas [T]: abar_t = prod_{u <= t} (1 - beta_u)."""
    return NoiseSchedule(torch.cumprod(1 - betas.double(), 0), steps_offset)


def scaled_linear(
    n_steps: int = 1000, first: float = 0.00085, last: float = 0.012, steps_offset: int = 0
) -> NoiseSchedule:
    """Stable Diffusion's and SDXL's schedule: betas are squares of a line from sqrt(first) to sqrt(last)."""
    return from_betas(
        torch.linspace(math.sqrt(first), math.sqrt(last), n_steps, dtype=torch.float64) ** 2, steps_offset
    )


def linear(n_steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> NoiseSchedule:
    """DDPM's schedule (Ho et al. 2020): betas on a line."""
    return from_betas(torch.linspace(first, last, n_steps, dtype=torch.float64))


def cosine(n_steps: int = 1000, offset: float = 0.008, largest_beta: float = 0.999) -> NoiseSchedule:
    """Improved DDPM's schedule (Nichol and Dhariwal 2021): abar ~ cos^2((t/T + offset) / (1 + offset) pi/2).

    The last betas are held at ``largest_beta``; without that abar would reach 0 and sigma infinity.
    """
    edges = torch.arange(n_steps + 1, dtype=torch.float64) / n_steps
    curve = torch.cos((edges + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas((1 - curve[1:] / curve[:-1]).clamp(max=largest_beta))
