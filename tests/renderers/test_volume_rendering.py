"""Ray marching of a radiance field against integrals that are known, and against marching that skips nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes_renderer import orbit_camera
from scene_distill.renderers.rays import Rays, camera_rays, span_in_cube
from scene_distill.renderers.volume import March, render_rays, render_volume, transmittance_weights, visible_samples
from scene_distill.representations.radiance_field import (
    FieldShape,
    RadianceField,
    density_of,
    look_up,
    raw_of_density,
    with_normals,
)

SHAPE = FieldShape(resolutions=(4, 9, 17), radius=1.0, density_scale=10.0)
EVERYTHING = March(0.05, negligible=0.0, unseen=0.0)


def random_field(seed: int, shape: FieldShape = SHAPE) -> RadianceField:
    generator = torch.Generator().manual_seed(seed)
    return RadianceField(
        shape, tuple(torch.randn(r, r, r, 4, generator=generator, dtype=torch.float64) for r in shape.resolutions)
    )


def test_light_is_neither_made_nor_lost() -> None:
    optical = torch.rand(7, 20, dtype=torch.float64) * 3
    weights, left = transmittance_weights(optical)
    torch.testing.assert_close(weights.sum(1) + left, torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(left, torch.exp(-optical.sum(1)))
    split = torch.stack([optical * 0.3, optical * 0.7], dim=2).reshape(7, 40)
    finer, still = transmittance_weights(split)
    torch.testing.assert_close(finer.reshape(7, 20, 2).sum(2), weights)
    torch.testing.assert_close(still, left)
    wall = torch.tensor([[0.0, 1e6, 1e6]], dtype=torch.float64)
    torch.testing.assert_close(transmittance_weights(wall)[0], torch.tensor([[0.0, 1, 0]], dtype=torch.float64))
    assert torch.autograd.gradcheck(transmittance_weights, optical[:2, :5].clone().requires_grad_())


def test_a_homogeneous_cube_darkens_as_beer_and_lambert_say() -> None:
    shape = FieldShape(resolutions=(3,), radius=0.5, density_scale=10.0, blob_scale=0.0)
    table = torch.zeros(3, 3, 3, 4, dtype=torch.float64)
    table[..., 0] = raw_of_density(2.5, shape)
    torch.testing.assert_close(density_of(table[..., 0], shape), torch.full((3, 3, 3), 2.5, dtype=torch.float64))
    rays = Rays(torch.tensor([[-3.0, 0.1, 0.2], [-3.0, 2.0, 0.0]]).double(), torch.tensor([[1.0, 0, 0]] * 2).double())
    seen = render_rays(table, shape, rays, March(0.01))
    assert float(seen.opacity[0]) == pytest.approx(1 - math.exp(-2.5), abs=1e-3)
    assert float(seen.opacity[1]) == 0
    torch.testing.assert_close(seen.over(torch.ones(3))[1], torch.ones(3, dtype=torch.float64))
    expected = sum(math.exp(-2.5 * 0.01 * i) * -math.expm1(-0.025) * (2.5 + 0.01 * (i + 0.5)) for i in range(100))
    assert float(seen.depth[0]) == pytest.approx(expected, abs=2e-3)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31))
def test_what_is_skipped_changes_a_pixel_by_no_more_than_promised(seed: int) -> None:
    table = random_field(seed).fused()
    cameras = [orbit_camera(8, 40.0 * k, 20.0) for k in range(2)]
    full = render_volume(table, SHAPE, cameras, EVERYTHING)
    march = March(0.05, negligible=0.5, unseen=0.01)
    quick = render_volume(table, SHAPE, cameras, march)
    assert len(quick.weights) < len(full.weights)
    promised = 0.5 * 2 * math.sqrt(3) + 0.01
    assert float((full.opacity - quick.opacity).abs().max()) <= promised
    assert float((full.colors - quick.colors).abs().max()) <= promised
    exact = render_volume(table, SHAPE, cameras, March(0.05, negligible=0.0, unseen=1e-4))
    assert float((full.colors - exact.colors).abs().max()) <= 1e-4


def test_marching_is_the_plain_sum_over_every_sample() -> None:
    """The oracle: a loop over rays and samples, every term written out."""
    table = random_field(5).fused()
    rays = camera_rays([orbit_camera(4, 30.0, 25.0)], torch.float64)
    seen = render_rays(table, SHAPE, rays, EVERYTHING)
    enter, leave = span_in_cube(rays, SHAPE.radius)
    for ray in range(len(rays)):
        light, color = 1.0, torch.zeros(3, dtype=torch.float64)
        for k in range(max(0, math.ceil((float(leave[ray]) - float(enter[ray])) / 0.05))):
            t = float(enter[ray]) + (k + 0.5) * 0.05
            if t >= float(leave[ray]):
                break
            values = look_up(table, (rays.origins + t * rays.directions)[ray : ray + 1], SHAPE.radius)[0]
            alpha = 1 - math.exp(-float(density_of(values[0], SHAPE)) * 0.05)
            color += light * alpha * values[1:].sigmoid()
            light *= 1 - alpha
        torch.testing.assert_close(seen.colors[ray], color)
        assert float(seen.opacity[ray]) == pytest.approx(1 - light, abs=1e-12)


def test_gradients_of_levels_are_those_of_finite_differences() -> None:
    shape = FieldShape(resolutions=(3, 5), radius=1.0, density_scale=5.0)
    field = random_field(2, shape).trainable()
    cameras = [orbit_camera(4, 10.0, 20.0)]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, 3, generator=generator, dtype=torch.float64)

    def total(levels: tuple[torch.Tensor, ...]) -> torch.Tensor:
        seen = render_volume(RadianceField(shape, levels).fused(), shape, cameras, March(0.1, 0.0, 0.0))
        return (seen.over(torch.full((3,), 0.3, dtype=torch.float64)) * weights).sum()

    gradients = torch.autograd.grad(total(field.levels), field.levels)
    ways = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in field.levels]
    ends = [
        float(total(tuple(x.detach() + s * 1e-6 * w for x, w in zip(field.levels, ways, strict=True)))) for s in (1, -1)
    ]
    predicted = sum(float((g * w).sum()) for g, w in zip(gradients, ways, strict=True))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(predicted, rel=1e-6)


def test_look_up_is_trilinear_and_differentiable_in_points() -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(5, 5, 5, 3, generator=generator, dtype=torch.float64)
    points = torch.rand(40, 3, generator=generator, dtype=torch.float64) * 2.4 - 1.2
    expected = torch.nn.functional.grid_sample(
        table.permute(3, 0, 1, 2)[None], points[None, None, None] / 1.1, padding_mode="border", align_corners=True
    )[0, :, 0, 0].T
    torch.testing.assert_close(look_up(table, points, 1.1), expected)
    inside = (points[:4] * 0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, p: look_up(t, p, 1.1), (table.requires_grad_(), inside))


def test_normals_of_a_ball_point_outwards() -> None:
    shape = FieldShape(resolutions=(33,), radius=1.0)
    table = with_normals(RadianceField.empty(shape, torch.float64).fused(), shape)
    points = torch.tensor([[0.5, 0, 0], [0, -0.6, 0], [0.3, 0.3, 0.4]], dtype=torch.float64)
    normals = torch.nn.functional.normalize(look_up(table, points, 1.0)[:, 4:], dim=1)
    assert float((normals * torch.nn.functional.normalize(points, dim=1)).sum(1).min()) > 0.999


def test_levels_add_up_and_can_be_left_out() -> None:
    field = random_field(3)
    coarse = field.fused(1)
    alone = RadianceField(SHAPE, (field.levels[0], *(torch.zeros_like(level) for level in field.levels[1:])))
    torch.testing.assert_close(coarse, alone.fused())
    assert not torch.allclose(coarse, field.fused())


def test_same_rays_and_jitter_give_the_same_bytes() -> None:
    table, cameras = random_field(4).fused().float(), [orbit_camera(8, 0.0, 10.0)]
    pictures = [
        render_volume(table, SHAPE, cameras, March(0.05), torch.Generator().manual_seed(k)).colors for k in (1, 1, 2)
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_rays_that_miss_see_nothing_and_a_start_inside_enters_at_once() -> None:
    away = Rays(torch.tensor([[0.0, 0, 3]]), torch.tensor([[0.0, 0, 1]]))
    assert visible_samples(random_field(0).fused().float(), SHAPE, away, March(0.1), None)[2] == 0
    assert float(render_rays(random_field(0).fused().float(), SHAPE, away, March(0.1)).opacity) == 0
    enter, leave = span_in_cube(Rays(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])), 1.0)
    assert (float(enter), float(leave)) == (0.0, 1.0)


@pytest.mark.parametrize("broken", [(), (8, 8), (16, 8), (1, 4)])
def test_levels_that_do_not_rise_are_refused(broken: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="rise from at least 2"):
        FieldShape(resolutions=broken)
