"""What every picture of the viewer is made with: how it is coloured, and a depth as colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scene_distill.viewer.colormaps import colorised

RANGE_SAMPLES = 20_000
"""Pixels whose depths say what the range of the colours is."""


@dataclass(frozen=True)
class Look:
    """How layers are coloured: ``gain`` of differences and errors; ``depth_range_m`` (near, far), found in the picture
    when None. ``fine``: edges of meshes are smoothed, for pictures that are not drafts."""

    gain: float = 4.0
    depth_range_m: tuple[float, float] | None = None
    fine: bool = False


PLAIN = Look()


@dataclass(frozen=True, eq=False)
class Picture:
    """An image [H, W, 3] in [0, 1] and its legend: 'map' (a colour table), 'low' and 'high' (numbers) and 'unit';
    'classes' (names and colours); empty for colours."""

    image: Tensor
    legend: dict[str, Any] = field(default_factory=dict)


def depth_picture(depth: Tensor, covered: Tensor, span: tuple[float, float] | None) -> Picture:
    """Depths [H, W] along the view axis as colours where ``covered`` [H, W], from ``span`` (near, far) or `depth_range`
    of the picture.

    In 1/depth: near things have more detail, and the far range does not eat all the colours.
    """
    near, far = span or depth_range(depth[covered])
    place = (1.0 / near - 1.0 / depth.clamp_min(1e-6)) / max(1.0 / near - 1.0 / far, 1e-12)
    colors = colorised(place, "dusk") * covered[..., None]
    return Picture(colors, {"map": "dusk", "low": near, "high": far, "unit": "depth", "scale": "inverse"})


def depth_range(depths: Tensor) -> tuple[float, float]:
    """The 2nd and 98th percentile of depths [P] in metres; (1, 2) when there are none."""
    if len(depths) == 0:
        return 1.0, 2.0
    ordered = depths[:: -(-len(depths) // RANGE_SAMPLES)].float().sort().values
    near, far = (float(ordered[int(part * (len(ordered) - 1))]) for part in (0.02, 0.98))
    return near, max(far, near * 1.001)


def normals_picture(normals: Tensor, alpha: Tensor) -> Picture:
    """Unit normals [H, W, 3] as colours, x y z as red green blue, dimmed by the coverage [H, W]."""
    return Picture((0.5 + 0.5 * normals) * alpha[..., None], {"map": "normals", "unit": "world x y z"})


def coverage_picture(alpha: Tensor) -> Picture:
    """Coverage [H, W] as grey."""
    return Picture(alpha[..., None].expand(*alpha.shape, 3), {"map": "grey", "low": 0.0, "high": 1.0, "unit": ""})


def classes_legend(names: tuple[str, ...], colors: Tensor, counts: Tensor, most: int = 16) -> dict[str, Any]:
    """The legend of classes [C] with their colours [C, 3], the most frequent first; others are only counted."""
    order = torch.argsort(counts, descending=True, stable=True)[:most].tolist()
    shown = [
        {"name": names[i], "color": (colors[i] * 255).round().int().tolist(), "count": int(counts[i])} for i in order
    ]
    return {"map": "classes", "classes": shown, "more": max(len(names) - most, 0)}
