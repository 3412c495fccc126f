"""The dataparser `scene-distill` for nerfstudio: what `data.load_scene` reads, for any of nerfstudio's methods.

Nerfstudio loads dataparser plugins while its own trainer is half imported, so this module imports nothing of it but the
dataparser base; what reads the scene is imported when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

if TYPE_CHECKING:
    from scene_distill.data.scene import Frame, Scene


@dataclass
class SceneDataParserConfig(DataParserConfig):
    """A COLMAP folder, a transforms.json, or a folder of photos; the world frame and scale are kept."""

    _target: type = field(default_factory=lambda: SceneDataParser)
    """target class to instantiate"""
    test_every: int = 8
    """Every n-th photo in name order is held out; 0 holds out none."""
    test_list: Path | None = None
    """Text file with one photo name per line to hold out instead of every n-th."""
    downscale_factor: float | None = None
    """How many times smaller to look at the photos; for scene-distill's own methods only."""


class SceneDataParser(DataParser):
    """Reads the scene once and hands out its splits: 'train', and 'val' and 'test', which are the held-out views."""

    config: SceneDataParserConfig

    @cached_property
    def scene(self) -> Scene:
        """The scene at ``config.data``; raises `UserError` when there is none."""
        from scene_distill.data.load import load_scene

        return load_scene(self.config.data, test_every=self.config.test_every, test_list=self.config.test_list)

    def frames(self, split: str) -> tuple[Frame, ...]:
        """Frames of a split in name order; without held-out views, 'val' and 'test' are all of them."""
        return self.scene.train_frames if split == "train" else self.scene.test_frames or self.scene.frames

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """Photos and cameras of a split at the photos' own size, with the scene's points as seeds for splats.

        Poses are OpenGL's in the scene's world (transform identity, scale 1). Raises `UserError` when asked to shrink.
        """
        from scene_distill.core.errors import UserError
        from scene_distill.plugins.nerfstudio_cameras import cameras_for_nerfstudio

        if self.config.downscale_factor not in (None, 1):
            raise UserError("this method cannot use shrunk photos through scene-distill; leave out --downscale-factor")
        frames, points = self.frames(split), torch.from_numpy(self.scene.points).float()
        return DataparserOutputs(
            image_filenames=[frame.path for frame in frames],
            cameras=cameras_for_nerfstudio([frame.camera for frame in frames], torch.float32),
            alpha_color=torch.zeros(3),
            scene_box=SceneBox(aabb=torch.stack([points.amin(0), points.amax(0)])),
            metadata={"points3D_xyz": points, "points3D_rgb": torch.from_numpy(self.scene.colors)},
        )


scene_distill = DataParserSpecification(
    SceneDataParserConfig(), "COLMAP folders, transforms.json and folders of photos, in world frame and metric scale."
)
