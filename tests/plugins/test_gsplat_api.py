"""What users of gsplat's API meet beyond a plain picture: covariances, batches, masks, sparse gradients, Adam."""

import math

import pytest
import torch

from scene_distill.core.errors import UserError
from scene_distill.core.geometry import covariances

gsplat = pytest.importorskip("gsplat")

from gsplat.cuda import _torch_impl as theirs  # noqa: E402

from scene_distill.plugins import gsplat as plugin  # noqa: E402
from scene_distill.plugins.gsplat_harmonics import seen_colors  # noqa: E402
from scene_distill.plugins.gsplat_projection import Layout, fully_fused_projection  # noqa: E402
from scene_distill.plugins.gsplat_rasterization import Request, rasterization  # noqa: E402
from scene_distill.plugins.gsplat_steps import adam  # noqa: E402

SIZE = (50, 37)
WORDS = {"width": SIZE[0], "height": SIZE[1]}


@pytest.fixture(autouse=True)
def installed():
    plugin.install()
    yield
    plugin.uninstall()


def world(count: int = 150, seed: int = 3) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    rand, randn = (lambda *s: torch.rand(s, generator=made)), (lambda *s: torch.randn(s, generator=made))
    means = torch.cat([randn(count, 2), 1.5 + 3 * rand(count, 1)], dim=1)
    return {"means": means, "quats": randn(count, 4), "scales": 0.03 + 0.1 * rand(count, 3),
            "opacities": 0.05 + 0.9 * rand(count)}  # fmt: skip


def cameras(count: int = 2) -> dict[str, torch.Tensor]:
    viewmats = torch.eye(4).repeat(count, 1, 1)
    for c in range(count):
        angle = 0.2 * c
        viewmats[c, 0, [0, 2]] = torch.tensor([math.cos(angle), math.sin(angle)])
        viewmats[c, 2, [0, 2]] = torch.tensor([-math.sin(angle), math.cos(angle)])
        viewmats[c, :3, 3] = torch.tensor([0.1 * c, -0.05 * c, 0.0])
    lens = torch.tensor([[45.0, 0, 24.0], [0, 44.0, 18.5], [0, 0, 1]]).repeat(count, 1, 1)
    return {"viewmats": viewmats, "Ks": lens}


def request(**words) -> Request:
    """A request with gsplat's defaults."""
    defaults = {
        "near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0, "eps2d": 0.3, "sh_degree": None, "packed": False,
        "tile_size": 16, "backgrounds": None, "render_mode": "RGB", "sparse_grad": False, "absgrad": False,
        "rasterize_mode": "classic", "camera_model": "pinhole", "covars": None,
    }  # fmt: skip
    return Request(**(defaults | WORDS | words))


@pytest.mark.parametrize("camera_model", ["pinhole", "ortho"])
@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_covariances_draw_and_learn_what_their_quats_and_scales_do(mode: str, camera_model: str) -> None:
    found, colors, c = [], torch.rand(150, 3), cameras()
    if camera_model == "ortho":
        c["Ks"][:, 0, 0] = c["Ks"][:, 1, 1] = 12.0
    for with_covars in (False, True):
        w = {name: t.clone().requires_grad_() for name, t in world().items()}
        views = c["viewmats"].clone().requires_grad_()
        shapes = {"covars": covariances(w["quats"], w["scales"])} if with_covars else {}
        images, _, meta = gsplat.rasterization(
            **w, colors=colors, viewmats=views, Ks=c["Ks"], packed=False, rasterize_mode=mode, render_mode="RGB+D",
            camera_model=camera_model, radius_clip=1.0, far_plane=4.0, **WORDS, **shapes,
        )  # fmt: skip
        (images * torch.linspace(0, 1, SIZE[0])[:, None]).sum().backward()
        found.append((images.detach(), meta["radii"], [t.grad for t in (*w.values(), views)]))
    (plain, radii, gradients), (images, other_radii, others) = found
    assert torch.allclose(images, plain, atol=2e-4)
    assert (radii == other_radii).float().mean() > 0.99 and (radii > 0).sum() > 50
    for mine, other in zip(gradients, others, strict=True):
        assert torch.allclose(mine, other, rtol=2e-3, atol=1e-3 * float(mine.abs().max()))


