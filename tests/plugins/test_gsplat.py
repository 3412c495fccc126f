"""The stand-ins for gsplat's functions against gsplat's own references in torch and against the float64 oracle."""

import math
import types

import pytest
import torch

from scene_distill.core.conventions import ALPHA_MIN
from scene_distill.core.errors import UserError
from scene_distill.renderers import reference

gsplat = pytest.importorskip("gsplat")

from gsplat.cuda import _torch_impl as theirs  # noqa: E402

from scene_distill.plugins import gsplat as plugin  # noqa: E402
from scene_distill.plugins.gsplat_projection import Layout, radii_of  # noqa: E402
from scene_distill.plugins.gsplat_rasterization import Request, rasterization  # noqa: E402
from scene_distill.plugins.gsplat_steps import compute_relocation  # noqa: E402

SIZE = (97, 66)


@pytest.fixture(autouse=True)
def installed():
    plugin.install()
    yield
    plugin.uninstall()


def world(count: int = 400, seed: int = 3) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    rand, randn = (lambda *s: torch.rand(s, generator=made)), (lambda *s: torch.randn(s, generator=made))
    means = torch.cat([randn(count, 2) * 1.2, 1.5 + 4 * rand(count, 1)], dim=1)
    return {"means": means, "quats": randn(count, 4), "scales": 0.02 + 0.15 * rand(count, 3),
            "opacities": 0.05 + 0.9 * rand(count)}  # fmt: skip


def cameras(count: int = 2) -> dict[str, torch.Tensor]:
    viewmats = torch.eye(4).repeat(count, 1, 1)
    for c in range(count):
        angle = 0.2 * c
        turn = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
        viewmats[c, :3, :3] = torch.tensor(turn)
        viewmats[c, :3, 3] = torch.tensor([0.1 * c, -0.05 * c, 0.0])
    lens = torch.tensor([[80.0, 0, 47.0], [0, 75.0, 34.5], [0, 0, 1]]).repeat(count, 1, 1)
    return {"viewmats": viewmats, "Ks": lens}


def rasterize(w: dict, colors: torch.Tensor, c: dict, **more):
    return gsplat.rasterization(**w, colors=colors, **c, width=SIZE[0], height=SIZE[1], **more)


def visible_rows(radii: torch.Tensor) -> torch.Tensor:
    return (radii > 0).all(-1) if radii.dim() == 3 else radii > 0


@pytest.mark.parametrize("camera_model", ["pinhole", "ortho"])
@pytest.mark.parametrize(("near", "eps2d", "compensate"), [(0.01, 0.3, False), (2.0, 0.3, True), (0.01, 0.05, True)])
def test_projection_agrees_with_gsplat_s_own(near: float, eps2d: float, compensate: bool, camera_model: str) -> None:
    w, c = world(), cameras()
    if camera_model == "ortho":
        c["Ks"][:, 0, 0] = c["Ks"][:, 1, 1] = 30.0
    covars, _ = theirs._quat_scale_to_covar_preci(w["quats"], w["scales"], True, False)
    words = {"eps2d": eps2d, "near_plane": near, "calc_compensations": compensate, "camera_model": camera_model}
    expected = theirs._fully_fused_projection(w["means"], covars, **c, width=SIZE[0], height=SIZE[1], **words)
    found = gsplat.fully_fused_projection(w["means"], None, w["quats"], w["scales"], **c, width=SIZE[0],
                                          height=SIZE[1], **words)  # fmt: skip
    seen = visible_rows(found[0]) & visible_rows(expected[0])
    assert seen.sum() > 200
    # Ours is exact where gsplat 1.4 takes 3 sigma: they may differ at the border of the picture alone.
    differ = visible_rows(found[0]) != visible_rows(expected[0])
    assert differ.sum() < 0.06 * seen.sum()
    assert ((expected[2] < near) & visible_rows(found[0])).sum() == 0
    tolerances = {1: 1e-4, 2: 1e-5, 3: 2e-5}
    for index, tolerance in tolerances.items():
        assert torch.allclose(found[index][seen], expected[index][seen], rtol=2e-4, atol=tolerance), index
    assert (found[0][seen] - expected[0][seen]).abs().max() <= 1, "a radius rounds up"
    assert (found[0][seen] == expected[0][seen]).float().mean() > 0.99
    if compensate:
        assert torch.allclose(found[4][seen], expected[4][seen], atol=2e-4)
    else:
        assert found[4] is None


