"""Training of the tiny prior on captioned toy pictures.

Teacher:   pictures of toys, whose colour-object pairs are all but the held-out ones, with their captions.
Student:   `nets.text_unet`, words and U-Net together, predicting v = sqrt(abar) n - sqrt(1 - abar) x0 at levels drawn
           uniformly from the cosine schedule; mean squared error (Salimans and Ho 2022; Nichol and Dhariwal 2021).
Gradient:  into the student; an exponential moving average of it is what is kept.
Captions:  one in ten is emptied (for classifier-free guidance), one in five loses its view word, one in twenty its
           colour, so that "a red chair" and "a chair" mean something too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.core.seeds import torch_generator
from scene_distill.data.captioned_shapes import COLOR_NAMES, HELD_OUT, SHAPE_NAMES, VIEWS, WORDS
from scene_distill.data.captioned_shapes_objects import KINDS
from scene_distill.data.captioned_shapes_pictures import NATURAL, Pictures
from scene_distill.nets.text_unet import TextUNet
from scene_distill.priors.ddim import sample, spaced
from scene_distill.priors.guidance import Guided
from scene_distill.priors.network import NetworkPrior
from scene_distill.priors.prior import NoisePrior
from scene_distill.priors.tiny import TinyNetwork, Vocabulary, save_tiny, settled, tiny_schedule
from scene_distill.training.picture_networks import Batches, Fit, Log, Schedule, run_fit
from scene_distill.training.prior_settings import LENGTH, PriorTraining

STATE, WEIGHTS = "prior-state.pt", "prior.safetensors"

SAMPLED_FROM = 0.985
"""Sampling starts at this fraction of the levels, sigma near 45; above it float32 has little left of the picture."""


class PriorTrainer:
    """A training in a folder: ``run`` goes on to the end, ``prior`` is what has been learned so far."""

    def __init__(self, config: PriorTraining, pictures: Pictures, folder: Path, resume: bool) -> None:
        checkpoint = folder / STATE
        if checkpoint.exists() and not resume:
            raise UserError(f"{folder} holds a training already; continue it with --resume or choose another folder")
        unseen = {(COLOR_NAMES[c], SHAPE_NAMES[s]) for c, s in zip(pictures.colors, pictures.shapes, strict=True)}
        if unseen & HELD_OUT:
            raise UserError(f"the training pictures show held-out pairs such as {sorted(unseen & HELD_OUT)[0]}")
        self.config, self.folder = config, folder
        self.settings = dataclasses.asdict(config)
        self.unet = config.network()
        self.fit = Fit(self.unet, Schedule(config.rate, config.steps, config.warmup), config.ema)
        if checkpoint.exists():
            self.fit.load(checkpoint, self.settings)
        self._log = Log(folder / "prior-log.jsonl", self.fit.step)
        self._batches = Batches(pictures, config.batch, config.seed, "prior batches")
        self._words = caption_numbers(pictures)
        self._schedule = tiny_schedule()

    @property
    def curve(self) -> list[dict[str, float]]:
        """The lines of the log so far."""
        return self._log.lines

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step's batch, and its mean over the cleaner and the noisier half of the levels."""
        generator = self._batches.generator(step)
        chosen, images = self._batches.draw(generator)
        words = dropped(self._words[chosen], generator)
        level = torch.randint(self._schedule.n_levels, (len(chosen),), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        x0 = 2 * images - 1
        abar = self._schedule.abar(level, x0)
        state, target = abar.sqrt() * x0 + (1 - abar).sqrt() * noise, abar.sqrt() * noise - (1 - abar).sqrt() * x0
        layout = state.contiguous(memory_format=torch.channels_last)
        tokens, pooled = self.unet.encode_words(words)
        predicted = self.unet(layout, self._schedule.timestep(level), tokens, pooled)
        each = functional.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
        return each.mean(), _halves(each.detach(), level, self._schedule.n_levels)

    def run(self, told: Callable[[int, dict[str, float]], None], save_every: int, stop_at: int | None = None) -> None:
        """Train to the end (or to step ``stop_at``), keeping a checkpoint every ``save_every`` steps and at the end."""
        end = self.config.steps if stop_at is None else min(stop_at, self.config.steps)
        if self.fit.step < end:
            for step in run_fit(self.fit, self.loss, self._log, 20, told):
                if step % save_every == 0 and step < end:
                    self.save()
                if step >= end:
                    break
        self.save()

    def save(self) -> None:
        """Write the checkpoint, and the averaged weights as a prior that can be used."""
        self.fit.save(self.folder / STATE, self.settings)
        save_tiny(self.folder / WEIGHTS, self.learned())

    def learned(self) -> TinyNetwork:
        """The averaged network."""
        unet = TextUNet(self.unet.config)
        unet.load_state_dict(self.fit.average)
        vocabulary = Vocabulary(WORDS, self.unet.config.length)
        last = self.curve[-1]["loss"] if self.curve else None
        about: dict[str, Any] = {"training": self.settings, "step": self.fit.step, "loss": last}
        return TinyNetwork(settled(unet), vocabulary, about)

    def prior(self) -> NetworkPrior:
        """The averaged network as a prior."""
        return self.learned().prior()


def caption_numbers(pictures: Pictures) -> Tensor:
    """Word numbers [N, LENGTH] of full captions: colour, object, part's colour, part, view (0 where there is none)."""
    column = {word: number + 1 for number, word in enumerate(WORDS)}
    rows = np.zeros((len(pictures), LENGTH), np.int64)
    labels = zip(pictures.colors, pictures.shapes, pictures.part_colors, pictures.views, strict=True)
    for row, (color, shape, part_color, view) in zip(rows, labels, strict=True):
        words = [COLOR_NAMES[color], SHAPE_NAMES[shape]]
        if part_color != NATURAL:
            words += [COLOR_NAMES[part_color], KINDS[SHAPE_NAMES[shape]].part]
        row[: len(words) + 1] = [column[word] for word in (*words, VIEWS[view])]
    return torch.from_numpy(rows)


def dropped(words: Tensor, generator: torch.Generator, empty: float = 0.1, view: float = 0.2,
            color: float = 0.05) -> Tensor:  # fmt: skip
    """Captions [B, L] some of which have lost their view word, their colour, or everything."""
    count, length = words.shape
    dice = torch.rand(3, count, generator=generator)
    filled = (words > 0).sum(1)
    out = words.clone()
    last = torch.arange(length)[None] == (filled - 1)[:, None]
    out[last & (dice[0] < view)[:, None]] = 0
    shifted = torch.cat([out[:, 1:], torch.zeros_like(out[:, :1])], 1)
    out = torch.where((dice[1] < color)[:, None], shifted, out)
    return torch.where((dice[2] < empty)[:, None], torch.zeros_like(out), out)


def _halves(each: Tensor, level: Tensor, n_levels: int) -> dict[str, float]:
    clean = level < n_levels // 2
    parts = {"clean": each[clean], "noisy": each[~clean]}
    return {name: float(part.mean()) for name, part in parts.items() if len(part)}


def sampled(prior: NoisePrior, captions: list[str], seed: int, scale: float = 3.0, steps: int = 30,
            batch: int = 32) -> Tensor:  # fmt: skip
    """Pictures [N, 3, S, S] in [0, 1] of captions by DDIM; picture i depends on (seed, i) and its caption alone."""
    levels = spaced(prior.schedule.level_of_fraction(SAMPLED_FROM), 0, steps)
    noise = torch.stack(
        [torch.randn(prior.x0_shape, generator=torch_generator(seed, "samples", i)) for i in range(len(captions))]
    )
    made = []
    for start in range(0, len(captions), batch):
        rows = slice(start, start + batch)
        prompts = {"wanted": prior.describe(captions[rows]), "empty": prior.describe([""])}
        made.append(prior.decode(sample(prior, prompts, Guided(scale, "empty"), noise[rows], levels)))
    return torch.cat(made)
