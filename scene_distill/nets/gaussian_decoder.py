"""The decoder that all anchors of all blocks share: feature and viewing direction in, ten Gaussians out.

Three two-layer perceptrons 35 -> 32 -> {10 opacities, 10 x 7 sizes and rotations, 10 x 3 colours}, 7,086 parameters
(Momentum-GS, supplement; spec momentum_gs.md, section 1). The arithmetic is `renderers.anchors.decode`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core import seeds
from scene_distill.core.conventions import ANCHOR_FEATURES, ANCHOR_SLOTS

HIDDEN = 32
INPUT = ANCHOR_FEATURES + 3
HEADS = {"opacity": ANCHOR_SLOTS, "covariance": ANCHOR_SLOTS * 7, "color": ANCHOR_SLOTS * 3}
PARAMETERS = tuple(f"{head}.{name}" for head in HEADS for name in ("w1", "b1", "w2", "b2"))
"""Order in which `decode_anchors` takes the twelve tensors."""


@dataclass(frozen=True)
class GaussianDecoder:
    """The twelve tensors in the order of PARAMETERS: w1 [32, 35], b1 [32], w2 [out, 32], b2 [out] for each head."""

    weights: tuple[Tensor, ...]

    def trainable(self) -> GaussianDecoder:
        """The same values as fresh leaves that take gradients."""
        return GaussianDecoder(tuple(weight.detach().clone().requires_grad_(True) for weight in self.weights))

    def to(self, device: torch.device | str) -> GaussianDecoder:
        """The same values on a device."""
        return GaussianDecoder(tuple(weight.to(device) for weight in self.weights))

    def copy(self) -> GaussianDecoder:
        """The same values in new memory, without history."""
        return GaussianDecoder(tuple(weight.detach().clone() for weight in self.weights))

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Tensors named '<prefix>.<head>.<w1|b1|w2|b2>'."""
        return {f"{prefix}.{n}": w.detach().clone() for n, w in zip(PARAMETERS, self.weights, strict=True)}


def decoder_from_state(state: dict[str, Tensor], prefix: str) -> GaussianDecoder:
    """The decoder whose tensors a state holds under a prefix."""
    return GaussianDecoder(tuple(state[f"{prefix}.{name}"].clone() for name in PARAMETERS))


def make_decoder(*seed_parts: int | str, color_init: bool) -> GaussianDecoder:
    """A fresh decoder: uniform(-1/sqrt(fan in), 1/sqrt(fan in)) as torch's Linear.

    With ``color_init`` the heads start at a sensible picture: the colour head passes the first three feature channels
    through (relu(f) - relu(-f) = f), the other heads ignore them, opacities start near 0.15 and sizes near 0.4 of
    the anchor's scale.
    """
    generator = seeds.torch_generator(*seed_parts, "decoder")
    weights: list[Tensor] = []
    for head, out in HEADS.items():
        w1, b1 = _linear(HIDDEN, INPUT, generator)
        w2, b2 = _linear(out, HIDDEN, generator)
        if color_init:
            _start_at_picture(head, w1, b1, w2, b2)
        weights += [w1, b1, w2, b2]
    return GaussianDecoder(tuple(weights))


def _linear(out: int, fan_in: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    bound = fan_in**-0.5
    weight = (torch.rand(out, fan_in, generator=generator) * 2 - 1) * bound
    return weight, (torch.rand(out, generator=generator) * 2 - 1) * bound


def _start_at_picture(head: str, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    w1[:, :3] = 0
    if head == "opacity":
        w2 *= 0.2
        b2.fill_(0.15)
    elif head == "covariance":
        w2 *= 0.5
        b2.view(ANCHOR_SLOTS, 7)[:, :3] = -0.4
        b2.view(ANCHOR_SLOTS, 7)[:, 3] = 1.0
    else:
        w1[:6] = 0
        b1[:6] = 0
        w2 *= 0.2
        b2.zero_()
        w2[:, :6] = 0
        for channel in range(3):
            w1[2 * channel, channel], w1[2 * channel + 1, channel] = 1.0, -1.0
            rows = w2.view(ANCHOR_SLOTS, 3, HIDDEN)[:, channel]
            rows[:, 2 * channel], rows[:, 2 * channel + 1] = 1.0, -1.0
