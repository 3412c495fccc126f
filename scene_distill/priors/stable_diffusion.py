"""Stable Diffusion 1, 2 and XL as priors, from a folder or from the local cache; nothing is ever downloaded.

The parts are `diffusers`' own (extra 'diffusion'): U-Net, autoencoder, one or two CLIP text encoders, and the noise
table of the scheduler's settings. What is ours is how they meet the protocol of `prior`:

states      latents [B, 4, h, w], scaled as the U-Net wants them; VE outside, VP inside; whatever the U-Net predicts
precision   the U-Net in half precision on a GPU; the autoencoder always in float32 (SDXL's overflows in half, and an
            inversion that starts from its latents is not-a-number from there on)
conditions  tokens; for XL the penultimate layers of both encoders side by side, the second's pooled vector, and
            micro-conditioning: original size, crop corner and target size (Podell et al. 2023, section 2.2)
inversion   `ddim.invert`, guidance and Perp-Neg (`guidance`) work on latents as on pixels
memory      ``at_once`` pictures pass the U-Net together; ``tiled`` cuts the autoencoder's work into tiles that overlap
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.priors.network import Predicts, noise_of
from scene_distill.priors.prior import Condition, require_prompts
from scene_distill.priors.schedules import NoiseSchedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP tokenizer with its text model; ``projected`` models have a pooled vector of their own."""

    tokenizer: Any
    model: Any
    projected: bool

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token numbers [B, L]; raises `UserError` for a prompt that is too long, which CLIP would cut silently."""
        room = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        for prompt in prompts:
            count = len(self.tokenizer(prompt).input_ids)
            if count > room:
                raise UserError(f"the prompt '{prompt[:40]}...' has {count} tokens, CLIP reads {room}; shorten it")
        padded = self.tokenizer(list(prompts), padding="max_length", max_length=room, return_tensors="pt")
        return padded.input_ids

    def last(self, prompts: Sequence[str]) -> Tensor:
        """The last layer after its norm [B, L, D]: what SD 1 and 2 are conditioned on."""
        return self.model(self.tokens(prompts).to(self.model.device))[0]

    def penultimate(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The last layer but one [B, L, D] and the first output [B, ...], for XL's second encoder the pooled vector."""
        out = self.model(self.tokens(prompts).to(self.model.device), output_hidden_states=True)
        return out.hidden_states[-2], out[0]


@dataclass(frozen=True)
class MicroConditions:
    """SDXL's size conditions in pixels: (height, width) before and after resizing, and the crop's (top, left)."""

    original: tuple[int, int] = (1024, 1024)
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] = (1024, 1024)

    def row(self) -> Tensor:
        """The six numbers, float32 [6]."""
        return torch.tensor([*self.original, *self.crop, *self.target], dtype=torch.float32)


@dataclass
class LatentPrior:
    """A latent diffusion model as a `prior.NoisePrior`.

    ``size``: (height, width) in pixels that pictures are resampled to; ``micro`` None: not an XL model. ``zero_empty``:
    the empty prompt becomes zeros rather than the encoding of '' (SDXL's pipelines do that). Built by
    `stable_diffusion_files.load_stable_diffusion`.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: tuple[TextEncoder, ...]
    schedule: NoiseSchedule
    predicts: Predicts
    size: tuple[int, int]
    micro: MicroConditions | None = None
    zero_empty: bool = False
    at_once: int = 8

    @property
    def factor(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def x0_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the latents."""
        return (self.unet.config.in_channels, self.size[0] // self.factor, self.size[1] // self.factor)

    # ------------------------------------------------------------------------------------------------------ prompts

    @torch.no_grad()
    def describe(self, prompts: Sequence[str]) -> Condition:
        """Token vectors; for XL also the pooled vector and the size conditions. float32."""
        require_prompts(prompts)
        if self.micro is None:
            return Condition(self._emptied(self.encoders[0].last(prompts).float(), prompts))
        layers, firsts = zip(*(encoder.penultimate(prompts) for encoder in self.encoders), strict=True)
        tokens = torch.cat([layer.float() for layer in layers], dim=-1)
        pooled = self._emptied(firsts[-1].float(), prompts)
        rows = self.micro.row().to(tokens.device).expand(len(prompts), 6)
        return Condition(self._emptied(tokens, prompts), pooled, {"time_ids": rows})

    def _emptied(self, values: Tensor, prompts: Sequence[str]) -> Tensor:
        if not self.zero_empty:
            return values
        keep = torch.tensor([prompt != "" for prompt in prompts], device=values.device)
        return values * keep.reshape(-1, *[1] * (values.ndim - 1))

    # -------------------------------------------------------------------------------------------------------- noise

    @torch.no_grad()
    def eps(self, z: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The predicted noise at VE latents z [B, 4, h, w], ``at_once`` rows per call of the U-Net."""
        abar = self.schedule.abar(level, z)
        x_t = z * abar.sqrt()
        timestep = self.schedule.timestep(level)
        every = torch.arange(len(z))
        predicted = [self._predict(x_t[i], timestep[i], condition.select(i)) for i in every.split(self.at_once)]
        return noise_of(torch.cat(predicted).to(z), x_t, abar, self.predicts)

    def _predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        device, dtype = self.unet.device, self.unet.dtype
        assert condition.tokens is not None
        added = None
        if self.micro is not None:
            assert condition.pooled is not None
            ids = condition.extra["time_ids"]
            added = {"text_embeds": condition.pooled.to(device, dtype), "time_ids": ids.to(device, dtype)}
        out = self.unet(
            x_t.to(device, dtype), timestep.to(device), condition.tokens.to(device, dtype), added_cond_kwargs=added
        )
        return out.sample.to(x_t.device, torch.float32)

    # ------------------------------------------------------------------------------------------------------- pixels

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents of images [B, 3, H, W] in [0, 1], with gradient; the posterior's mean, or a sample of it."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"the prior takes images [B, 3, H, W], got {tuple(images.shape)}")
        pixels = images.to(self.vae.device, torch.float32)
        if tuple(pixels.shape[2:]) != self.size:
            pixels = functional.interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)
        posterior = self.vae.encode(2 * pixels - 1).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return (latents - self._shift) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of scaled latents, one at a time."""
        latents = x0.to(self.vae.device, torch.float32) / self.vae.config.scaling_factor + self._shift
        images = [self.vae.decode(row[None]).sample for row in latents]
        return (torch.cat(images) / 2 + 0.5).clamp(0, 1)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)
