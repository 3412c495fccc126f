"""Every version of gsplat by its recorded signatures: the stand-ins for it, and our backend that calls it."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from gsplat_surfaces import SURFACES, fake, function

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.plugins import gsplat as plugin
from scene_distill.renderers import gsplat as backend
from scene_distill.renderers import splat

SIZE = (50, 37)
LENS = torch.tensor([45.0, 44.0, 24.0, 18.5])
VERSIONS = list(SURFACES)


@pytest.fixture(params=VERSIONS)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """gsplat of one version, whose GPU is our stand-in."""
    made = fake(monkeypatch, request.param)
    plugin.install()
    monkeypatch.setattr(backend, "DEVICES", ("cuda", "cpu"))
    return made


def gaussians(count: int = 120, channels: int = 3) -> Gaussians:
    made = torch.Generator().manual_seed(7)
    rand, randn = (lambda *s: torch.rand(s, generator=made)), (lambda *s: torch.randn(s, generator=made))
    means = torch.cat([randn(count, 2), 1.5 + 3 * rand(count, 1)], dim=1)
    leaves = (means, randn(count, 4), 0.03 + 0.1 * rand(count, 3), 0.05 + 0.6 * rand(count), rand(count, channels))
    return Gaussians(*(leaf.requires_grad_() for leaf in leaves))


def pose() -> torch.Tensor:
    turned = torch.eye(4)
    turned[:3, :3] = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.1, 0.2], [0.1, 0, 0.05], [-0.2, -0.05, 0]]))
    return turned.requires_grad_()


def test_the_table_is_that_of_the_installed_gsplat() -> None:
    gsplat = pytest.importorskip("gsplat")
    plugin.uninstall()
    recorded = SURFACES.get(gsplat.__version__)
    if recorded is None:
        pytest.skip(f"gsplat {gsplat.__version__} is not in the table")
    for path, parameters in recorded.items():
        module, _, name = f"gsplat.{path}".rpartition(".")
        real = inspect.signature(getattr(__import__(module, fromlist=[name]), name)).parameters.values()
        ours = inspect.signature(function(path, parameters)).parameters.values()
        assert [(p.name, p.default) for p in real] == [(p.name, p.default) for p in ours], path


@pytest.mark.parametrize(
    ("options", "antialiased", "channels"),
    [
        (splat.DrawOptions(backend="gsplat"), False, 3),
        (splat.DrawOptions(backend="gsplat", absolute_gradients=True), True, 5),
        (splat.DrawOptions(backend="gsplat", orthographic=True), False, 40),
    ],
)
def test_the_backend_draws_and_learns_like_our_kernels(package, options, antialiased: bool, channels: int) -> None:
    background, found = torch.rand(channels), []
    lens = LENS if not options.orthographic else torch.tensor([12.0, 12.0, 24.0, 18.5])
    weights = torch.rand(SIZE[1], SIZE[0], channels)
    for backend_name in ("gsplat", "native"):
        world, camera = gaussians(channels=channels), pose()
        options = splat.DrawOptions(**(vars(options) | {"backend": backend_name}))
        drawn = splat.render_from(
            world, camera, lens, SIZE, background=background, with_depth=True, antialiased=antialiased, options=options
        )
        drawn.means2d.retain_grad()
        ((drawn.image * weights).sum() + drawn.depth.sum()).backward()
        found.append((drawn, world, camera))
    (theirs, their_world, their_camera), (ours, our_world, our_camera) = found
    assert theirs.image.shape == ours.image.shape and theirs.depth.shape == ours.depth.shape
    # gsplat's lists end at 3 or 3.33 sigma, so faint rims are missing and depth changes where little is drawn.
    assert (theirs.image - ours.image).abs().mean() < 2e-3 and (theirs.alpha - ours.alpha).abs().max() < 0.05
    assert (theirs.depth - ours.depth).abs().median() < 1e-3
    seen = (theirs.extents > 0).all(-1)
    assert (seen == (ours.extents > 0).all(-1)).float().mean() > 0.95 and seen.sum() > 30
    for mine, other in [
        (ours.means2d.grad, theirs.means2d.grad), (our_camera.grad, their_camera.grad),
        *((getattr(our_world, name).grad, getattr(their_world, name).grad)
          for name in ("means", "quats", "scales", "opacities", "features")),
        *([(ours.probe.grad, theirs.probe.grad)] if options.absolute_gradients else []),
    ]:  # fmt: skip
        assert torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.98


def test_what_gsplat_cannot_do_is_refused(package, monkeypatch: pytest.MonkeyPatch) -> None:
    world, camera, mask = gaussians(), pose(), torch.ones(SIZE[1], SIZE[0], dtype=torch.bool)
    for words, lens, sentence in (
        ({"mask": mask}, LENS, "a mask of pixels"),
        ({"gradient_bound": 0.1}, LENS, "clipped pixel gradients"),
        ({"median_depth": True}, LENS, "the median depth"),
        ({}, LENS.clone().requires_grad_(), "gradients of the intrinsics"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence) + ".+ own kernels"):
            splat.render_from(world, camera, lens, SIZE, options=splat.DrawOptions(backend="gsplat", **words))
    view = Camera(*SIZE, *LENS.tolist(), np.eye(4))
    with pytest.raises(UserError, match="gsplat cannot give the contributions of single Gaussians"):
        splat.contributions(world, view, options=splat.DrawOptions(backend="gsplat"))
    with pytest.raises(UserError, match="absolute gradients of at most 32 channels, not 40"):
        splat.render(gaussians(channels=40), view, options=splat.DrawOptions(backend="gsplat", absolute_gradients=True))
    monkeypatch.setattr(backend, "DEVICES", ("cuda",))
    with pytest.raises(UserError, match="on a GPU, these are on the cpu"):
        splat.render_from(world, camera, LENS, SIZE, options=splat.DrawOptions(backend="gsplat"))


def test_the_backend_is_asked_for_by_name_or_by_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCENE_DISTILL_BACKEND", raising=False)
    assert not backend.asked(None) and backend.asked("gsplat")
    monkeypatch.setenv("SCENE_DISTILL_BACKEND", "gsplat")
    assert backend.asked(None) and not backend.asked("native")
    with pytest.raises(UserError, match="these are on the cpu"):
        splat.render_from(gaussians(), pose(), LENS, SIZE)
    monkeypatch.setenv("SCENE_DISTILL_BACKEND", "metal")
    with pytest.raises(UserError, match="no rendering backend 'metal' here; choose one of native, reference, gsplat"):
        splat.render_from(gaussians(), pose(), LENS, SIZE)


def test_a_gsplat_of_the_future_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "1.6.0").__version__ = "1.7.0"
    with pytest.raises(UserError, match=r"gsplat 1\.7\.0 is installed; the backend knows 1\.4, 1\.5 and 1\.6"):
        backend.load()


def test_the_stand_in_answers_in_the_layout_of_the_version(package) -> None:
    world, new = gaussians(), package.__version__ >= "1.5"
    scene = {"means": world.means, "quats": world.quats, "scales": world.scales}
    views, lens = pose()[None].repeat(2, 1, 1), torch.tensor([[[45.0, 0, 24], [0, 44, 18.5], [0, 0, 1]]] * 2)
    _, _, meta = package.rasterization(
        **scene, opacities=world.opacities, colors=world.features, viewmats=views, Ks=lens, width=SIZE[0],
        height=SIZE[1],
    )  # fmt: skip
    assert meta["radii"].shape == (*meta["depths"].shape, *([2] if new else []))
    assert ("batch_ids" in meta) == new == ("n_batches" in meta)
    packed = package.fully_fused_projection(covars=None, **scene, viewmats=views, Ks=lens, width=SIZE[0],
                                            height=SIZE[1], packed=True)  # fmt: skip
    assert len(packed) == {"1.4.0": 7, "1.5.3": 8, "1.6.0": 9}[package.__version__]
    if package.__version__ == "1.6.0":
        camera_ids, pointers = packed[1], packed[3]
        assert pointers.tolist() == [0, int((camera_ids == 0).sum()), len(camera_ids)]


def test_words_of_later_versions_are_refused_or_do_nothing(package) -> None:
    if package.__version__ == "1.4.0":
        return
    world = gaussians()
    words = {"means": world.means, "quats": world.quats, "scales": world.scales, "opacities": world.opacities,
             "colors": world.features, "viewmats": torch.eye(4)[None], "Ks": torch.eye(3)[None] * 40, "width": 32,
             "height": 32}  # fmt: skip
    package.rasterization(**words, segmented=True)
    for refused in ({"with_ut": True}, {"radial_coeffs": torch.zeros(1, 4)}, {"distributed": True}):
        with pytest.raises(UserError, match=f"gsplat's rasterization cannot honour {next(iter(refused))}"):
            package.rasterization(**words, **refused)
    if package.__version__ == "1.5.3":
        with pytest.raises(UserError, match=r"no 2D Gaussians; draw 3D Gaussians with gsplat\.rasterization"):
            package.rasterization_2dgs(**words)
    else:
        depth, *_ = package.rasterization(**(words | {"colors": None}), render_mode="ED", renderer_config=object())
        assert depth.shape == (1, 32, 32, 1) and math.isfinite(depth.sum().item())
