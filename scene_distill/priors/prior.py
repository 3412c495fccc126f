"""The protocol that every diffusion prior speaks, so that every objective can learn from every prior.

A prior turns (noisy state, noise level, condition) into a noise prediction. States are VE (`schedules`): z = x0 + sigma
n. Its denoiser is D = z - sigma eps, the score of the noised density is -eps / sigma. Whether a network predicts noise,
velocity or the clean picture, is fed VP states, runs in bf16 or lives in a latent space stays inside the prior.

A new prior needs a schedule, the shape of x0, `describe`, `eps`, `encode` and `decode`; a network gets most of it from
`network.NetworkPrior`. Counting and the ban on gradients are in `Counted`, which every objective wraps around the prior
it is given: a prior cannot forget to count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.priors.schedules import NoiseSchedule


@dataclass(frozen=True)
class Condition:
    """What a prediction is conditioned on, one row per picture; objectives never look inside.

    tokens [B, L, D] (token embeddings), pooled [B, D] (one vector), extra: more tensors with B rows, such as SDXL's
    time_ids. All floating point, so that two conditions can be mixed (view prompts are interpolated by angle).
    """

    tokens: Tensor | None = None
    pooled: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        named = {"tokens": self.tokens, "pooled": self.pooled, **{f"extra/{k}": v for k, v in self.extra.items()}}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def rows(self) -> int:
        """Number of pictures that are described."""
        counts = {len(value) for value in self.parts.values()}
        if len(counts) != 1:
            raise ValueError(f"a condition needs tensors with equally many rows, got {sorted(counts)}")
        return counts.pop()

    def repeated(self, rows: int) -> Condition:
        """One row for all ``rows`` pictures; itself if it has that many already."""
        if self.rows == rows:
            return self
        if self.rows != 1:
            raise ValueError(f"a condition of {self.rows} rows cannot describe {rows} pictures")
        return _from_parts({name: value.expand(rows, *value.shape[1:]) for name, value in self.parts.items()})

    def select(self, index: Tensor) -> Condition:
        """The rows ``index`` int64 [N]."""
        return _from_parts({name: value[index.to(value.device)] for name, value in self.parts.items()})

    def mixed(self, other: Condition, weight: Tensor | float) -> Condition:
        """(1 - w) self + w other, w a number or [B]: how view prompts are interpolated (tokens and pooled alike)."""
        mine, theirs = self.parts, other.parts
        if mine.keys() != theirs.keys():
            raise ValueError(f"cannot mix conditions with {sorted(mine)} and {sorted(theirs)}")
        return _from_parts({name: _lerp(mine[name], theirs[name], weight) for name in mine})


def _lerp(a: Tensor, b: Tensor, weight: Tensor | float) -> Tensor:
    w = torch.as_tensor(weight, dtype=a.dtype, device=a.device)
    w = w.reshape(-1, *[1] * (a.ndim - 1)) if w.ndim else w
    return a * (1 - w) + b * w


def _from_parts(parts: Mapping[str, Tensor]) -> Condition:
    extra = {name.removeprefix("extra/"): value for name, value in parts.items() if name.startswith("extra/")}
    return Condition(parts.get("tokens"), parts.get("pooled"), extra)


def joined(conditions: Sequence[Condition]) -> Condition:
    """Rows of all conditions below each other, in the order given: one batch for one call of the network."""
    names = {tuple(condition.parts) for condition in conditions}
    if len(names) != 1:
        raise ValueError(f"conditions of one batch must hold the same tensors, got {sorted(names)}")
    return _from_parts({name: torch.cat([c.parts[name] for c in conditions]) for name in names.pop()})


@runtime_checkable
class NoisePrior(Protocol):
    """A diffusion model as a teacher. Batches are [B, *x0_shape]; levels int64 [B]; images [B, 3, H, W] in [0, 1]."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise at every level."""
        ...

    @property
    def x0_shape(self) -> tuple[int, ...]:
        """Shape of one clean state without the batch axis: (3, H, W) for a pixel prior, (4, h, w) for a latent one."""
        ...

    def describe(self, prompts: Sequence[str]) -> Condition:
        """The condition of prompts, one row each; '' is the empty prompt, that is, no condition at all.

        Raises UserError if the prior cannot know a prompt.
        """
        ...

    def eps(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The predicted noise, shaped and typed as z (VE); no guidance, no gradient, no side effect."""
        ...

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x0 of images, with gradient to them. Sizes that differ from the prior's are resampled.

        A generator makes latent priors sample their posterior; without one they take its mean.
        """
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Images of x0, clamped to [0, 1]."""
        ...


class Counted:
    """A prior that counts what it is asked: ``evaluations`` (pictures seen by the network) and ``calls`` (batches).

    Guidance evaluates the network on two conditions, hence two evaluations per picture. Also checks shapes and keeps
    gradients out.
    """

    def __init__(self, prior: NoisePrior) -> None:
        self.prior = prior
        self.evaluations = 0
        self.calls = 0

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise at every level."""
        return self.prior.schedule

    @property
    def x0_shape(self) -> tuple[int, ...]:
        """Shape of one clean state."""
        return self.prior.x0_shape

    def describe(self, prompts: Sequence[str]) -> Condition:
        """The condition of prompts, one row each."""
        return self.prior.describe(prompts)

    def eps(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The predicted noise, counted."""
        if tuple(z.shape[1:]) != tuple(self.x0_shape) or len(level) != len(z) or condition.rows != len(z):
            raise ValueError(
                f"states {tuple(z.shape)}, {len(level)} levels and {condition.rows} conditions do not fit a prior on "
                f"{tuple(self.x0_shape)}"
            )
        self.evaluations += len(z)
        self.calls += 1
        with torch.no_grad():
            return self.prior.eps(z.detach(), level, condition)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x0 of images, with gradient to them."""
        return self.prior.encode(images, generator)

    def decode(self, x0: Tensor) -> Tensor:
        """Images of x0."""
        return self.prior.decode(x0)


def levels_of(level: int, z: Tensor) -> Tensor:
    """The same level for every row of z: int64 [B] on its device."""
    return torch.full((len(z),), level, dtype=torch.int64, device=z.device)


def require_prompts(prompts: Sequence[str]) -> None:
    """Raise UserError unless prompts is a non-empty list of strings (a bare string is a common slip)."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError('prompts must be a non-empty list of strings, for example ["a red chair"]')
