"""From anchors to pictures: decode the visible anchors for one camera, then splat."""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.gaussians import Gaussians
from scene_distill.nets.gaussian_decoder import GaussianDecoder
from scene_distill.renderers import ops
from scene_distill.representations.anchors import Anchors


def decode(anchors: Anchors, decoder: GaussianDecoder, visible: Tensor, camera: Camera) -> Gaussians:
    """The V*10 Gaussians of the visible anchors [V] (int64) for a camera, anchor by anchor, slot by slot.

    mean = p + O exp(s[:3]), scale = exp(s[3:]) sigmoid(u), quaternion normalised, opacity = tanh in (-1, 1) (not drawn
    when <= 0), colour = sigmoid (spec momentum_gs.md, section 1). Differentiable in the learned fields and the weights.
    """
    center = torch.as_tensor(camera.center, dtype=torch.float32, device=anchors.positions.device)
    means, scales, quats, opacities, colors = ops.decode_anchors(
        anchors.positions, anchors.features, anchors.offsets, anchors.log_scales, visible, center,
        list(decoder.weights),
    )  # fmt: skip
    return Gaussians(means, quats, scales, opacities, colors)
