"""The op set as torch sees it: schemas, fake kernels, autograd registration, and the choice of backend."""

from __future__ import annotations

import pytest
import torch
from kernel_scenes import draw_native, random_scene

from scene_distill.core.errors import UserError
from scene_distill.renderers import native, ops


def small_inputs() -> dict[str, tuple]:
    scene = random_scene(40, 33, 20)
    leaves = scene.single()
    means2d, conics, depths, opacities2d, extents = (
        t.detach() for t in ops.project(*leaves[:4], leaves[6], leaves[7], *scene.size)
    )
    lists = ops.bin(means2d, conics, opacities2d, depths, extents, *scene.size)
    drawn = (*(t.requires_grad_() for t in (means2d, conics, opacities2d)), leaves[4], leaves[5])
    image = torch.rand(20, 33, 3)
    return {
        "project": (*leaves[:4], leaves[6], leaves[7], *scene.size, True),
        "raster": (*drawn, *lists, *scene.size),
        "l1_ssim": (image.clone().requires_grad_(), image.flip(0).contiguous(), True),
    }


@pytest.mark.parametrize("name", ["project", "raster", "l1_ssim"])
def test_torch_accepts_the_registration(name):
    op = getattr(torch.ops.scene_distill, name).default
    torch.library.opcheck(
        op, small_inputs()[name], test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


def test_the_list_lengths_are_unknown_to_tracing():
    with torch._subclasses.FakeTensorMode(shape_env=torch.fx.experimental.symbolic_shapes.ShapeEnv()):
        screen = (torch.empty(9, 2), torch.empty(9, 3), torch.empty(9), torch.empty(9), torch.empty(9, 2))
        offsets, pairs = torch.ops.scene_distill.bin(*screen, 33, 20)
    assert offsets.shape == (7,) and not isinstance(pairs.shape[0], int)


def test_the_reference_backend_draws_the_same_picture(monkeypatch):
    scene = random_scene(40, 33, 20)
    leaves = scene.single()
    image, _ = draw_native(leaves, scene.size)
    gradients = torch.autograd.grad(image.square().sum(), leaves)
    monkeypatch.setenv("SCENE_DISTILL_BACKEND", "reference")
    other, _ = draw_native(leaves, scene.size)
    other_gradients = torch.autograd.grad(other.square().sum(), leaves)
    assert (image - other).abs().max() < 2e-3  # float32 at the cuts
    for a, b in zip(gradients, other_gradients, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_an_instruction_set_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="sse9 cannot run here"):
        native.load("sse9")


def test_threads_can_be_chosen():
    try:
        native.set_threads(3)
        assert native.get_threads() == 3
        with pytest.raises(UserError, match="at least one thread"):
            native.set_threads(0)
    finally:
        native.set_threads(native.available_cores())
    native.release_scratch()


def test_a_forked_child_draws_too():
    import multiprocessing

    scene = random_scene(30, 32, 32)
    expected = draw_native(tuple(leaf.float() for leaf in scene.leaves), scene.size)[0]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(
        target=lambda: queue.put(
            float(draw_native(tuple(leaf.float() for leaf in scene.leaves), scene.size)[0].double().sum())
        )
    )
    child.start()
    found = queue.get(timeout=20)
    child.join(timeout=20)
    assert found == float(expected.double().sum())
