"""Scenes and comparisons that the tests of splat formats share."""

import os
from pathlib import Path

import pytest
import torch

from scene_distill.core.conventions import SH_C0
from scene_distill.export.quantisation import unit_quaternions
from scene_distill.representations.splats import Splats

DATA = Path(os.environ.get("SCENE_DISTILL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "splats"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="splat files of the shared data set are not here")


def likely_splats(count, bases=16, seed=0):
    """Splats such as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.rand(count, 1, 3, generator=generator)
    rest = 0.2 * torch.randn(count, bases - 1, 3, generator=generator)
    return Splats(
        means=5 * torch.randn(count, 3, generator=generator),
        log_scales=0.7 * torch.randn(count, 3, generator=generator) - 3,
        quats=torch.randn(count, 4, generator=generator),
        opacity_logits=2 * torch.randn(count, generator=generator),
        sh=torch.cat([(colors - 0.5) / SH_C0, rest.clamp(-0.9, 0.9)], dim=1),
    )


def turns(found, expected):
    """Angle in radians [n] between the rotations of two scenes."""
    first, second = (unit_quaternions(quats.double().float()) for quats in (found, expected))
    return 2 * torch.minimum((first - second).norm(dim=1), (first + second).norm(dim=1))


def assert_close(found, expected, *, means, log_scales, opacities, colors, sh, turn):
    """Every number of two scenes in the same order lies within its tolerance."""
    assert len(found) == len(expected) and found.sh.shape == expected.sh.shape

    def worst(a, b):
        return float((a - b).abs().max()) if a.numel() else 0.0

    assert worst(found.means, expected.means) <= means
    assert worst(found.log_scales, expected.log_scales) <= log_scales
    assert worst(found.opacity_logits.sigmoid(), expected.opacity_logits.sigmoid()) <= opacities
    assert worst(SH_C0 * found.sh[:, 0], SH_C0 * expected.sh[:, 0]) <= colors
    assert worst(found.sh[:, 1:], expected.sh[:, 1:]) <= sh
    assert float(turns(found.quats, expected.quats).max()) <= turn