def test_covariances_project_in_their_triangles_and_equal_axes_have_gradients() -> None:
    w, c = world(20), cameras()
    covars, _ = gsplat.quat_scale_to_covar_preci(w["quats"], w["scales"], compute_preci=False, triu=True)
    plain = gsplat.fully_fused_projection(w["means"], None, w["quats"], w["scales"], **c, **WORDS)
    other = gsplat.fully_fused_projection(w["means"], covars, None, None, **c, **WORDS)
    for mine, their in zip(plain[1:4], other[1:4], strict=True):
        assert torch.allclose(mine, their, rtol=1e-3, atol=1e-4)
    balls = (0.01 * torch.eye(3)).repeat(20, 1, 1).requires_grad_()
    images, *_ = gsplat.rasterization(w["means"], None, None, w["opacities"], torch.ones(20, 1), **c, **WORDS,
                                      covars=balls)  # fmt: skip
    images.sum().backward()
    assert torch.isfinite(balls.grad).all() and (balls.grad.abs().sum((1, 2)) > 0).any()


def test_harmonics_of_degree_four_agree_with_gsplat_s_own() -> None:
    made = torch.Generator().manual_seed(0)
    dirs, coefficients = torch.randn(50, 3, generator=made), torch.randn(50, 30, 3, generator=made)
    pairs = []
    for function in (gsplat.spherical_harmonics, theirs._spherical_harmonics):
        d, k = dirs.clone().requires_grad_(), coefficients.clone().requires_grad_()
        colors = function(4, d, k[:, :25] if function is theirs._spherical_harmonics else k)
        colors.square().sum().backward()
        pairs.append((colors.detach(), k.grad, d.grad))
    for mine, other in zip(*pairs, strict=True):
        assert torch.allclose(mine, other, atol=1e-4)


@pytest.mark.parametrize(("degree", "bases"), [(1, 7), (2, 10), (3, 20), (4, 25)])
def test_any_number_of_coefficients_that_is_enough_is_drawn(degree: int, bases: int) -> None:
    w, c = world(), cameras()
    sh = 0.3 * torch.randn(150, bases, 3)
    images, *_ = gsplat.rasterization(**w, colors=sh, **c, **WORDS, sh_degree=degree)
    dirs = w["means"] - torch.linalg.inv(c["viewmats"])[:, None, :3, 3]
    each = theirs._spherical_harmonics(degree, dirs, sh[:, : (degree + 1) ** 2].expand(2, -1, -1, -1))
    direct, *_ = gsplat.rasterization(**w, colors=(each + 0.5).clamp(min=0), **c, **WORDS)
    assert torch.allclose(images, direct, atol=1e-5)