@pytest.mark.parametrize("compensate", [False, True])
def test_gradients_of_the_projection_agree_with_gsplat_s_own(compensate: bool) -> None:
    c, words = cameras(), {"width": SIZE[0], "height": SIZE[1], "calc_compensations": compensate}
    seen, gradients = None, []
    for ours in (True, False):
        w = {name: t.clone().requires_grad_() for name, t in world().items() if name != "opacities"}
        views = c["viewmats"].clone().requires_grad_()
        if ours:
            found = gsplat.fully_fused_projection(w["means"], None, w["quats"], w["scales"], views, c["Ks"], **words)
            seen = visible_rows(found[0])
        else:
            covars, _ = theirs._quat_scale_to_covar_preci(w["quats"], w["scales"], True, False)
            found = theirs._fully_fused_projection(w["means"], covars, views, c["Ks"], **words)
        loss = sum((found[i][seen] * weight).sin().sum() for i, weight in ((1, 0.05), (2, 0.3), (3, 4.0)))
        if compensate:
            loss = loss + found[4][seen].square().sum()
        loss.backward()
        gradients.append([*(t.grad for t in w.values()), views.grad])
    for mine, other in zip(*gradients, strict=True):
        assert torch.allclose(mine, other, rtol=2e-3, atol=2e-3 * float(other.abs().max()))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_spherical_harmonics_agree_with_gsplat_s_own(degree: int, masked: bool) -> None:
    made = torch.Generator().manual_seed(0)
    dirs, coefficients = torch.randn(50, 3, generator=made), torch.randn(50, 16, 3, generator=made)
    mask = torch.rand(50, generator=made) > 0.3 if masked else None
    pairs = []
    for function in (gsplat.spherical_harmonics, None):
        d, k = dirs.clone().requires_grad_(), coefficients.clone().requires_grad_()
        if function is None:
            colors = theirs._spherical_harmonics(degree, d, k)
            colors = colors if mask is None else torch.where(mask[:, None], colors, 0.0)
        else:
            colors = function(degree, d, k, masks=mask)
        colors.square().sum().backward()
        pairs.append((colors.detach(), k.grad, torch.zeros_like(d) if d.grad is None else d.grad))
    for mine, other in zip(*pairs, strict=True):
        assert torch.allclose(mine, other, atol=2e-5)


@pytest.mark.parametrize("triu", [False, True])
def test_covariances_and_precisions_agree_with_gsplat_s_own(triu: bool) -> None:
    w = world(50)
    found = gsplat.quat_scale_to_covar_preci(w["quats"], w["scales"], triu=triu)
    expected = theirs._quat_scale_to_covar_preci(w["quats"], w["scales"], triu=triu)
    for mine, other in zip(found, expected, strict=True):
        assert mine.shape == other.shape
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


def test_tile_lists_agree_with_gsplat_s_own() -> None:
    w, c = world(60), cameras()
    radii, means2d, depths, *_ = gsplat.fully_fused_projection(
        w["means"], None, w["quats"], w["scales"], **c, width=SIZE[0], height=SIZE[1]
    )
    grid = (16, math.ceil(SIZE[0] / 16), math.ceil(SIZE[1] / 16))
    counts, ids, flat = gsplat.isect_tiles(means2d, radii, depths, *grid)
    expected = theirs._isect_tiles(means2d, radii, depths, *grid)
    assert torch.equal(counts, expected[0])
    assert torch.equal(ids, expected[1])
    assert torch.equal(flat.sort().values, expected[2].sort().values)
    offsets = gsplat.isect_offset_encode(ids, 2, *grid[1:])
    assert torch.equal(offsets, theirs._isect_offset_encode(ids, 2, *grid[1:]))


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_pictures_agree_with_the_float64_oracle(mode: str) -> None:
    w, c = world(150), cameras()
    colors = torch.rand(150, 5, generator=torch.Generator().manual_seed(1))
    backgrounds = torch.rand(2, 5, generator=torch.Generator().manual_seed(2))
    images, alphas, meta = rasterize(
        w, colors, c, backgrounds=backgrounds, rasterize_mode=mode, near_plane=2.0, packed=False, render_mode="RGB+ED"
    )
    assert images.shape == (2, SIZE[1], SIZE[0], 6) and alphas.shape == (2, SIZE[1], SIZE[0], 1)
    limits = reference.Limits(near_m=2.0)
    wide = tuple(t.double() for t in w.values())
    for i in range(2):
        intrinsics = c["Ks"][i, [0, 1, 0, 1], [0, 1, 2, 2]].double()
        camera = (c["viewmats"][i].double(), intrinsics)
        means2d, conics, depths, opacities, extents = reference.project(wide, camera, SIZE, mode != "classic", limits)
        lists = reference.bin((means2d, conics, opacities), depths, extents, SIZE)
        features = torch.cat([colors.double(), depths[:, None]], dim=1)
        background = torch.cat([backgrounds[i].double(), torch.zeros(1)])
        picture, alpha = reference.raster((means2d, conics, opacities), features, background, lists, SIZE)
        off = (images[i, ..., :5] - picture[..., :5]).abs()
        assert off.quantile(0.999) < 2e-5 and off.max() < 2 * ALPHA_MIN
        assert (alphas[i, ..., 0] - alpha).abs().max() < 2 * ALPHA_MIN
        depth = picture[..., 5] / alpha.clamp(min=1e-10)
        covered = alpha > 0.1
        assert torch.allclose(images[i, ..., 5][covered].double(), depth[covered], rtol=2e-2)
        assert torch.allclose(meta["opacities"][i].double(), opacities, atol=1e-5)


