"""What a text-to-3D representation must offer, so that one loop trains all of them.

A `Representation` is a recipe: how an object begins and how a saved one is opened. An `OpenObject` is live: it draws C
views with gradients to its parameters, and after the backward pass steps them. A `TrainedObject` only draws. States are
flat dicts of tensors, as in `blocks.store`; everything that a resumed run needs must be in them (moments, statistics),
and every random number must come from the generator that is handed in, so that training does not depend on the process.

World frame: z up, the object's front faces +x, its left side +y; the object lies around the origin. Cameras are OpenCV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.core.cameras import Camera
from scene_distill.objectives.score_teacher import Progress
from scene_distill.representations.meshes import TriangleMesh
from scene_distill.representations.splats import Splats


@dataclass(frozen=True, eq=False)
class Views:
    """C pictures of an object, all of one size.

    image [C, H, W, 3] sRGB in [0, 1] over the background; alpha [C, H, W] coverage; depth_m [C, H, W] expected depth
    along z, 0 where nothing is, or None where it was not drawn. ``taught`` [C, H, W, 3]: what the prior is shown
    instead of the image (a depth map, normals); None: the image.
    """

    image: Tensor
    alpha: Tensor
    depth_m: Tensor | None = None
    taught: Tensor | None = None

    @property
    def lesson(self) -> Tensor:
        """What the prior is shown, [C, 3, H, W]."""
        shown = self.image if self.taught is None else self.taught
        return shown.permute(0, 3, 1, 2)


class TrainedObject(Protocol):
    """A finished object, or one as it was committed last."""

    def render(self, cameras: Sequence[Camera], background: Tensor) -> Views:
        """Pictures over a background [3] or [C, 3]; no gradients, no randomness."""
        ...

    def geometry(self) -> Splats | TriangleMesh:
        """What exporters write."""
        ...

    def save(self, path: Path) -> None:
        """Everything as one .safetensors file, atomically."""
        ...


class OpenObject(Protocol):
    """An object in training."""

    def render(self, cameras: Sequence[Camera], background: Tensor, progress: Progress,
               generator: torch.Generator) -> Views:  # fmt: skip
        """Pictures over backgrounds [C, 3] with gradients to the parameters; augmentation may use the generator."""
        ...

    def losses(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        """Regularisers of what was just drawn, each a scalar with its weight already in it; added to the score loss."""
        ...

    def step(self, progress: Progress, generator: torch.Generator) -> dict[str, float]:
        """After the backward pass: optimiser, then growth with the statistics of all views of the batch; numbers for
        the log. Gradients are cleared."""
        ...

    def state(self) -> State:
        """All that a resumed run needs, as tensors that later steps do not change."""
        ...


class Representation(Protocol):
    """How objects of one kind begin, are opened, and end."""

    def first_state(self, prompt: str, generator: torch.Generator, before: State | None = None) -> State:
        """The state before the first step; ``before`` is the last state of the stage before this one, if any (a mesh
        begins from the field that was trained first)."""
        ...

    def open(self, state: State) -> OpenObject:
        """A live object; the state's tensors are its own to change, and already on the training device."""
        ...

    def trained(self, state: State) -> TrainedObject:
        """The object of a state."""
        ...
