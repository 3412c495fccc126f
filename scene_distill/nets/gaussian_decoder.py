"""The decoder that all anchors of all blocks share: feature and viewing direction in, ten Gaussians out.

Three two-layer perceptrons 35 -> 32 -> {10 opacities, 10 x 7 sizes and rotations, 10 x 3 colours}, 7,086 parameters
(Momentum-GS, supplement; spec momentum_gs.md, section 1). The arithmetic is `renderers.anchors.decode`.

Options of the papers' code, all off in every published run (`DecoderOptions`): the distance to the camera as one more
input of a head; an appearance vector per training photograph as more inputs of the colour head; a feature bank, in
which a small perceptron 4 -> 32 -> 3 with a softmax blends three versions of the feature (every fourth channel four
times, every second twice, all) by viewing direction and distance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scene_distill.core import seeds
from scene_distill.core.conventions import ANCHOR_FEATURES, ANCHOR_SLOTS

HIDDEN = 32
INPUT = ANCHOR_FEATURES + 3
HEADS = {"opacity": ANCHOR_SLOTS, "covariance": ANCHOR_SLOTS * 7, "color": ANCHOR_SLOTS * 3}
PARAMETERS = tuple(f"{head}.{name}" for head in HEADS for name in ("w1", "b1", "w2", "b2"))
"""Order in which `decode_anchors` takes the twelve tensors."""


DISTANCE = tuple(f"{head}.distance" for head in HEADS)
BANK = ("bank.w1", "bank.b1", "bank.w2", "bank.b2")
APPEARANCE = ("color.appearance", "appearance.table")
NAMES = PARAMETERS + DISTANCE + BANK + APPEARANCE
"""All tensors a decoder may have, in the order of `GaussianDecoder.weights`."""


@dataclass(frozen=True)
class DecoderOptions:
    """Options of the papers' code under its names; all off in every published run.

    appearance_dim: length of the appearance vectors, 0 for none; views: number of training photographs.
    """

    add_opacity_dist: bool = False
    add_cov_dist: bool = False
    add_color_dist: bool = False
    use_feat_bank: bool = False
    appearance_dim: int = 0
    views: int = 0


@dataclass(frozen=True)
class GaussianDecoder:
    """The tensors in the order of PARAMETERS: w1 [32, 35], b1 [32], w2 [out, 32], b2 [out] for each head.

    With options further tensors follow, whose names are in ``names``: '<head>.distance' [32], the bank's w1 [32, 4], b1
    [32], w2 [3, 32], b2 [3], 'color.appearance' [32, D] and 'appearance.table' [V, D].
    """

    weights: tuple[Tensor, ...]
    names: tuple[str, ...] = PARAMETERS

    def trainable(self) -> GaussianDecoder:
        """The same values as fresh leaves that take gradients."""
        return replace(self, weights=tuple(weight.detach().clone().requires_grad_(True) for weight in self.weights))

    def to(self, device: torch.device | str) -> GaussianDecoder:
        """The same values on a device."""
        return replace(self, weights=tuple(weight.to(device) for weight in self.weights))

    def copy(self) -> GaussianDecoder:
        """The same values in new memory, without history."""
        return replace(self, weights=tuple(weight.detach().clone() for weight in self.weights))

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Tensors named '<prefix>.<head>.<w1|b1|w2|b2>' and those of the options."""
        return {f"{prefix}.{n}": w.detach().clone() for n, w in zip(self.names, self.weights, strict=True)}

    def find(self, name: str) -> Tensor | None:
        """A tensor by name; None when the decoder has none such."""
        return self.weights[self.names.index(name)] if name in self.names else None

    def in_view(self, view: int | None) -> GaussianDecoder:
        """The decoder as it draws training photograph ``view``; with the mean appearance for None or any other view.

        The appearance is constant in a picture, so it becomes a part of the colour head's bias; differentiable.
        """
        matrix, table = self.find(APPEARANCE[0]), self.find(APPEARANCE[1])
        if matrix is None or table is None:
            return self
        vector = table.mean(0) if view is None or view < 0 else table[view]
        kept = [(n, w) for n, w in zip(self.names, self.weights, strict=True) if n not in APPEARANCE]
        weights = tuple(w + matrix @ vector if n == "color.b1" else w for n, w in kept)
        return GaussianDecoder(weights, tuple(n for n, _ in kept))


def decoder_from_state(state: dict[str, Tensor], prefix: str) -> GaussianDecoder:
    """The decoder whose tensors a state holds under a prefix."""
    names = tuple(name for name in NAMES if name in PARAMETERS or f"{prefix}.{name}" in state)
    return GaussianDecoder(tuple(state[f"{prefix}.{name}"].clone() for name in names), names)


def make_decoder(
    *seed_parts: int | str, color_init: bool, options: DecoderOptions = DecoderOptions()
) -> GaussianDecoder:
    """A fresh decoder: uniform(-1/sqrt(fan in), 1/sqrt(fan in)) as torch's Linear; the tables of options start so that
    they change nothing.

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
    extra = _optional(options, generator)
    return GaussianDecoder((*weights, *extra.values()), (*PARAMETERS, *extra))


def _optional(options: DecoderOptions, generator: torch.Generator) -> dict[str, Tensor]:
    """The tensors of the options by name, in the order of NAMES."""
    extra: dict[str, Tensor] = {}
    asked = (options.add_opacity_dist, options.add_cov_dist, options.add_color_dist)
    extra |= {name: torch.zeros(HIDDEN) for name, wanted in zip(DISTANCE, asked, strict=True) if wanted}
    if options.use_feat_bank:
        layers = (*_linear(HIDDEN, 4, generator), *_linear(3, HIDDEN, generator))
        extra |= dict(zip(BANK, layers, strict=True))
        extra[BANK[3]] = extra[BANK[3]] + torch.tensor([0.0, 0.0, 4.0])
    if options.appearance_dim > 0:
        extra[APPEARANCE[0]] = _linear(HIDDEN, options.appearance_dim, generator)[0]
        extra[APPEARANCE[1]] = torch.zeros(options.views, options.appearance_dim)
    return extra


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
