"""Decoder of structured latents to radiance fields: a local volume of rank 16 in every voxel (`TrivectorField`).

Parameter names are those of TRELLIS's files (`SLatRadianceFieldDecoder`). The vectors get 1 added, so that a fresh
network starts from constant volumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scene_distill.nets.sparse_tensor import SparseTensor
from scene_distill.nets.structured_latent_vae import WindowedTransformer
from scene_distill.representations.trivectors import TrivectorField


class SLatRadianceFieldDecoder(WindowedTransformer):
    """Radiance fields of structured latents. ``representation_config``: rank and dim, published with 16 and 8."""

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        representation_config: Mapping[str, Any] | None = None,
        **trunk: object,
    ):
        config = {"rank": 16, "dim": 8, **(representation_config or {})}
        self.resolution, self.rank, self.dim = resolution, int(config["rank"]), int(config["dim"])
        width = self.rank * (3 * self.dim + 4)
        super().__init__(latent_channels, width, model_channels, num_blocks, **trunk)  # type: ignore[arg-type]

    def decode(self, latent: SparseTensor) -> list[TrivectorField]:
        """The field of every item; differentiable."""
        sizes = [3 * self.rank * self.dim, self.rank, 3 * self.rank]
        fields = []
        for features, places in self(latent).items():
            vectors, densities, colors = features.split(sizes, 1)
            fields.append(
                TrivectorField(
                    self.resolution,
                    places,
                    vectors.unflatten(1, (self.rank, 3, self.dim)) + 1,
                    densities,
                    colors.unflatten(1, (self.rank, 3)),
                )
            )
        return fields
