"""The functions of gsplat 1.4, 1.5 and 1.6 that we stand in for or call, as recorded signatures, and fakes of them.

Read from the source of each version: 1.4.0 and 1.5.3 from PyPI, 1.6 from the main branch (commits 002fa3a0 and later);
`test_gsplat_versions.py` compares the table with the gsplat that is installed.
"""

import sys
import types

import pytest

_RASTER = "means, quats, scales, opacities, colors, viewmats, Ks, width, height, near_plane=0.01, far_plane=1e10, "
_RASTER += "radius_clip=0.0, eps2d=0.3, sh_degree=None, packed=True, "
_DRAW = "means2d, conics, colors, opacities, image_width, image_height, tile_size, isect_offsets, flatten_ids, "
_DRAW += "backgrounds=None, masks=None, packed=False, absgrad=False"
_PROJECT = "means, covars, quats, scales, viewmats, Ks, width, height, eps2d=0.3, near_plane=0.01, far_plane=1e10, "
_PROJECT += "radius_clip=0.0, packed=False, sparse_grad=False, calc_compensations=False, camera_model='pinhole'"
_MODES = "backgrounds=None, render_mode='RGB', sparse_grad=False, absgrad=False, rasterize_mode='classic', "
_LENS = "with_ut=False, with_eval3d=False, {}radial_coeffs=None, tangential_coeffs=None, thin_prism_coeffs=None, "
_LENS += "ftheta_coeffs=None, {}rolling_shutter=4, viewmats_rs=None"
_LISTS = "means2d, radii, depths, tile_size, tile_width, tile_height, sort=True, "
_COMMON = {
    "cuda._wrapper.spherical_harmonics": "degrees_to_use, dirs, coeffs, masks=None",
    "cuda._wrapper.quat_scale_to_covar_preci": ("quats, scales, compute_covar=True, compute_preci=True, triu=False"),
    "cuda._wrapper.world_to_cam": "means, covars, viewmats",
    "cuda._wrapper.rasterize_to_pixels": _DRAW,
    "relocation.compute_relocation": "opacities, scales, ratios, binoms",
}
_ADAM = {"cuda._wrapper.adam": "param, param_grad, exp_avg, exp_avg_sq, valid, lr, b1, b2, eps"}
_FLAT = "tile_size=16, backgrounds=None, render_mode='RGB', sparse_grad=False, absgrad=False, distloss=False, "

SURFACES: dict[str, dict[str, str]] = {
    "1.4.0": _COMMON | {
        "rendering.rasterization": _RASTER + "tile_size=16, " + _MODES + (
            "channel_chunk=32, distributed=False, camera_model='pinhole', covars=None"),
        "rendering.rasterization_2dgs": _RASTER.replace("True", "False") + _FLAT + "depth_mode='expected'",
        "cuda._wrapper.fully_fused_projection": _PROJECT,
        "cuda._wrapper.isect_tiles": _LISTS + "packed=False, n_cameras=None, camera_ids=None, gaussian_ids=None",
        "cuda._wrapper.isect_offset_encode": "isect_ids, n_cameras, tile_width, tile_height",
    },
    "1.5.3": _COMMON | _ADAM | {
        "rendering.rasterization": _RASTER + "tile_size=16, " + _MODES + (
            "channel_chunk=32, distributed=False, camera_model='pinhole', segmented=False, covars=None, "
        ) + _LENS.format("", ""),
        "rendering.rasterization_2dgs": _RASTER.replace("True", "False") + _FLAT + "depth_mode='expected'",
        "cuda._wrapper.fully_fused_projection": _PROJECT + ", opacities=None",
        "cuda._wrapper.isect_tiles": _LISTS + (
            "segmented=False, packed=False, n_images=None, image_ids=None, gaussian_ids=None"),
        "cuda._wrapper.isect_offset_encode": "isect_ids, n_images, tile_width, tile_height",
    },
    "1.6.0": _COMMON | _ADAM | {
        "rendering.rasterization": _RASTER + "tile_size=None, " + _MODES + (
            "distributed=False, camera_model='pinhole', segmented=False, covars=None, "
        ) + _LENS.format(
            "macro_tile=False, return_normals=False, global_z_order=True, rays=None, ",
            "lidar_coeffs=None, external_distortion_coeffs=None, ",
        ) + ", ut_params=None, extra_signals=None, extra_signals_sh_degree=None, renderer_config=None",
        "cuda._wrapper.fully_fused_projection": _PROJECT + ", opacities=None",
        "cuda._wrapper.isect_tiles": _LISTS + (
            "segmented=False, packed=False, n_images=None, image_ids=None, gaussian_ids=None, conics=None, "
            "opacities=None"),
        "cuda._wrapper.isect_offset_encode": "isect_ids, n_images, tile_width, tile_height",
    },
}  # fmt: skip


def function(path: str, parameters: str):
    """A function of that name and signature that has no GPU."""
    name, scope = path.rpartition(".")[2], {}
    exec(f"def {name}({parameters}):\n    raise RuntimeError('no GPU')", scope)
    return scope[name]


def fake(monkeypatch: pytest.MonkeyPatch, version: str) -> types.ModuleType:
    """A package gsplat with the functions of that version in sys.modules, until the test ends."""
    for name in [name for name in sys.modules if name == "gsplat" or name.startswith("gsplat.")]:
        monkeypatch.delitem(sys.modules, name)
    names = ("gsplat", "gsplat.cuda", "gsplat.cuda._wrapper", "gsplat.rendering", "gsplat.relocation")
    modules = {name: types.ModuleType(name) for name in names}
    gsplat = modules["gsplat"]
    gsplat.__version__, gsplat.__path__ = version, []
    modules["gsplat.cuda"].__path__ = []
    for path, parameters in SURFACES[version].items():
        module, _, name = path.rpartition(".")
        made = function(path, parameters)
        setattr(modules[f"gsplat.{module}"], name, made)
        setattr(gsplat, name, made)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return gsplat
