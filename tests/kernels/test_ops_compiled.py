"""torch's own view of the ops: opcheck of every schema on the CPU, and functions of them under torch.compile."""

from __future__ import annotations

import pytest
import torch
from kernel_scenes import random_scene

from scene_distill.renderers import ops

SIZE = (33, 20)


def leaves():
    return random_scene(40, *SIZE).single()


def splats():
    """means2d, conics, opacities2d, features, background and the tile lists of a small scene."""
    world = leaves()
    means2d, conics, depths, opacities2d, extents = ops.project(*world[:4], world[6], world[7], *SIZE)
    lists = ops.bin(means2d, conics, opacities2d, depths, extents, *SIZE)
    return means2d, conics, opacities2d, depths, extents, lists


def project_inputs():
    world = leaves()
    given = (*world[:4], world[6], world[7], *SIZE, True)
    found = [t.detach() for t in ops.project(*given)]
    grads = [torch.rand_like(t) for t in found[:4]]
    backward = (*(t.detach() for t in given[:6]), *SIZE, True, found[4], *grads, True)
    return {
        "project": given,
        "project_backward": backward,
        "project_orthographic": given,
        "project_orthographic_backward": backward,
    }


def raster_inputs():
    world = leaves()
    means2d, conics, opacities2d, depths, extents, lists = (
        t.detach() if isinstance(t, torch.Tensor) else t for t in splats()
    )
    drawn = [t.clone().requires_grad_() for t in (means2d, conics, opacities2d)]
    given = (*drawn, world[4], world[5], *lists, *SIZE)
    image, alpha = (t.detach() for t in ops.raster(*given))
    plain = tuple(t.detach() if isinstance(t, torch.Tensor) else t for t in given[:7])
    grads = (torch.rand_like(image), torch.rand_like(alpha))
    return {
        "bin": (means2d, conics, opacities2d, depths, extents, *SIZE),
        "raster": given,
        "raster_backward": (*plain, image, alpha, *grads),
        "raster_probed": (drawn[0], torch.zeros_like(means2d, requires_grad=True), *given[1:], 0.5),
        "raster_probed_backward": (*plain, image, alpha, *grads, 0.5, True),
        "raster_contributions": (*plain[:3], *lists, *SIZE),
        "raster_median": (*plain[:3], *lists, *SIZE),
    }


def loss_inputs():
    image, target = torch.rand(20, 33, 3, requires_grad=True), torch.rand(20, 33, 3)
    g = torch.ones(())
    return {
        "l1_ssim": (image, target, True),
        "l1_ssim_backward": (image.detach(), target, torch.rand(20, 33, 3), g, g),
        "adam_": (*(torch.rand(5, 3) for _ in range(4)), 0.1, 0.9, 0.999, 1e-15, 1, torch.ones(5, dtype=torch.uint8)),
    }


def harmonics_inputs():
    means, coefficients, center = (torch.randn(shape, requires_grad=True) for shape in ((9, 3), (9, 16, 3), (3,)))
    fixed = (means.detach(), coefficients.detach(), center.detach(), 3, None)
    return {
        "spherical_harmonics": (means, coefficients, center, 3, None),
        "spherical_harmonics_backward": (*fixed, torch.rand(9, 3), torch.rand(9, 3), True),
    }


def stored_inputs():
    stored = [torch.randn(shape, requires_grad=True) for shape in ((9, 3), (9, 4), (9, 3), (9,), (9, 16, 3))]
    camera, view = (torch.eye(4), torch.tensor([30.0, 30.0, 16.0, 10.0])), (*SIZE, 3, True)
    plain = [t.detach() for t in stored]
    found = torch.ops.scene_distill.project_splats(*plain, *camera, *view)
    grads = [torch.rand_like(t) for t in (*found[:4], found[5])]
    rows, moments = torch.tensor([4, 1]), [torch.rand(9, 16, 3) for _ in range(2)]
    return {
        "project_splats": (*stored, *camera, *view),
        "project_splats_backward": (*plain, *camera, *view, found[4], found[5], *grads),
        "take_rows": (plain[4], rows),
        "adam_rows_": (plain[4], torch.rand(2, 16, 3), *moments, rows, 0.1, 0.9, 0.999, 1e-15, 1, 3, 0.2),
    }


def anchor_inputs():
    fields = [torch.randn(shape, requires_grad=True) for shape in ((6, 3), (6, 32), (6, 10, 3), (6, 6))]
    shapes = [shape for out in (10, 70, 30) for shape in ((32, 35), (32,), (out, 32), (out,))]
    weights = [torch.randn(shape, requires_grad=True) for shape in shapes]
    plain, kept = [t.detach() for t in fields], (torch.tensor([4, 1]), torch.zeros(3))
    grads = [torch.rand(20, 3), None, torch.rand(20, 4), torch.rand(20), torch.rand(20, 3)]
    slots = [[torch.rand(60, 3), torch.randn(60, 4), torch.rand(60), torch.rand(60, 3)] for _ in range(2)]
    return {
        "decode_anchors": (*fields, *kept, weights),
        "decode_anchors_backward": (*plain, *kept, [w.detach() for w in weights], grads),
        "momentum_consistency": ([t.requires_grad_() for t in slots[0]], slots[1]),
        "momentum_consistency_backward": ([t.detach() for t in slots[0]], slots[1], torch.ones(())),
    }


GROUPS = (project_inputs, raster_inputs, loss_inputs, harmonics_inputs, stored_inputs, anchor_inputs)


def test_every_schema_is_checked():
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("scene_distill::")}
    assert schemas == {f"scene_distill::{name}" for inputs in GROUPS for name in inputs()}


@pytest.mark.parametrize("inputs", GROUPS)
def test_opcheck(inputs):
    """Schemas tell the truth about mutation and aliasing, fake kernels about shapes, formulas about registration."""
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for name, arguments in inputs().items():
        torch.library.opcheck(getattr(torch.ops.scene_distill, name).default, arguments, test_utils=checks)


def picture_loss(means, quats, scales, opacities, features, background, pose, intrinsics, target):
    means2d, conics, depths, opacities2d, extents = ops.project(
        means, quats, scales, opacities, pose, intrinsics, *SIZE
    )
    lists = ops.bin(means2d, conics, opacities2d, depths, extents, *SIZE)
    image, alpha = ops.raster(means2d, conics, opacities2d, features, background, *lists, *SIZE)
    l1, ssim = ops.l1_ssim(image, target)
    return 0.8 * l1 + 0.2 * (1 - ssim) + 0.1 * alpha.mean()


def test_a_training_loss_compiles_into_one_graph():
    """From Gaussians to the loss without a graph break: the same value and the same gradients."""
    target = torch.rand(20, 33, 3, generator=torch.Generator().manual_seed(1))
    compiled = torch.compile(picture_loss, backend="aot_eager", fullgraph=True)
    results = []
    for loss_of in (picture_loss, compiled):
        world = leaves()
        loss = loss_of(*world, target)
        results.append((loss.detach(), *torch.autograd.grad(loss, world)))
    for eager, graph in zip(*results, strict=True):
        assert torch.equal(eager, graph)
