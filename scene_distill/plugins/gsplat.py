"""gsplat without a GPU: our CPU kernels behind gsplat's own functions, for code that was written for gsplat.

`install` puts a stand-in in the place of every name bound to one of gsplat's functions of `STAND_INS` and `REFUSED`, in
gsplat and in every module that has imported one before; whoever imports one afterwards gets the stand-in too. It looks
where the tensors are: on a GPU it calls gsplat's own function with the same arguments, on the CPU it runs ours. An
argument that ours cannot honour raises `UserError` with one sentence; none is ignored that changes what comes back.

The signature is read from the gsplat that is installed, so that 1.4, 1.5 and later are called by their own names; what
comes back is laid out as that version does (`gsplat_projection.Layout`). With SCENE_DISTILL_GSPLAT=1,
`gsplat_on_import` calls `install` in any program.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from scene_distill.core.errors import UserError

NO_EFFECT = frozenset({"channel_chunk", "segmented", "renderer_config"})
"""Arguments that only say how gsplat does its work."""


class StandIn:
    """One of gsplat's functions that runs ours for CPU tensors: ``original`` and ``ours``, which takes the arguments by
    name. ``honoured``: the names that ours heeds, None for all; the others must keep their defaults on the CPU."""

    def __init__(
        self, original: Callable[..., Any], ours: Callable[[Mapping[str, Any]], Any], honoured: frozenset[str] | None
    ) -> None:
        functools.update_wrapper(self, original)
        self.original, self.ours, self.honoured = original, ours, honoured
        self.signature = inspect.signature(original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What ours returns for CPU tensors, or the original's for CUDA tensors."""
        if any(isinstance(value, Tensor) and value.is_cuda for value in (*args, *kwargs.values())):
            return self.original(*args, **kwargs)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if self.honoured is None or name in self.honoured or name in NO_EFFECT:
                continue
            default = self.signature.parameters[name].default
            if value is not default and (isinstance(value, Tensor) or value != default):
                told = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                what = f"gsplat's {self.original.__name__}"
                raise UserError(f"{what} cannot honour {name} ({told}) on the CPU; leave it at {default!r}")
        return self.ours(bound.arguments)


def install() -> None:
    """Put our CPU kernels behind gsplat's functions in this process; a second call changes nothing.

    Raises `UserError` when gsplat is not installed.
    """
    try:
        gsplat = importlib.import_module("gsplat")
    except ImportError as error:
        raise UserError(f"gsplat cannot be imported ({error}); install it with: pip install gsplat==1.4.0") from None
    for name, original in _originals():
        if not isinstance(original, StandIn):
            _rebind(name, original, _stand_in(name, original, gsplat.__version__))


def uninstall() -> None:
    """Give every name its own function of gsplat back."""
    for name, stand_in in _originals():
        if isinstance(stand_in, StandIn):
            _rebind(name, stand_in, stand_in.original)


STAND_INS = (
    ("gsplat.rendering", "rasterization"),
    ("gsplat.cuda._wrapper", "rasterize_to_pixels"),
    ("gsplat.cuda._wrapper", "fully_fused_projection"),
    ("gsplat.cuda._wrapper", "spherical_harmonics"),
    ("gsplat.cuda._wrapper", "quat_scale_to_covar_preci"),
    ("gsplat.cuda._wrapper", "world_to_cam"),
    ("gsplat.cuda._wrapper", "isect_tiles"),
    ("gsplat.cuda._wrapper", "isect_offset_encode"),
    ("gsplat.cuda._wrapper", "adam"),
    ("gsplat.relocation", "compute_relocation"),
)
"""Where gsplat defines what has a stand-in; a version without one of them has no stand-in for it."""

