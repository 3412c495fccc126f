"""A COLMAP folder of a few small photos on a ring around a cloud of points, to break in one place at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scene_distill.core.cameras import look_at
from scene_distill.core.geometry import quats_from_rotmats
from scene_distill.data.colmap import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints, write_model

SIZE = (40, 30)
CAMERA = ColmapCamera(1, "PINHOLE", *SIZE, (35.0, 36.0, 20.0, 15.0))


@dataclass
class TinyScene:
    """Its folder and its model; `save` writes the model again after a test has changed it."""

    root: Path
    model: ColmapModel

    def save(self, kind: str = "bin", folder: str = "sparse/0") -> Path:
        write_model(self.model, self.root / folder, kind)
        return self.root

    def change_image(self, index: int, **fields: object) -> None:
        images = list(self.model.images)
        images[index] = replace(images[index], **fields)
        self.model = replace(self.model, images=tuple(images))


def ring_poses(count: int, radius: float = 5.0, height: float = 2.0) -> list[np.ndarray]:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    up = np.array([0.0, 0.0, 1.0])
    return [look_at(np.array([radius * np.cos(a), radius * np.sin(a), height]), np.zeros(3), up) for a in angles]


def make_model(count: int = 10, points: int = 50, seed: int = 0) -> ColmapModel:
    """Every image sees every third point, starting with its own number."""
    rng = np.random.default_rng(seed)
    images, tracks = [], [[] for _ in range(points)]
    for index, pose in enumerate(ring_poses(count)):
        rows = np.arange(index % 3, points, 3)
        for keypoint, row in enumerate(rows):
            tracks[row].append((index + 1, keypoint))
        quat = quats_from_rotmats(torch.from_numpy(pose[:3, :3])).numpy()
        name = f"photo_{index:02d}.jpg"
        images.append(ColmapImage(index + 1, quat, pose[:3, 3], 1, name, rng.uniform(0, 30, (len(rows), 2)), rows + 7))
    pairs = np.array([pair for track in tracks for pair in track], np.int32).reshape(-1, 2)
    cloud = ColmapPoints(
        np.arange(points, dtype=np.int64) + 7,
        rng.uniform(-1, 1, (points, 3)),
        rng.integers(0, 256, (points, 3)).astype(np.uint8),
        rng.uniform(0, 1, points),
        np.concatenate([[0], np.cumsum([len(track) for track in tracks])]),
        pairs[:, 0].copy(),
        pairs[:, 1].copy(),
    )
    return ColmapModel({1: CAMERA}, tuple(images), cloud)


def make_scene(root: Path, count: int = 10, folder: str = "images") -> TinyScene:
    """Photos of noise in ``folder`` and the model in sparse/0."""
    scene = TinyScene(root, make_model(count))
    (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for image in scene.model.images:
        pixels = rng.integers(0, 256, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / folder / image.name, quality=95)
    scene.save()
    return scene