def test_packed_and_unpacked_layouts_draw_and_learn_the_same() -> None:
    c, found = cameras(), {}
    for packed in (False, True):
        w = {name: t.clone().requires_grad_() for name, t in world().items()}
        sh = (0.3 * torch.randn(400, 16, 3, generator=torch.Generator().manual_seed(5))).requires_grad_()
        images, _, meta = rasterize(w, sh, c, sh_degree=2, packed=packed, absgrad=True, render_mode="RGB+D")
        meta["means2d"].retain_grad()
        images.square().mean().backward()
        found[packed] = (images.detach(), meta, [*(t.grad for t in w.values()), sh.grad])
    for mine, other in zip(found[False][2], found[True][2], strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(found[False][0], found[True][0])
    loose, tight = found[False][1], found[True][1]
    at = (tight["camera_ids"], tight["gaussian_ids"])
    for name in ("radii", "depths", "conics", "opacities"):
        assert torch.equal(loose[name][at], tight[name])
    for name in ("grad", "absgrad"):
        assert torch.equal(getattr(loose["means2d"], name)[at], getattr(tight["means2d"], name))
    assert torch.equal(loose["isect_ids"], tight["isect_ids"])
    assert torch.equal(loose["isect_offsets"], theirs._isect_offset_encode(loose["isect_ids"], 2, 7, 5))
    assert int(loose["tiles_per_gauss"].sum()) == loose["flatten_ids"].numel()


def test_absolute_gradients_are_at_least_the_gradients_and_equal_where_nothing_cancels() -> None:
    w = {name: t.clone().requires_grad_() for name, t in world().items()}
    images, _, meta = rasterize(w, torch.rand(400, 3), cameras(1), absgrad=True, packed=False)
    meta["means2d"].retain_grad()
    (images * torch.rand(images.shape)).sum().backward()
    grad, absolute = meta["means2d"].grad, meta["means2d"].absgrad
    assert absolute.shape == grad.shape == (1, 400, 2)
    assert (absolute >= grad.abs() - 1e-4).all()
    assert absolute.sum() > 1.5 * grad.abs().sum()
    assert (absolute[0][~visible_rows(meta["radii"])[0]] == 0).all()
    w = {name: t[:1].clone().requires_grad_() for name, t in world().items()}
    w["means"] = torch.tensor([[0.0, 0.0, 2.0]], requires_grad=True)
    images, _, meta = rasterize(w, torch.ones(1, 1), cameras(1), absgrad=True, packed=False)
    meta["means2d"].retain_grad()
    images[0, :, 48:, 0].sum().backward()  # pixels to the right of the centre at 47: every one is pulled the same way
    grad, absolute = meta["means2d"].grad[0, 0], meta["means2d"].absgrad[0, 0]
    assert absolute[0] == pytest.approx(abs(float(grad[0])), rel=0.2)


def test_the_parts_put_together_draw_what_rasterization_draws() -> None:
    w, c = world(), cameras()
    colors = torch.rand(400, 3)
    images, alphas, _ = rasterize(w, colors, c)
    radii, means2d, depths, conics, _ = gsplat.fully_fused_projection(
        w["means"], None, w["quats"], w["scales"], **c, width=SIZE[0], height=SIZE[1]
    )
    grid = (16, math.ceil(SIZE[0] / 16), math.ceil(SIZE[1] / 16))
    _, ids, flat = gsplat.isect_tiles(means2d, radii, depths, *grid)
    offsets = gsplat.isect_offset_encode(ids, 2, *grid[1:])
    parts, covered = gsplat.rasterize_to_pixels(
        means2d, conics, colors.expand(2, -1, -1), w["opacities"].repeat(2, 1), *SIZE, 16, offsets, flat
    )
    # gsplat's lists end at 3 sigma, where an opaque splat still adds 1 %.
    assert (parts - images).abs().max() < 0.05 and (parts - images).abs().mean() < 1e-3
    assert (covered - alphas).abs().mean() < 1e-3


def test_far_plane_and_smallest_radius_remove_splats_from_picture_and_gradients() -> None:
    w, c = world(), cameras(1)
    depths = w["means"][:, 2]
    kept = (depths <= 4.0).nonzero()[:, 0]
    cut, *_ = rasterize(w, torch.ones(400, 1), c, far_plane=4.0)
    alone, *_ = rasterize({name: t[kept] for name, t in w.items()}, torch.ones(len(kept), 1), c)
    assert torch.equal(cut, alone)
    means = w["means"].clone().requires_grad_()
    images, _, meta = rasterize(w | {"means": means}, torch.ones(400, 1), c, radius_clip=12.0, packed=False)
    images.sum().backward()
    small = ~visible_rows(meta["radii"])[0]
    largest = meta["radii"].reshape(400, -1).amax(-1)
    assert 0 < small.sum() < 400 and largest[~small].min() > 12
    assert (means.grad[small] == 0).all() and (means.grad[~small] != 0).any()


def test_radii_of_gsplat_1_5_are_per_axis_and_know_the_opacity() -> None:
    variances, opacity = torch.tensor([[9.0, 1.0], [9.0, 1.0]]), torch.tensor([0.9, 0.01])
    conics = torch.stack([1 / variances[:, 0], torch.zeros(2), 1 / variances[:, 1]], dim=-1)
    assert radii_of(conics, opacity, per_axis=False).tolist() == [9.0, 9.0]
    cut = math.sqrt(2 * math.log(0.01 * 255))
    expected = [math.ceil(3 * 3.3), math.ceil(3.3)], [math.ceil(3 * cut), math.ceil(cut)]
    assert radii_of(conics, opacity, per_axis=True).tolist() == [list(map(float, row)) for row in expected]


def test_relocation_conserves_what_the_copies_show_together() -> None:
    opacities, scales = torch.tensor([0.5, 0.9, 0.2]), torch.ones(3, 3)
    binoms = torch.tensor([[math.comb(n, k) for k in range(51)] for n in range(51)], dtype=torch.float32)
    given = {"opacities": opacities, "scales": scales, "ratios": torch.tensor([1, 2, 5]), "binoms": binoms}
    shared, sizes = compute_relocation(given)
    assert torch.allclose(1 - (1 - shared) ** torch.tensor([1, 2, 5]), opacities)
    assert torch.allclose(sizes[0], scales[0])
    two = float(shared[1])
    assert sizes[1, 0] == pytest.approx(0.9 / (two + two - two**2 / math.sqrt(2)), rel=1e-5)


@pytest.mark.parametrize("strategy", [gsplat.DefaultStrategy, gsplat.MCMCStrategy])
def test_gsplat_s_strategies_densify_on_the_cpu(strategy) -> None:
    torch.manual_seed(0)
    w = world(300)
    params = torch.nn.ParameterDict({"means": w["means"], "quats": w["quats"], "scales": w["scales"].log(),
                                     "opacities": torch.logit(w["opacities"])})  # fmt: skip
    params["colors"] = torch.rand(300, 3)
    optimizers = {name: torch.optim.Adam([value], lr=1e-3) for name, value in params.items()}
    words = {"refine_start_iter": 1, "refine_every": 4}
    default = strategy is gsplat.DefaultStrategy
    made = strategy(**words, **({"absgrad": True, "grow_grad2d": 1e-5} if default else {"cap_max": 600}))
    made.check_sanity(params, optimizers)
    state = made.initialize_state()
    target = torch.rand(1, SIZE[1], SIZE[0], 3)
    for step in range(10):
        images, _, info = gsplat.rasterization(
            params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(), params["colors"],
            **cameras(1), width=SIZE[0], height=SIZE[1], packed=False, absgrad=True,
        )  # fmt: skip
        if default:
            made.step_pre_backward(params, optimizers, state, step, info)
        (images - target).square().mean().backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        made.step_post_backward(params, optimizers, state, step, info, **({} if default else {"lr": 1e-3}))
    assert len(params["means"]) != 300
    assert all(torch.isfinite(value).all() for value in params.values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"camera_model": "fisheye"}, "undistort the photos first"),
        ({"distributed": True}, "cannot honour distributed"),
        ({"quats": None}, "pass one of the two"),
        ({"tile_size": 8}, "tile_size=16"),
        ({"sparse_grad": True, "covars": torch.eye(3).repeat(20, 1, 1)}, "pass sparse_grad=False"),
        ({"render_mode": "normals"}, "render_mode is 'normals'"),
        ({"near_plane": 0.0}, "near_plane > 0"),
        ({"colors": torch.zeros(20, 3, 3)}, "colors are"),
        ({"means": torch.zeros(1, 20, 3)}, "colors are"),
        ({"covars": torch.zeros(20, 3)}, "covars are"),
        ({"colors": torch.zeros(20, 9, 3), "sh_degree": 3}, "degree 3 with 9 coefficients"),
        ({"colors": torch.zeros(20, 36, 3), "sh_degree": 5}, "the degree must be 0 to 4"),
        ({"means": torch.full((20, 3), math.nan)}, "NaN"),
        ({"means": torch.zeros(20, 3).double()}, "expected float32"),
        ({"backgrounds": torch.zeros(3)}, "backgrounds are"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_sentence(words: dict, sentence: str) -> None:
    arguments = {**world(20), "colors": torch.zeros(20, 3), **cameras(1), "width": 32, "height": 32} | words
    with pytest.raises(UserError, match=sentence):
        gsplat.rasterization(**arguments)


def test_no_gaussians_draw_the_background() -> None:
    images, alphas, _ = rasterize({k: v[:0] for k, v in world().items()}, torch.zeros(0, 3), cameras(1),
                                  backgrounds=torch.full((1, 3), 0.25))  # fmt: skip
    assert (images == 0.25).all() and (alphas == 0).all()


def test_install_reaches_names_bound_before_and_uninstall_gives_them_back() -> None:
    import sys

    plugin.uninstall()
    original = gsplat.rasterization
    early = types.ModuleType("bound_early")
    early.rasterization = original
    sys.modules["bound_early"] = early
    try:
        plugin.install()
        plugin.install()
        assert isinstance(early.rasterization, plugin.StandIn) and early.rasterization is gsplat.rasterization
        assert early.rasterization is gsplat.rendering.rasterization and early.rasterization.original is original
        assert gsplat.strategy.ops.compute_relocation.__wrapped__ is not None
        plugin.uninstall()
        assert early.rasterization is original is gsplat.rasterization
    finally:
        del sys.modules["bound_early"]


def test_cuda_tensors_keep_going_to_gsplat() -> None:
    calls = []

    def original(means, width=1):
        calls.append(width)
        return "theirs"

    class OnGpu(torch.Tensor):
        is_cuda = True

    stand_in = plugin.StandIn(original, lambda given: "ours", frozenset({"means"}))
    assert stand_in(torch.zeros(1)) == "ours"
    assert stand_in(torch.zeros(1).as_subclass(OnGpu), width=7) == "theirs" and calls == [7]


def test_arguments_of_later_versions_are_refused_unless_left_at_their_defaults() -> None:
    def later(means, width=1, channel_chunk=32, with_ut=False, radial_coeffs=None):
        raise AssertionError("the original is for CUDA tensors")

    stand_in = plugin.StandIn(later, lambda given: given["width"], frozenset({"means", "width"}))
    assert stand_in(torch.zeros(1), width=5, channel_chunk=8, with_ut=False, radial_coeffs=None) == 5
    for words, sentence in (({"with_ut": True}, "with_ut"), ({"radial_coeffs": torch.zeros(2, 6)}, "radial_coeffs")):
        with pytest.raises(UserError, match=f"later cannot honour {sentence}"):
            stand_in(torch.zeros(1), **words)


@pytest.mark.parametrize("packed", [False, True])
def test_the_layout_of_gsplat_1_5(packed: bool) -> None:
    words = {"near_plane": 0.01, "far_plane": 1e10, "radius_clip": 0.0, "eps2d": 0.3, "sh_degree": None,
             "tile_size": 16, "backgrounds": None, "render_mode": "RGB", "sparse_grad": False, "absgrad": False,
             "rasterize_mode": "classic", "camera_model": "pinhole", "covars": None, "width": SIZE[0],
             "height": SIZE[1]}  # fmt: skip
    request = Request(**world(), **cameras(), colors=torch.rand(400, 3), packed=packed, **words)
    _, _, meta = rasterization(request, Layout(True))
    _, _, old = rasterization(request, Layout())
    assert meta["radii"].shape == (*old["radii"].shape, 2) and meta["n_batches"] == 1
    assert torch.equal(visible_rows(meta["radii"].reshape(1, -1, 2)), visible_rows(old["radii"].reshape(1, -1)))
    if packed:
        assert (meta["batch_ids"] == 0).all() and meta["batch_ids"].shape == meta["gaussian_ids"].shape
