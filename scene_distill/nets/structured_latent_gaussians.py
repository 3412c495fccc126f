"""Decoder of structured latents to Gaussians: 32 around every voxel.

    mean      (place + 1/2) / R + tanh(o + P) size / (2 R) - 1/2            P spreads a voxel's Gaussians evenly (below)
    scale     sqrt(softplus(s + softplus^-1(bias))^2 + kernel^2)           kernel: smallest standard deviation
    opacity   sigmoid(o + logit(bias))       quaternion   r / 10 + (1, 0, 0, 0)       colour   SH of degree 0

Coordinates: the object in [-1/2, 1/2]^3, z up. Parameter names are those of TRELLIS's files (`SLatGaussianDecoder`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.nets.sparse_tensor import SparseTensor
from scene_distill.nets.structured_latent_vae import WindowedTransformer
from scene_distill.representations.splats import Splats

WIDTHS = {"means": 3, "sh": 3, "scales": 3, "quats": 4, "opacities": 1}
"""Numbers a Gaussian, in the order in which the output layer has them: all Gaussians' means, then all colours, ..."""

DEFAULTS: dict[str, Any] = {
    "lr": {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1},
    "perturb_offset": True,
    "voxel_size": 1.5,
    "num_gaussians": 32,
    "2d_filter_kernel_size": 0.1,
    "3d_filter_kernel_size": 9e-4,
    "scaling_bias": 4e-3,
    "opacity_bias": 0.1,
    "scaling_activation": "softplus",
}
"""representation_config of the published decoder; 'lr' multiplies raw outputs, the 2D filter is a renderer's."""


class SLatGaussianDecoder(WindowedTransformer):
    """Gaussians of structured latents."""

    offset_perturbation: Tensor

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        representation_config: Mapping[str, Any] | None = None,
        **trunk: object,
    ):
        config = {**DEFAULTS, **(representation_config or {})}
        unknown = set(config) - set(DEFAULTS)
        if unknown:
            raise UserError(f"a Gaussian decoder's representation_config has no {', '.join(sorted(unknown))}")
        if config["scaling_activation"] != "softplus":
            raise UserError(f"scaling_activation is 'softplus' here, not {config['scaling_activation']!r}")
        count = int(config["num_gaussians"])
        super().__init__(
            latent_channels,
            count * sum(WIDTHS.values()),
            model_channels,
            num_blocks,
            **trunk,  # type: ignore[arg-type]
        )
        self.resolution, self.config, self.count = resolution, config, count
        if config["perturb_offset"]:
            self.register_buffer("offset_perturbation", torch.empty(count, 3))
            if not self.offset_perturbation.is_meta:
                self.offset_perturbation.copy_(spread_offsets(count, float(config["voxel_size"])))

    def decode(self, latent: SparseTensor) -> list[Splats]:
        """Splats of every item, 32 a voxel; differentiable."""
        out = self(latent)
        return [self._splats(features, places) for features, places in out.items()]

    def _splats(self, features: Tensor, places: Tensor) -> Splats:
        config, rates = self.config, self.config["lr"]
        parts = features.split([self.count * width for width in WIDTHS.values()], 1)
        raw = {name: part.unflatten(1, (self.count, -1)) for name, part in zip(WIDTHS, parts, strict=True)}
        offsets = raw["means"] * rates["_xyz"]
        if config["perturb_offset"]:
            offsets = offsets + self.offset_perturbation
        centers = (places[:, None] + 0.5) / self.resolution
        means = centers + offsets.tanh() * (0.5 * config["voxel_size"] / self.resolution) - 0.5
        bias = math.log(math.expm1(config["scaling_bias"]))
        scales = functional.softplus(raw["scales"] * rates["_scaling"] + bias)
        kernel = config["3d_filter_kernel_size"]
        identity = raw["quats"].new_tensor([1.0, 0.0, 0.0, 0.0])
        return Splats(
            means=means.flatten(0, 1),
            log_scales=0.5 * (scales.square() + kernel**2).log().flatten(0, 1),
            quats=functional.normalize(raw["quats"] * rates["_rotation"] + identity, dim=-1).flatten(0, 1),
            opacity_logits=(raw["opacities"] * rates["_opacity"] + _logit(config["opacity_bias"])).flatten(),
            sh=(raw["sh"] * rates["_features_dc"]).flatten(0, 1)[:, None],
        )


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def spread_offsets(count: int, voxel_size: float) -> Tensor:
    """P [count, 3] = atanh((2 h - 1) / voxel_size), h the Hammersley points (i / count, radical inverses of i in bases
    2 and 3): the Gaussians start evenly within their own voxel."""
    points = [(i / count, radical_inverse(i, 2), radical_inverse(i, 3)) for i in range(count)]
    return torch.atanh((2 * torch.tensor(points) - 1) / voxel_size)


def radical_inverse(number: int, base: int) -> float:
    """The digits of a number in a base, mirrored at the point: in [0, 1)."""
    value, scale = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        value, scale = value + digit * scale, scale / base
    return value
