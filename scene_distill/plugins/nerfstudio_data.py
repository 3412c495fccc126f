"""The datamanager of our methods in nerfstudio: photos are read one by one when asked for, never the whole city."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader

from scene_distill.plugins.nerfstudio_cameras import cameras_for_nerfstudio
from scene_distill.plugins.nerfstudio_dataparser import SceneDataParser, SceneDataParserConfig
from scene_distill.plugins.nerfstudio_errors import one_sentence
from scene_distill.plugins.nerfstudio_start_view import StartView


@dataclass
class SceneDatamanagerConfig(FullImageDatamanagerConfig):
    """Photos ``image_width`` pixels wide (0: their own width), read when needed."""

    _target: type = field(default_factory=lambda: SceneDatamanager)
    """target class to instantiate"""
    dataparser: SceneDataParserConfig = field(default_factory=SceneDataParserConfig)
    """where the scene is and what is held out"""
    cache_images: Literal["cpu", "gpu"] = "cpu"
    """without meaning here: nothing is cached"""
    image_width: int = 0
    """Width in pixels that photos are shrunk to; 0 keeps the files' own."""


class SceneDataset(InputDataset):
    """One split of a scene: cameras of the shrunk photos (float64), photos through our own reader."""

    def __init__(self, outputs: DataparserOutputs, frames: Sequence[Any], width: int) -> None:
        super().__init__(outputs)
        self.frames, self.width = tuple(frames), width
        self.cameras = cameras_for_nerfstudio([frame.camera.resized(width) for frame in frames], torch.float64)

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """The photo as uint8 [H, W, 3]."""
        from scene_distill.data.images import read_photo

        return read_photo(self.frames[image_idx], self.width).numpy()


class SceneDatamanager(FullImageDatamanager[SceneDataset]):
    """Hands out (camera, {"image": [H, W, 3], "image_idx"}) pairs of a scene."""

    config: SceneDatamanagerConfig
    dataparser: SceneDataParser

    def __init__(self, config: SceneDatamanagerConfig, **kwargs: Any) -> None:
        self.shrink = config.dataparser.downscale_factor or 1.0
        config = replace(config, dataparser=replace(config.dataparser, downscale_factor=None))
        with one_sentence():
            super().__init__(config, **kwargs)
            self.start_view = StartView(self.dataparser.scene)

    def create_train_dataset(self) -> SceneDataset:
        """The views that are trained on."""
        return self._dataset("train", self.train_dataparser_outputs)

    def create_eval_dataset(self) -> SceneDataset:
        """The held-out views."""
        return self._dataset(self.test_split, self.dataparser.get_dataparser_outputs(self.test_split))

    def _dataset(self, split: str, outputs: DataparserOutputs) -> SceneDataset:
        widest = max(frame.camera.width for frame in self.dataparser.scene.frames)
        width = min(self.config.image_width, widest) if self.config.image_width > 0 else widest
        return SceneDataset(outputs, self.dataparser.frames(split), max(1, round(width / self.shrink)))

    def get_datapath(self) -> Path:
        """Where the scene is."""
        return self.config.dataparser.data

    @property
    def fixed_indices_eval_dataloader(self) -> FixedIndicesEvalDataloader:  # type: ignore[override]
        """Walks over the held-out views, one photo in memory at a time."""
        return FixedIndicesEvalDataloader(self.eval_dataset, device=self.device)

    def get_train_rays_per_batch(self) -> int:
        """Pixels of the first training view."""
        return int(self.train_dataset.cameras.width[0] * self.train_dataset.cameras.height[0])

    def next_train(self, step: int) -> tuple[Cameras, dict]:
        """The training view number ``step``, counted round and round in name order."""
        return self._pair(self.train_dataset, step)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict]:
        """The held-out view number ``step``, counted round and round in name order."""
        return self._pair(self.eval_dataset, step)

    def _pair(self, dataset: SceneDataset, step: int) -> tuple[Cameras, dict]:
        row = step % len(dataset)
        return dataset.cameras[row : row + 1].to(self.device), dataset[row]
