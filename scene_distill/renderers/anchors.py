"""From anchors to pictures: decode the visible anchors for one camera, then splat."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.gaussians import Gaussians
from scene_distill.core.stages import staged
from scene_distill.nets.gaussian_decoder import BANK, DISTANCE, HEADS, PARAMETERS, GaussianDecoder
from scene_distill.renderers import ops
from scene_distill.representations.anchors import Anchors


@staged("decode")
def decode(anchors: Anchors, decoder: GaussianDecoder, visible: Tensor, camera: Camera) -> Gaussians:
    """The V*10 Gaussians of the visible anchors [V] (int64) for a camera, anchor by anchor, slot by slot.

    mean = p + O exp(s[:3]), scale = exp(s[3:]) sigmoid(u), quaternion normalised, opacity = tanh in (-1, 1) (not drawn
    when <= 0), colour = sigmoid (spec momentum_gs.md, section 1). Differentiable in the learned fields and the weights.
    """
    center = torch.as_tensor(camera.center, dtype=torch.float32, device=anchors.positions.device)
    decoder = decoder.in_view(None)
    if decoder.find(BANK[0]) is not None:
        anchors, visible = _banked(anchors, decoder, visible, center)
    if any(name in decoder.names for name in DISTANCE):
        return _decode_with_distance(anchors.select(visible), decoder, center)
    means, scales, quats, opacities, colors = ops.decode_anchors(
        anchors.positions, anchors.features, anchors.offsets, anchors.log_scales, visible, center,
        list(decoder.weights[: len(PARAMETERS)]),
    )  # fmt: skip
    return Gaussians(means, quats, scales, opacities, colors)


def _directions(anchors: Anchors, center: Tensor) -> tuple[Tensor, Tensor]:
    """Unit viewing directions [V, 3] and the logarithm of the distances [V, 1]."""
    towards = anchors.positions - center
    distance = towards.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return towards / distance, distance.log()


def _banked(anchors: Anchors, decoder: GaussianDecoder, visible: Tensor, center: Tensor) -> tuple[Anchors, Tensor]:
    """The visible anchors with blended features, and their rows.

    The distance goes in as its logarithm: the papers' code takes scene units, which differ by orders of magnitude.
    """
    near = anchors.select(visible)
    w1, b1, w2, b2 = (weight for name in BANK if (weight := decoder.find(name)) is not None)
    inputs = torch.cat(_directions(near, center), dim=1)
    blend = torch.softmax(torch.relu(inputs @ w1.T + b1) @ w2.T + b2, dim=1)
    full = near.features
    versions = torch.stack((full[:, ::4].repeat(1, 4), full[:, ::2].repeat(1, 2), full), dim=1)
    features = (blend[..., None] * versions).sum(1)
    return replace(near, features=features), torch.arange(len(near), device=visible.device)


def _decode_with_distance(anchors: Anchors, decoder: GaussianDecoder, center: Tensor) -> Gaussians:
    """`decode` of all anchors by a decoder whose heads also see the distance: plain torch, several times slower."""
    direction, log_distance = _directions(anchors, center)
    inputs = torch.cat([anchors.features, direction], dim=1)
    outputs = []
    for index, head in enumerate(HEADS):
        w1, b1, w2, b2 = decoder.weights[4 * index : 4 * index + 4]
        hidden = inputs @ w1.T + b1
        column = decoder.find(f"{head}.distance")
        hidden = hidden if column is None else hidden + log_distance * column
        outputs.append(torch.relu(hidden) @ w2.T + b2)
    opacity, covariance, color = outputs[0], outputs[1].reshape(len(anchors), -1, 7), outputs[2]
    scales = torch.exp(anchors.log_scales[:, None, 3:]) * torch.sigmoid(covariance[..., :3])
    means = anchors.positions[:, None] + anchors.offsets * torch.exp(anchors.log_scales[:, None, :3])
    quats = torch.nn.functional.normalize(covariance[..., 3:], dim=-1)
    return Gaussians(
        means.reshape(-1, 3), quats.reshape(-1, 4), scales.reshape(-1, 3), torch.tanh(opacity).reshape(-1),
        torch.sigmoid(color).reshape(-1, 3),
    )  # fmt: skip
