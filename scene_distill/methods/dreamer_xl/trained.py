"""A finished object made of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.methods.text_to_3d.representation import Views
from scene_distill.renderers.splat import render
from scene_distill.representations.splats import Splats, stored_tensors

KIND = "scene-distill gaussians 1"


@dataclass(frozen=True, eq=False)
class TrainedGaussians:
    """Gaussians around the origin, z up (`text_to_3d.representation.TrainedObject`)."""

    splats: Splats

    @torch.no_grad()
    def render(self, cameras: Sequence[Camera], background: Tensor) -> Views:
        """Pictures with depth over a background [3] or [C, 3]."""
        behind = background.to(self.splats.means.device).expand(len(cameras), 3)
        drawn = [render(self.splats, c, background=b, with_depth=True) for c, b in zip(cameras, behind, strict=True)]
        depths = torch.stack([d.depth for d in drawn if d.depth is not None])
        image = torch.stack([d.image for d in drawn]).clamp(0, 1)
        return Views(image, torch.stack([d.alpha for d in drawn]), depths)

    def geometry(self) -> Splats:
        """The Gaussians."""
        return self.splats

    def save(self, path: Path) -> None:
        """Write them as one .safetensors file, atomically."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in stored_tensors(self.splats).items()}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, {"kind": KIND}))

    @staticmethod
    def load(path: Path) -> TrainedGaussians:
        """Read what `save` wrote; UserError when it is missing, damaged or something else."""
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("kind") != KIND:
                    raise ValueError("another kind of file")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return TrainedGaussians(Splats(**tensors))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise UserError(f"{path} holds no Gaussians of text-to-3d ({error}); make them again") from error