_FLAT = "has no 2D Gaussians; draw 3D Gaussians with gsplat.rasterization, or run on a GPU"
_UNSCENTED = "has no unscented transform (3DGUT); undistort the photos and use gsplat.rasterization, or run on a GPU"
_PARTS = "has not this part; use gsplat.rasterization, or fully_fused_projection and rasterize_to_pixels"
REFUSED = {
    ("gsplat.rendering", "rasterization_2dgs"): _FLAT,
    ("gsplat.cuda._wrapper", "fully_fused_projection_2dgs"): _FLAT,
    ("gsplat.cuda._wrapper", "rasterize_to_pixels_2dgs"): _FLAT,
    ("gsplat.cuda._wrapper", "rasterize_to_indices_in_range_2dgs"): _FLAT,
    ("gsplat.cuda._wrapper", "rasterize_to_pixels_eval3d"): _UNSCENTED,
    ("gsplat.cuda._wrapper", "fully_fused_projection_with_ut"): _UNSCENTED,
    ("gsplat.cuda._wrapper", "rasterize_to_indices_in_range"): _PARTS,
    ("gsplat.cuda._wrapper", "proj"): _PARTS,
}
"""What gsplat has on a GPU only, and what to do instead."""


def _originals() -> list[tuple[str, Any]]:
    """Name and present value of everything of `STAND_INS` and `REFUSED` that this gsplat has."""
    found = []
    for module, name in (*STAND_INS, *REFUSED):
        try:
            value = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:
            continue
        if value is not None:
            found.append((name, value))
    return found


def _rebind(name: str, old: Any, new: Any) -> None:
    """Bind ``name`` to ``new`` in every loaded module that has it bound to ``old``."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and vars(module).get(name) is old:
            setattr(module, name, new)


def _stand_in(name: str, original: Callable[..., Any], version: str) -> StandIn:
    from scene_distill.plugins import gsplat_harmonics, gsplat_projection, gsplat_rasterization, gsplat_steps
    from scene_distill.plugins import gsplat_tiles as tiles

    refused = {function: advice for (_, function), advice in REFUSED.items()}
    if name in refused:
        return StandIn(original, functools.partial(_refuse, name, refused[name]), None)
    request, layout = gsplat_rasterization.Request, gsplat_projection.Layout.of(version)
    fields = frozenset(field.name for field in dataclasses.fields(request))

    def rasterization(given: Mapping[str, Any]) -> Any:
        return gsplat_rasterization.rasterization(request(**{field: given[field] for field in fields}), layout)

    def fully_fused_projection(given: Mapping[str, Any]) -> Any:
        return gsplat_projection.fully_fused_projection(given, layout)

    def spherical_harmonics(given: Mapping[str, Any]) -> Any:
        return gsplat_harmonics.spherical_harmonics(
            given["degrees_to_use"], given["dirs"], given["coeffs"], given["masks"]
        )

    projected = "means covars quats scales viewmats Ks width height eps2d near_plane far_plane radius_clip packed"
    projected += " sparse_grad calc_compensations camera_model opacities"
    drawn = "means2d conics colors opacities image_width image_height tile_size isect_offsets flatten_ids backgrounds"
    drawn += " masks packed absgrad"
    ours: dict[str, tuple[Callable[[Mapping[str, Any]], Any], frozenset[str] | None]] = {
        "rasterization": (rasterization, fields),
        "rasterize_to_pixels": (gsplat_rasterization.rasterize_to_pixels, frozenset(drawn.split())),
        "fully_fused_projection": (fully_fused_projection, frozenset(projected.split())),
        "spherical_harmonics": (spherical_harmonics, None),
        "quat_scale_to_covar_preci": (gsplat_steps.quat_scale_to_covar_preci, None),
        "world_to_cam": (gsplat_steps.world_to_cam, None),
        "isect_tiles": (tiles.isect_tiles, None),
        "isect_offset_encode": (tiles.isect_offset_encode, None),
        "adam": (gsplat_steps.adam, None),
        "compute_relocation": (gsplat_steps.compute_relocation, None),
    }
    return StandIn(original, *ours[name])


def _refuse(name: str, advice: str, given: Mapping[str, Any]) -> Any:
    raise UserError(f"gsplat on the CPU {advice} (called: {name})")
