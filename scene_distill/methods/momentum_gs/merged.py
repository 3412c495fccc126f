"""The merged city: every block's anchors inside its own cell, with the decoder that was trained for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.conventions import ANCHOR_SLOTS
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.core.gaussians import Gaussians
from scene_distill.nets.gaussian_decoder import GaussianDecoder, decoder_from_state
from scene_distill.renderers.anchors import decode
from scene_distill.renderers.splat import Rendering, render
from scene_distill.representations.anchors import Anchors
from scene_distill.representations.levels import LevelOfDetail, faded

TINT = 0.4
"""How much of a tinted picture's colour is the block's."""


@dataclass(frozen=True, eq=False)
class MergedCity:
    """A anchors in the training frame (world minus ``origin`` [3]), the block each came from [A] int32, and the
    decoders:
    one that all share, or one per block when sharing was off. ``metadata`` travels into exports. ``born`` [A] int32:
    when each anchor was made (`representations.births`); None in a city that was saved without."""

    anchors: Anchors
    block: Tensor
    decoders: tuple[GaussianDecoder, ...]
    origin: np.ndarray
    metadata: dict[str, Any]
    born: Tensor | None = None

    def __len__(self) -> int:
        return len(self.anchors)

    def to(self, device: torch.device | str) -> MergedCity:
        """The same city on a device."""
        decoders = tuple(decoder.to(device) for decoder in self.decoders)
        born = None if self.born is None else self.born.to(device)
        return replace(self, anchors=self.anchors.to(device), block=self.block.to(device), decoders=decoders, born=born)

    @cached_property
    def detail(self) -> LevelOfDetail | None:
        """How far anchors give way to coarser ones; None: they do not."""
        return LevelOfDetail.from_metadata(self.metadata)

    def drawn(self, camera: Camera) -> tuple[Tensor, Tensor | None]:
        """Rows of the anchors that a camera of the training frame draws, and the weights of their opacities where far
        anchors give way to coarser ones."""
        if self.detail is None:
            return self.anchors.visible(camera), None
        return self.detail.drawn(self.anchors, camera)

    @property
    def anchor_positions(self) -> Tensor:
        """Positions [A, 3] of the anchors in the training frame."""
        return self.anchors.positions

    @torch.no_grad()
    def gaussians(self, camera: Camera, blocks: frozenset[int] | None = None) -> Gaussians:
        """The Gaussians that a world camera sees, in the training frame; of some blocks only when given."""
        local = camera.moved(self.origin)
        visible, weights = self.drawn(local)
        if blocks is not None:
            wanted = torch.tensor(sorted(blocks), dtype=torch.int32, device=visible.device)
            theirs = torch.isin(self.block[visible], wanted)
            visible, weights = visible[theirs], None if weights is None else weights[theirs]
        return faded(self._decode(visible, local), weights)

    @torch.no_grad()
    def render(self, camera: Camera, *, blocks: frozenset[int] | None = None, with_depth: bool = False) -> Rendering:
        """The picture of a world camera on black; depth in the scene's unit when asked for."""
        return render(self.gaussians(camera, blocks), camera.moved(self.origin), with_depth=with_depth)

    def as_photographed_in(self, view: str) -> MergedCity:
        """The city with the appearance of a training photograph, by its name; as it is when it learned none.

        Raises `UserError` for a name that is not among the photographs it was trained on.
        """
        names = self.metadata.get("appearance_views")
        if names is None:
            return self
        if view not in names:
            raise UserError(f"'{view}' is no photo that this city was trained on; give the name of a training photo")
        index = names.index(view)
        return replace(self, decoders=tuple(decoder.in_view(index) for decoder in self.decoders))

    @torch.no_grad()
    def render_tinted(self, camera: Camera) -> Rendering:
        """`render`, with depth, and the anchors of every block in a tint of their own."""
        local = camera.moved(self.origin)
        visible, weights = self.drawn(local)
        gaussians = faded(self._decode(visible, local), weights)
        tints = block_tints(self.block[visible]).repeat_interleave(ANCHOR_SLOTS, dim=0)
        tinted = torch.lerp(gaussians.features, tints.to(gaussians.features), TINT)
        return render(replace(gaussians, features=tinted), local, with_depth=True)

    @torch.no_grad()
    def slots(self, camera_center: np.ndarray, rows: Tensor) -> Gaussians:
        """All slots of the anchors ``rows`` as seen from a position [3], both in the training frame, anchor by
        anchor. Those that stand in for others at a distance are transparent: standard splats are those of near views.
        """
        pose = np.eye(4)
        pose[:3, 3] = -np.asarray(camera_center)
        gaussians = self._decode(rows, Camera(1, 1, 1.0, 1.0, 0.5, 0.5, pose))
        return gaussians if self.anchors.levels is None else faded(gaussians, (self.anchors.levels[rows] < 0.5).float())

    def _decode(self, rows: Tensor, camera: Camera) -> Gaussians:
        """The slots of anchors ``rows`` in their order, each decoded by the decoder of its block."""
        if len(self.decoders) == 1:
            return decode(self.anchors, self.decoders[0], rows, camera)
        owners = self.block[rows]
        groups = [(owners == k).nonzero().squeeze(1) for k in range(len(self.decoders))]
        parts = [decode(self.anchors, d, rows[g], camera) for d, g in zip(self.decoders, groups, strict=True)]
        back = torch.argsort(torch.cat(groups))
        slots = (back[:, None] * ANCHOR_SLOTS + torch.arange(ANCHOR_SLOTS, device=rows.device)).flatten()
        fields = ("means", "quats", "scales", "opacities", "features")
        return Gaussians(*(torch.cat([getattr(part, name) for part in parts])[slots] for name in fields))

    def save(self, path: Path) -> None:
        """Write anchors, decoders and metadata as one .safetensors file, atomically."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
        header = {"scene_distill": json.dumps({"decoders": len(self.decoders), "metadata": self.metadata})}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))

    @staticmethod
    def load(path: Path) -> MergedCity:
        """Read what `save` wrote; raises `UserError` when it is missing, damaged or something else."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["scene_distill"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(
                f"{path} is not a readable Momentum-GS model ({error}); train or copy the run again"
            ) from error
        return MergedCity.from_tensors(tensors, header["metadata"])

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> MergedCity:
        """The city whose tensors have the names that `save` gives them."""
        count = len({name.split(".")[0] for name in tensors if name.startswith("decoder")})
        return MergedCity(
            Anchors.of_state(tensors),
            tensors["block"],
            tuple(decoder_from_state(tensors, f"decoder{index}") for index in range(count)),
            tensors["origin"].numpy(),
            metadata,
            tensors.get("born"),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the names in the file."""
        named = self.anchors.state()
        named |= {} if self.born is None else {"born": self.born}
        named |= {"block": self.block, "origin": torch.as_tensor(self.origin, dtype=torch.float64)}
        for index, decoder in enumerate(self.decoders):
            named |= decoder.state(f"decoder{index}")
        return named


def block_tints(blocks: Tensor) -> Tensor:
    """Colours [N, 3] in [0, 1] of block numbers [N]: hues a golden section apart."""
    hue = (blocks.float() * 0.618034 + 0.05) % 1.0
    thirds = torch.tensor([0.0, 2.0 / 3.0, 1.0 / 3.0], device=blocks.device)
    distance = ((hue[:, None] - thirds + 0.5) % 1.0 - 0.5).abs()
    return (2.0 - 6.0 * distance).clamp(0.0, 1.0)
