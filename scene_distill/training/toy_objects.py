"""The toy that a caption means, drawn like any object: the reference beside every figure about a text-to-3D result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.seeds import numpy_generator
from scene_distill.data.captioned_shapes import BACKGROUND, Toy
from scene_distill.data.captioned_shapes_objects import build
from scene_distill.data.captioned_shapes_primitives import Primitive, Solids
from scene_distill.data.captioned_shapes_renderer import over, render


@dataclass(frozen=True, eq=False)
class ToyPicture:
    """An `object_views.Drawn` of a toy: image [H, W, 3], alpha [H, W], depth [H, W] (0 beside the toy)."""

    image: Tensor
    alpha: Tensor
    depth: Tensor


@dataclass(frozen=True, eq=False)
class ToyObject:
    """A toy by its solids; calling it with a camera draws it."""

    primitives: Sequence[Primitive]

    def __call__(self, camera: Camera) -> ToyPicture:
        """The picture over the house background, with the depth of the pixels' centres."""
        pixels = render(self.primitives, camera)
        image = torch.from_numpy(over(pixels, np.array(BACKGROUND)))
        alpha = torch.from_numpy(pixels[..., 3].astype(np.float32) / 255)
        return ToyPicture(image, alpha, torch.from_numpy(depth_of(self.primitives, camera)))


def toy_object(toy: Toy, *key: int | str) -> ToyObject:
    """A toy whose proportions are drawn from ``key``."""
    return ToyObject(build(toy.shape, toy.color, toy.part_color, numpy_generator(*key, "proportions")))


def depth_of(primitives: Sequence[Primitive], camera: Camera) -> np.ndarray:
    """Depth along the camera's z axis of what pixels' centres see first, [H, W] float32; 0 where that is nothing."""
    y, x = np.meshgrid(np.arange(camera.height) + 0.5, np.arange(camera.width) + 0.5, indexing="ij")
    in_camera = np.stack([(x.ravel() - camera.cx) / camera.fx, (y.ravel() - camera.cy) / camera.fy, np.ones(x.size)])
    directions = (camera.cam_from_world[:3, :3].T @ in_camera).astype(np.float32)
    which, distance, _ = Solids(primitives).first_hits(camera.center, directions)
    return np.where(which >= 0, distance, 0).reshape(camera.height, camera.width).astype(np.float32)
