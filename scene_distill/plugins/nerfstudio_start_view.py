"""Where nerfstudio's viewer begins: at the first photo, upright, with frusta that are seen from the next one.

Nerfstudio expects worlds of unit size around the origin; ours keep their place and their metres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import viser.transforms
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.viewer_elements import ViewerControl

if TYPE_CHECKING:
    from scene_distill.core.cameras import Camera
    from scene_distill.data.scene import Scene

FRUSTUM_SHARE = 0.25
"""Size of a drawn frustum in mean distances between photos."""


class StartView(ViewerControl):
    """Found by the viewer on the datamanager; places every browser that connects at the first training photo."""

    def __init__(self, scene: Scene) -> None:
        centers = np.stack([frame.camera.center for frame in scene.frames])
        self.camera: Camera = scene.train_frames[0].camera
        self.up = np.asarray(scene.up, float)
        self.spacing = float(np.linalg.norm(np.ptp(centers, axis=0))) / max(len(centers) ** 0.5, 1.0)

    def _setup(self, viewer: Any) -> None:
        """Called once by the viewer, before it draws the photos."""
        super()._setup(viewer)
        if viewer.config.camera_frustum_scale == ViewerConfig().camera_frustum_scale:
            viewer.config.camera_frustum_scale = FRUSTUM_SHARE * self.spacing * viewer_units()
        self.viser_server.scene.set_up_direction(self.up)
        self.viser_server.on_client_connect(self.place)

    def place(self, client: Any) -> None:
        """Move a browser's camera to the first training photo."""
        rotation = viser.transforms.SO3.from_matrix(self.camera.world_from_cam[:3, :3])
        with client.atomic():
            client.camera.position = self.camera.center * viewer_units()
            client.camera.wxyz = rotation.wxyz


def viewer_units() -> float:
    """Units of the viewer's page per unit of the scene."""
    from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

    return VISER_NERFSTUDIO_SCALE_RATIO
