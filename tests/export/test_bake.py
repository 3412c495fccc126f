from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scene_distill.core import spherical_harmonics
from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.export.bake import BakeSettings, bake_report, bake_sh

SLOTS = 10


def cameras_around(count, radius=6.0, seed=0):
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(count, 3))
    centers = radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    up = np.array([0.0, 0.0, 1.0])
    return [Camera(100, 100, 70.0, 70.0, 50.0, 50.0, look_at(center, np.zeros(3), up)) for center in centers]


class KnownField:
    """Anchors whose slots have colours from known harmonics and other attributes that change with the view as told."""

    def __init__(self, anchors, bases=16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        count = anchors * SLOTS
        self.positions = torch.randn(anchors, 3, generator=generator)
        self.means = self.positions.repeat_interleave(SLOTS, 0) + 0.3 * torch.randn(count, 3, generator=generator)
        self.sh = 0.2 * torch.randn(count, bases, 3, generator=generator)
        self.quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1)
        self.scales = torch.rand(count, 3, generator=generator) * 0.1 + 0.01
        self.opacities = torch.rand(count, generator=generator) * 0.8 + 0.1
        self.calls = []

    def change(self, center, gaussians):
        return gaussians

    def decode(self, center, anchors):
        self.calls.append((tuple(center), anchors))
        slots = (anchors[:, None] * SLOTS + torch.arange(SLOTS)).flatten()
        means = self.means[slots]
        directions = torch.nn.functional.normalize(means.double() - torch.from_numpy(center), dim=1).float()
        colors = spherical_harmonics.evaluate(self.sh[slots], directions)
        return self.change(
            center, Gaussians(means, self.quats[slots], self.scales[slots], self.opacities[slots], colors)
        )


def test_known_harmonics_come_back():
    field = KnownField(anchors=8)
    settings = BakeSettings(views_per_anchor=60, ridge=0.0, slots_in_memory=40)
    baked = bake_sh(field.decode, field.positions, cameras_around(60), settings)
    assert len(baked) == 80
    torch.testing.assert_close(baked.sh, field.sh, atol=1e-4, rtol=0)
    torch.testing.assert_close(baked.means, field.means)
    torch.testing.assert_close(baked.log_scales.exp(), field.scales, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(baked.opacity_logits.sigmoid(), field.opacities, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close((baked.quats * field.quats).sum(1).abs(), torch.ones(80))


def test_chunks_do_not_change_the_result():
    field, cameras = KnownField(anchors=4), cameras_around(12)
    whole = bake_sh(field.decode, field.positions, cameras, BakeSettings())
    chunks = bake_sh(field.decode, field.positions, cameras, BakeSettings(slots_in_memory=1))
    torch.testing.assert_close(whole.sh, chunks.sh)
    assert torch.equal(whole.means, chunks.means)


def test_colours_from_few_views_stay_near_what_was_seen():
    """Three views cannot fix sixteen coefficients; the smoothness term keeps unseen directions from shouting."""
    field = KnownField(anchors=20)
    baked = bake_sh(field.decode, field.positions, cameras_around(3))
    unseen = cameras_around(40, seed=5)
    colors = torch.stack([baked.gaussians(camera).features for camera in unseen])
    seen = torch.cat([field.decode(camera.center, torch.arange(20)).features for camera in cameras_around(3)])
    assert colors.max() < seen.max() + 0.3 and (colors - 0.5).std() < (seen - 0.5).std()


def test_constant_colours_are_kept_by_the_ridge():
    field = KnownField(anchors=5, bases=1)
    baked = bake_sh(field.decode, field.positions, cameras_around(4), BakeSettings(ridge=10.0))
    torch.testing.assert_close(baked.sh[:, :1], field.sh, atol=1e-4, rtol=0)
    assert baked.sh[:, 1:].abs().max() < 1e-4


def test_only_the_nearest_cameras_that_see_an_anchor_are_asked():
    field = KnownField(anchors=1)
    field.positions[:] = 0
    up = np.array([0.0, 0.0, 1.0])

    def camera(x, target):
        return Camera(100, 100, 70.0, 70.0, 50.0, 50.0, look_at(np.array([x, 0.0, 0]), np.array(target, float), up))

    away, far, near, nearest = camera(1, [2, 0, 0]), camera(9, [0, 0, 0]), camera(5, [0, 0, 0]), camera(-3, [0, 0, 0])
    aside = camera(2, [2, 5, 0])
    field.calls.clear()
    bake_sh(field.decode, field.positions, [away, far, near, nearest, aside], BakeSettings(views_per_anchor=2))
    asked = {center[0] for center, anchors in field.calls[1:]}  # the first finds the number of slots
    assert asked == {5.0, -3.0}


def test_view_dependent_attributes_are_averaged():
    field = KnownField(anchors=4)

    def change(center, gaussians):
        right = center[0] > 0
        sign = -1.0 if right else 1.0  # the same rotation, written with the other sign
        return Gaussians(
            gaussians.means,
            sign * gaussians.quats,
            gaussians.scales * (4.0 if right else 1.0),
            torch.full_like(gaussians.opacities, 0.6 if right else 0.2),
            gaussians.features,
        )

    field.change = change
    up = np.array([0.0, 0.0, 1.0])
    cameras = [
        Camera(100, 100, 40.0, 40.0, 50.0, 50.0, look_at(np.array([x, 0.1, 0.2]), np.zeros(3), up)) for x in (-8, 8)
    ]
    baked = bake_sh(field.decode, field.positions, cameras)
    torch.testing.assert_close(baked.opacity_logits.sigmoid(), torch.full((40,), 0.4))
    torch.testing.assert_close(baked.log_scales.exp(), field.scales * 4**0.75, rtol=1e-4, atol=0)
    torch.testing.assert_close((baked.quats * field.quats).sum(1).abs(), torch.ones(40))


def test_slots_that_are_nowhere_drawn_are_left_out():
    field = KnownField(anchors=6)
    field.opacities[::2] = -0.5
    field.opacities[1] = 0.001
    baked = bake_sh(field.decode, field.positions, cameras_around(10))
    assert torch.equal(baked.means, field.means[3::2])
    field.opacities[:] = 0.0
    with pytest.raises(UserError, match="no splats"):
        bake_sh(field.decode, field.positions, cameras_around(10))


def test_nothing_to_bake_is_one_sentence():
    field = KnownField(anchors=1)
    for positions, cameras in ((field.positions[:0], cameras_around(2)), (field.positions, [])):
        with pytest.raises(UserError, match="nothing to bake"):
            bake_sh(field.decode, positions, cameras)


def test_report_measures_the_bake_and_what_it_costs():
    photo = torch.full((8, 8, 3), 0.5)
    views = [(SimpleNamespace(offset=offset), photo) for offset in (0.01, 0.1)]
    report = bake_report(lambda camera: photo + camera.offset, lambda camera: photo + 2 * camera.offset, views)
    assert report.views == 2
    assert report.neural_psnr == pytest.approx((40 + 20) / 2, abs=1e-3)
    assert report.baked_to_neural_psnr == pytest.approx(30, abs=1e-3)
    assert report.psnr_loss == pytest.approx(20 * np.log10(2), abs=1e-3)
    with pytest.raises(ValueError):
        bake_report(lambda camera: photo, lambda camera: photo, [])
