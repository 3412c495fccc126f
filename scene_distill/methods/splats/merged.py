"""The trained splats of all blocks, each inside its own cell."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.renderers.splat import Rendering, render
from scene_distill.renderers.stored_splats import drawn_rows, take
from scene_distill.representations.splats import Splats

FIELDS = tuple(field.name for field in fields(Splats))


@dataclass(frozen=True, eq=False)
class MergedSplats:
    """N splats in the training frame (world minus ``origin`` [3]) and the block each came from [N] int32.

    ``metadata`` travels into exports. ``born`` [N] int32: when each was made (`representations.births`); None in a
    scene that was saved without.
    """

    local: Splats
    block: Tensor
    origin: np.ndarray
    metadata: dict[str, Any]
    born: Tensor | None = None

    def __len__(self) -> int:
        return len(self.local)

    def to(self, device: torch.device | str) -> MergedSplats:
        """The same scene on a device."""
        local = Splats(**{name: getattr(self.local, name).to(device) for name in FIELDS})
        born = None if self.born is None else self.born.to(device)
        return replace(self, local=local, block=self.block.to(device), born=born)

    def splats(self) -> Splats:
        """The splats in the training frame on the CPU, as an exporter writes them."""
        return self.to("cpu").local

    @torch.no_grad()
    def render(self, camera: Camera, *, blocks: frozenset[int] | None = None, with_depth: bool = False) -> Rendering:
        """The picture of a world camera on black, of some blocks only when given; depth in the scene's unit when asked
        for."""
        view = camera.moved(self.origin)
        rows = drawn_rows(self.local, view)
        if blocks is not None:
            rows = rows[torch.isin(self.block[rows], self.block.new_tensor(sorted(blocks)))]
        return render(take(self.local, rows), view, with_depth=with_depth)

    def save(self, path: Path) -> None:
        """Write everything as one .safetensors file, atomically."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
        header = {"scene_distill": json.dumps({"metadata": self.metadata})}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))

    @staticmethod
    def load(path: Path) -> MergedSplats:
        """Read what `save` wrote; raises `UserError` when it is missing, damaged or something else."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["scene_distill"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            local = Splats(**{name: tensors[f"splats.{name}"] for name in FIELDS})
            origin, born = tensors["origin"].numpy(), tensors.get("born")
            return MergedSplats(local, tensors["block"], origin, header["metadata"], born)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a readable splats model ({error}); train or copy the run again") from error

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by the names in the file."""
        named = {f"splats.{name}": getattr(self.local, name) for name in FIELDS}
        named |= {} if self.born is None else {"born": self.born}
        return named | {"block": self.block, "origin": torch.as_tensor(self.origin, dtype=torch.float64)}
