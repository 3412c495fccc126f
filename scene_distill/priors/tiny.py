"""The tiny prior: a text-conditional diffusion U-Net trained in this project on captioned toy pictures.

It knows the words of `data.captioned_shapes` and nothing else: ten colours, sixteen objects, their parts, four views.
Its file is one .safetensors in half precision whose header says how the network is built, which words it knows and
where the weights come from. `load_tiny` returns a `network.NetworkPrior`: v-prediction, cosine schedule, pixels.

States beyond float32's reach of the network do not occur: it is fed VP states, and its first and last layers are
float32 even when the rest runs in bfloat16 (`dtype`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scene_distill.core.configs import from_plain
from scene_distill.core.errors import UserError
from scene_distill.nets.text_unet import TextUNet, TextUNetConfig
from scene_distill.nets.weight_files import read_weights, save_weights
from scene_distill.priors.captions import words_of
from scene_distill.priors.network import NetworkPrior
from scene_distill.priors.pixels import PixelCodec
from scene_distill.priors.prior import Condition, require_prompts
from scene_distill.priors.schedules import NoiseSchedule, cosine

PACKAGED = Path(__file__).parent / "weights" / "tiny.safetensors"
"""The weights that come with the package."""

HOW_TO_TRAIN = "train one with 'scene-distill prior train --output-dir outputs/prior'"

KIND = "scene-distill tiny prior 1"


def tiny_schedule() -> NoiseSchedule:
    """The noise schedule that tiny priors are trained and used with."""
    return cosine(1000)


@dataclass(frozen=True)
class Vocabulary:
    """The words a tiny prior knows, and how many of them a prompt may have."""

    words: tuple[str, ...]
    length: int

    def numbers(self, prompts: Sequence[str]) -> Tensor:
        """Word numbers int64 [B, length], 0 where there is no word. Raises `UserError` for words it does not know."""
        require_prompts(prompts)
        rows = [self.row(prompt) for prompt in prompts]
        return torch.tensor(rows, dtype=torch.int64)

    def row(self, prompt: str) -> list[int]:
        """The numbers of one prompt, filled up with 0."""
        words = words_of(prompt)
        for word in words:
            if word not in self.words:
                near = difflib.get_close_matches(word, self.words, 3, 0.6)
                hint = f"did you mean '{near[0]}'?" if near else "'scene-distill prior info' lists its words"
                raise UserError(f"the tiny prior does not know the word '{word}' of '{prompt}'; {hint}")
        if len(words) > self.length:
            raise UserError(
                f"'{prompt}' has {len(words)} telling words, the tiny prior reads {self.length}; shorten it"
            )
        return [self.words.index(word) + 1 for word in words] + [0] * (self.length - len(words))


@dataclass
class TinyNetwork:
    """The trained network with its words: prompts to conditions, VP states to v."""

    unet: TextUNet
    vocabulary: Vocabulary
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> nn.Module:
        """What VSD copies and trains."""
        return self.unet

    @torch.no_grad()
    def describe(self, prompts: Sequence[str]) -> Condition:
        """Word vectors [B, L, D] and their mean [B, D], float32."""
        device = next(self.unet.parameters()).device
        tokens, pooled = self.unet.encode_words(self.vocabulary.numbers(prompts).to(device))
        return Condition(tokens, pooled)

    def __call__(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """v at VP states x [B, 3, S, S]."""
        assert condition.tokens is not None and condition.pooled is not None
        layout = x.float().contiguous(memory_format=torch.channels_last)
        return self.unet(layout, timestep, condition.tokens.to(layout.device), condition.pooled.to(layout.device))

    def prior(self) -> NetworkPrior:
        """The network as a prior."""
        codec = PixelCodec(self.unet.config.size, self.unet.config.size)
        return NetworkPrior(self, tiny_schedule(), codec, self.describe, predicts="v")


def save_tiny(path: Path, network: TinyNetwork) -> None:
    """Write the weights in half precision, with the network's sizes, words and origin in the header."""
    description = {
        "kind": KIND,
        "config": dataclasses.asdict(network.unet.config),
        "words": network.vocabulary.words,
        "about": dict(network.about),
    }
    save_weights(path, network.unet.state_dict(), description)


def read_tiny(path: Path | None = None) -> TinyNetwork:
    """The network in a file of `save_tiny` (default: the packaged one), float32 and ready to predict.

    Raises `UserError` for a file that is missing, damaged or of another kind.
    """
    path = path or PACKAGED
    if path.is_dir():
        path = path / "prior.safetensors"
    if path == PACKAGED and not path.exists():
        raise UserError(
            "this installation comes without a trained tiny prior (there is no tiny prior at "
            f"{path}); {HOW_TO_TRAIN}, then name outputs/prior"
        )
    if not path.exists():
        raise UserError(f"there is no tiny prior at {path}; {HOW_TO_TRAIN}")
    weights, description = read_weights(path, KIND)
    try:
        config = from_plain(TextUNetConfig, description["config"], str(path))
        vocabulary = Vocabulary(tuple(description["words"]), config.length)
        unet = TextUNet(config)
        unet.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); train it again or restore the packaged file") from error
    return TinyNetwork(settled(unet), vocabulary, description.get("about", {}))


def load_tiny(path: Path | None = None, device: torch.device | str = "cpu",
              dtype: torch.dtype = torch.float32) -> NetworkPrior:  # fmt: skip
    """A tiny prior ready to teach. ``dtype`` bfloat16 runs the body of the network in it (fewer bytes, less exact:
    differences of two near predictions then carry rounding of about 1 % of their size)."""
    network = read_tiny(path)
    network.unet.to(device)
    if dtype == torch.bfloat16:
        network.unet.halve()
    elif dtype != torch.float32:
        raise UserError(f"the tiny prior runs in float32 or bfloat16, not {dtype}")
    return network.prior()


def settled(unet: TextUNet) -> TextUNet:
    """The network as a teacher: no dropout, no gradients, weights laid out for convolutions."""
    unet.eval().requires_grad_(False)
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return unet
