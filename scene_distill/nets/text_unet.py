"""A small text-conditional U-Net for pixel diffusion, and the encoder of its words.

Words become vectors through a table and a two-layer transformer, so that "red chair green legs" binds each colour to
its noun. The U-Net sees them twice: pooled beside the noise level (scale and shift in every block), and word by word
through attention at the two coarse grids, at the coarsest of which cells also attend to each other.

Pictures are first folded, ``patch`` x ``patch`` pixels into channels: at 32 pixels and patch 2 the grids are 16, 8
and 4, and a picture costs about 0.4 GFLOP. Convolutions run in bfloat16 where asked; the first and the last layer stay
in float32, because the noise of the cleanest levels is smaller than bfloat16's rounding of the state, and so do norms:
torch's bfloat16 norm of channels-last grids costs several times as much as its float32 one on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_WIDTH = 32
TIME_WIDTH = 128


@dataclass(frozen=True)
class TextUNetConfig:
    """Sizes of the network; widths are channels at the grids size/patch, half and a quarter of it."""

    size: int = 32
    patch: int = 2
    widths: tuple[int, ...] = (64, 96, 128)
    blocks: int = 1
    text_width: int = 128
    text_layers: int = 2
    words: int = 64
    length: int = 8
    embedding: int = 192


class WordEncoder(nn.Module):
    """Word numbers [B, L] (0: no word) to vectors [B, L, D] in context and one pooled vector [B, D]."""

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__()
        width = config.text_width
        self.table = nn.Embedding(config.words + 1, width)
        self.places = nn.Parameter(0.02 * torch.randn(config.length, width))
        layer = nn.TransformerEncoderLayer(
            width, width // HEAD_WIDTH, 2 * width, 0.0, functional.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.text_layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [B, L, D] and their mean over places [B, D]."""
        tokens = self.layers(self.table(words) + self.places)
        return tokens, tokens.mean(1)


class Residual(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, with the second norm scaled and shifted by the embedding."""

    def __init__(self, before: int, after: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_groups(before), before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(_groups(after), after), nn.Conv2d(after, after, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * after)
        self.bypass = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, after, H, W] of x [B, before, H, W] and embedding [B, E]."""
        h = self.conv1(functional.silu(self.norm1(x.float())))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h.float()) * (1 + scale) + shift
        return self.bypass(x) + self.conv2(functional.silu(h))


class Attention(nn.Module):
    """Grid cells attend to the words and, where ``own``, to each other at once.

    Written out, because with so few keys torch's fused attention costs several times as much on a CPU (its backward).
    """

    def __init__(self, width: int, text_width: int, own: bool) -> None:
        super().__init__()
        self.heads, self.own = max(1, width // HEAD_WIDTH), own
        self.norm = nn.GroupNorm(_groups(width), width)
        self.cells, self.words = nn.Linear(width, (3 if own else 1) * width), nn.Linear(text_width, 2 * width)
        self.leave = nn.Linear(width, width)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """[B, C, H, W] of x [B, C, H, W] and tokens [B, L, D]."""
        batch, width, rows, columns = x.shape
        flat = self.cells(self.norm(x.float()).flatten(2).transpose(1, 2))
        key, value = self.words(tokens).chunk(2, dim=-1)
        query = flat
        if self.own:
            query, own_key, own_value = flat.chunk(3, dim=-1)
            key, value = torch.cat([own_key, key], 1), torch.cat([own_value, value], 1)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        weights = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1).to(value.dtype)
        seen = (weights @ value).transpose(1, 2).flatten(2)
        return x + self.leave(seen).transpose(1, 2).reshape(batch, width, rows, columns)


class TextUNet(nn.Module):
    """Prediction [B, 3, S, S] of VP states [B, 3, S, S], timesteps [B], and words.

    ``encode_words`` is asked once per prompt, ``forward`` once per noise level. ``mixed``: bfloat16 between the first
    and the last layer.
    """

    def __init__(self, config: TextUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.mixed = False
        widths, embedding = config.widths, config.embedding
        folded = 3 * config.patch**2
        self.encoder = WordEncoder(config)
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.text = nn.Linear(config.text_width, embedding)
        self.enter = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [widths[0]], widths[0]
        for level, wide in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(self._stage(width, wide, level))
                width = wide
                skips.append(width)
            if level + 1 < len(widths):
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = self._stage(width, width, len(widths) - 1)
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(self._stage(width + skips.pop(), wide, level))
                width = wide
            if level > 0:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
        self.norm = nn.GroupNorm(_groups(width), width)
        self.leave = nn.Conv2d(width, folded, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def _stage(self, before: int, after: int, level: int) -> nn.ModuleList:
        parts: list[nn.Module] = [Residual(before, after, self.config.embedding)]
        if level > 0:
            coarsest = level == len(self.config.widths) - 1
            parts.append(Attention(after, self.config.text_width, coarsest))
        return nn.ModuleList(parts)

    def encode_words(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [B, L, D] and [B, D] of word numbers [B, L]."""
        return self.encoder(words)

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The prediction, float32."""
        embedding = functional.silu(self.time(_waves(timestep)) + self.text(pooled))
        folded = functional.pixel_unshuffle(x.float(), self.config.patch)
        h = self.enter(folded.contiguous(memory_format=torch.channels_last))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed):
            h = self._body(h.to(torch.bfloat16) if self.mixed else h, embedding, tokens)
        h = functional.silu(self.norm(h.float()))
        return functional.pixel_shuffle(self.leave(h), self.config.patch)

    def halve(self) -> None:
        """Keep the weights between the first and the last layer in bfloat16: a teacher that is never trained again."""
        self.mixed = True
        for part in (self.down, self.middle, self.up):
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)

    def _body(self, h: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
        skips = [h]
        for stage in self.down:
            h = stage(h) if isinstance(stage, nn.Conv2d) else _run(stage, h, embedding, tokens)
            skips.append(h)
        h = _run(self.middle, h, embedding, tokens)
        for stage in self.up:
            if isinstance(stage, nn.Conv2d):
                h = stage(functional.interpolate(h, scale_factor=2.0, mode="nearest"))
            else:
                h = _run(stage, torch.cat([h, skips.pop()], 1), embedding, tokens)
        return h


def _run(stage: nn.Module, h: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
    residual, *attention = stage.children()
    h = residual(h, embedding)
    for part in attention:
        h = part(h, tokens)
    return h


def _groups(width: int) -> int:
    return math.gcd(width, 16)


def _waves(timestep: Tensor) -> Tensor:
    """Sines and cosines [B, 128] of timesteps [B], periods from 2 pi to 10^4 of that (Vaswani et al. 2017)."""
    half = TIME_WIDTH // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=timestep.device) / half)
    angles = timestep.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