def test_harmonics_of_five_channels_agree_with_those_of_three() -> None:
    made = torch.Generator().manual_seed(4)
    means, sh = torch.randn(40, 3, generator=made), torch.randn(40, 9, 5, generator=made)
    extents = (torch.arange(40) % 3 > 0).float()[:, None].expand(40, 2)
    five = seen_colors(means, sh, torch.zeros(3), 2, extents)
    three = seen_colors(means, sh[..., :3].contiguous(), torch.zeros(3), 2, extents.contiguous())
    assert five.shape == (40, 5) and torch.allclose(five[:, :3], three, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("per_camera", [False, True])
def test_a_batch_of_scenes_is_each_scene_alone(packed: bool, per_camera: bool) -> None:
    scenes, c = [world(60, seed) for seed in range(6)], cameras()
    batched = {name: torch.stack([s[name] for s in scenes]).unflatten(0, (2, 3)) for name in scenes[0]}
    views = {name: t.expand(2, 3, *t.shape) for name, t in c.items()}
    colors = torch.rand((2, 3, 2, 60, 3) if per_camera else (2, 3, 60, 3))
    backgrounds = torch.rand(2, 3, 2, 3)
    words = {"packed": packed, "render_mode": "RGB+ED", "absgrad": True}
    leaf = batched["means"].clone().requires_grad_()
    images, alphas, meta = rasterization(
        request(**(batched | {"means": leaf}), **views, colors=colors, backgrounds=backgrounds, **words), Layout(True)
    )
    assert images.shape == (2, 3, 2, SIZE[1], SIZE[0], 4) and alphas.shape == (2, 3, 2, SIZE[1], SIZE[0], 1)
    meta["means2d"].retain_grad()
    images.square().sum().backward()
    assert meta["n_batches"] == 6 and meta["n_cameras"] == 2 and meta["isect_offsets"].shape == (2, 3, 2, 3, 4)
    single = scenes[4]["means"].clone().requires_grad_()
    alone, _, apart = rasterization(
        request(**(scenes[4] | {"means": single}), **c, colors=colors[1, 1], backgrounds=backgrounds[1, 1], **words),
        Layout(True),
    )
    apart["means2d"].retain_grad()
    alone.square().sum().backward()
    assert torch.equal(images[1, 1], alone) and torch.equal(leaf.grad[1, 1], single.grad)
    if packed:
        rows = meta["batch_ids"] == 4
        assert torch.equal(meta["camera_ids"][rows], apart["camera_ids"])
        assert torch.equal(meta["gaussian_ids"][rows], apart["gaussian_ids"])
    else:
        rows = (1, 1)
        assert meta["radii"].shape == (2, 3, 2, 60, 2)
    assert torch.equal(meta["means2d"].grad[rows], apart["means2d"].grad)
    assert torch.equal(meta["means2d"].absgrad[rows], apart["means2d"].absgrad)


@pytest.mark.parametrize("packed", [False, True])
def test_masked_tiles_show_the_background_and_give_no_gradient(packed: bool) -> None:
    w, c = world(), cameras()
    grid = (16, math.ceil(SIZE[0] / 16), math.ceil(SIZE[1] / 16))
    projected = gsplat.fully_fused_projection(w["means"], None, w["quats"], w["scales"], **c, **WORDS, packed=packed)
    ids = projected[:2] if packed else ()
    radii, means2d, depths, conics, _ = projected[len(ids) :]
    words = {"n_cameras": 2, "camera_ids": ids[0], "gaussian_ids": ids[1], "packed": True} if packed else {}
    _, isect_ids, flat = gsplat.isect_tiles(means2d, radii, depths, *grid, **words)
    offsets = gsplat.isect_offset_encode(isect_ids, 2, *grid[1:])
    opacities = w["opacities"][ids[1]] if packed else w["opacities"].repeat(2, 1)
    masks = torch.rand(2, grid[2], grid[1], generator=torch.Generator().manual_seed(1)) > 0.4
    backgrounds = torch.rand(2, 3)
    found = []
    for given in (None, masks):
        colors = torch.rand(*opacities.shape, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
        drawn = gsplat.rasterize_to_pixels(means2d, conics, colors, opacities, *SIZE, 16, offsets, flat,
                                           backgrounds=backgrounds, masks=given, packed=packed)  # fmt: skip
        found.append((*drawn, colors))
    shown = masks.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, : SIZE[1], : SIZE[0], None]
    (images, alphas, _), (masked, covered, colors) = found
    assert torch.equal(covered, alphas * shown) and (alphas[~shown] > 0).any()
    assert torch.equal(masked, torch.where(shown, images, backgrounds[:, None, None].expand_as(images)))
    (masked * ~shown).sum().backward()
    assert (colors.grad == 0).all()
    with pytest.raises(UserError, match="masks are"):
        gsplat.rasterize_to_pixels(means2d, conics, colors, opacities, *SIZE, 16, offsets, flat, masks=masks[:1],
                                   packed=packed)  # fmt: skip


def test_sparse_gradients_are_the_dense_ones_of_the_drawn_rows() -> None:
    found = []
    for sparse in (False, True):
        w = {name: t.clone() for name, t in world().items()}
        w["means"][:40, 0] += 50.0  # out of sight
        w = {name: t.requires_grad_() for name, t in w.items()}
        images, *_ = gsplat.rasterization(**w, colors=torch.ones(150, 1), **cameras(), **WORDS, packed=True,
                                          sparse_grad=sparse)  # fmt: skip
        images.square().sum().backward()
        found.append(w)
    dense, thin = found
    for name in ("means", "quats", "scales"):
        assert thin[name].grad.is_sparse and thin[name].grad._nnz() <= 110
        assert torch.equal(thin[name].grad.to_dense(), dense[name].grad)
    assert torch.equal(thin["opacities"].grad, dense["opacities"].grad)
    torch.optim.SparseAdam([thin["means"]], lr=1e-3).step()
    with pytest.raises(UserError, match="pass sparse_grad=False with covars or leading batch axes"):
        fully_fused_projection(
            {"means": thin["means"][None], "covars": None, "quats": thin["quats"][None],
             "scales": thin["scales"][None], "viewmats": torch.eye(4)[None, None], "Ks": torch.eye(3)[None, None],
             "near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0, "eps2d": 0.3, "packed": True,
             "sparse_grad": True, "calc_compensations": False, "camera_model": "pinhole", **WORDS},
            Layout(True),
        )  # fmt: skip


def test_selective_adam_moves_the_visible_rows_without_bias_correction() -> None:
    param, grad = torch.randn(6, 3), torch.randn(6, 3)
    first, second = 0.1 * torch.randn(6, 3), 0.01 + torch.rand(6, 3)
    state = {"param": param.clone(), "param_grad": grad, "exp_avg": first.clone(), "exp_avg_sq": second.clone()}
    visible = torch.tensor([1.0, 0, 1, 1, 0, 1])
    adam(state | {"valid": visible, "lr": 0.01, "b1": 0.9, "b2": 0.99, "eps": 1e-8})
    rows = visible.bool()
    mean, square = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad * grad
    assert torch.allclose(state["param"][rows], (param - 0.01 * mean / (square.sqrt() + 1e-8))[rows], atol=1e-6)
    assert torch.allclose(state["exp_avg_sq"][rows], square[rows], atol=1e-6)
    for name, before in (("param", param), ("exp_avg", first), ("exp_avg_sq", second)):
        assert torch.equal(state[name][~rows], before[~rows])


def test_frames_of_the_cameras_agree_with_gsplat_s_own() -> None:
    w, c = world(20), cameras()
    covars = covariances(w["quats"], w["scales"])
    for mine, other in zip(
        gsplat.world_to_cam(w["means"], covars, c["viewmats"]),
        theirs._world_to_cam(w["means"], covars, c["viewmats"]), strict=True,
    ):  # fmt: skip
        assert torch.allclose(mine, other, atol=1e-5)


def test_what_needs_a_gpu_says_what_to_do() -> None:
    w, c = world(5), cameras(1)
    with pytest.raises(UserError, match=r"no 2D Gaussians; draw 3D Gaussians .* \(called: rasterization_2dgs\)"):
        gsplat.rasterization_2dgs(**w, colors=torch.zeros(5, 3), **c, **WORDS)
    with pytest.raises(UserError, match=r"covars are \(5, 3, 3\), expected upper triangles"):
        gsplat.fully_fused_projection(w["means"], torch.zeros(5, 3, 3), None, None, **c, **WORDS)
    with pytest.raises(UserError, match=r"means are \(3,\)"):
        gsplat.rasterization(**(w | {"means": torch.zeros(3)}), colors=torch.zeros(5, 3), **c, **WORDS)
    with pytest.raises(UserError, match="undistort the photos first"):
        gsplat.rasterization(**w, colors=torch.zeros(5, 3), **c, **WORDS, camera_model="fisheye")
