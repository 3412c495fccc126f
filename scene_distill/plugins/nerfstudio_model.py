"""A trained scene as nerfstudio's `Model`: it renders and measures; training is not its business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter

from scene_distill.plugins.nerfstudio_cameras import camera_from_nerfstudio

if TYPE_CHECKING:
    from scene_distill.core.cameras import Camera
    from scene_distill.training.evaluation import TrainedScene


@dataclass
class SceneModelConfig(ModelConfig):
    """Which method's trained scenes the model holds."""

    _target: type = field(default_factory=lambda: SceneModel)
    """target class to instantiate"""
    method: str = ""
    """name of the method"""
    enable_collider: bool = False
    """without meaning here: there are no rays"""


class SceneModel(Model):
    """Holds one trained scene, of any size, swapped whole: a viewer's thread may look at it at any moment.

    ``scene`` is None until a checkpoint is loaded or training shows its first result; pictures are black until then.
    """

    config: SceneModelConfig
    scene: TrainedScene | None

    def populate_modules(self) -> None:
        """Nothing is made here: the scene comes whole, from a checkpoint or from training."""
        super().populate_modules()
        self.scene = None

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Pictures of a batch of one perspective camera, on the camera's device.

        rgb [H, W, 3] in [0, 1] on black, accumulation [H, W, 1], depth [H, W, 1]: distance along the pixel's ray in the
        scene's unit (nerfstudio's convention), 0 where nothing is. Pixels whose surface lies outside ``obb_box`` are
        blank.
        """
        with torch.no_grad():
            scene, ours = self.scene, camera_from_nerfstudio(camera)
            if scene is None:
                rgb, alpha, depth = (torch.zeros(ours.height, ours.width, channels) for channels in (3, 1, 1))
            else:
                rendering = scene.render(ours, with_depth=True)
                assert rendering.depth is not None
                rgb, alpha = rendering.image.clamp(0, 1), rendering.alpha[..., None]
                depth = rendering.depth[..., None] * _ray_length(ours)[..., None].to(alpha.device)
            outputs = {"rgb": rgb, "depth": depth, "accumulation": alpha}
            if obb_box is not None:
                points = _surface(ours, depth.cpu()).reshape(-1, 3).to(obb_box.R)
                inside = obb_box.within(points).reshape(depth.shape).to(depth.device)
                outputs = {name: picture * inside for name, picture in outputs.items()}
            return {name: picture.to(camera.device) for name, picture in outputs.items()}

    def get_outputs(self, ray_bundle: Cameras) -> dict[str, Tensor]:  # type: ignore[override]
        """The same as `get_outputs_for_camera`."""
        return self.get_outputs_for_camera(ray_bundle)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """psnr and ssim, raw, and both colour-corrected; and the photo beside the render."""
        from scene_distill.training.metrics import measure

        render, photo = outputs["rgb"].cpu(), batch["image"][..., :3].cpu()
        return measure(render, photo), {"img": torch.cat([photo, render], dim=1)}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The scene's tensors by the names in its file, none before there is a scene."""
        from scene_distill.plugins.nerfstudio_checkpoint import tensors_of

        state = kwargs.get("destination", {})
        if self.scene is not None:
            state |= {kwargs.get("prefix", "") + name: tensor for name, tensor in tensors_of(self.scene).items()}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take over a scene of any size from its tensors."""
        from scene_distill.methods import find_method
        from scene_distill.plugins.nerfstudio_checkpoint import scene_from

        self.scene = scene_from(state_dict, find_method(self.config.method))
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """None: our own engine trains."""
        return {}

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """None: our own engine trains."""
        return {}


def _rays(camera: Camera) -> Tensor:
    """Points [H, W, 3] on the plane one unit in front of the camera, in camera coordinates (OpenCV)."""
    x = (torch.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = (torch.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x)), torch.ones(len(y), len(x))], dim=-1)


def _ray_length(camera: Camera) -> Tensor:
    """Distance along the ray per unit of depth along the optical axis, [H, W]."""
    return _rays(camera).norm(dim=-1)


def _surface(camera: Camera, distance: Tensor) -> Tensor:
    """World points [H, W, 3] at ``distance`` [H, W, 1] along each pixel's ray."""
    rays = torch.nn.functional.normalize(_rays(camera), dim=-1) * distance
    pose = torch.from_numpy(camera.world_from_cam).float()
    return rays @ pose[:3, :3].T + pose[:3, 3]
