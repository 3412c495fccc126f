"""The structs of cuda/gpu/launchers.h as ctypes: same names without ``Sd``, same members in the same order."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_longlong, c_size_t, c_void_p
from typing import Any

from scene_distill.renderers.native import Limits


def _pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names.split()]


def _integers(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int) for name in names.split()]


class WorldGaussians(ctypes.Structure):
    """Gaussians and one camera: ``SdWorldGaussians``."""

    _fields_ = [
        *_pointers("means quats scales opacities cam_from_world intrinsics"),
        *_integers("count width height antialiased orthographic"),
        ("limits", Limits),
    ]


class Projected(ctypes.Structure):
    """What the projection writes: ``SdProjected``."""

    _fields_ = _pointers("means2d conics depths opacities extents")


class ProjectedGradients(ctypes.Structure):
    """What arrives at the projection's backward: ``SdProjectedGradients``."""

    _fields_ = _pointers("means2d conics depths opacities extents")


class WorldGradients(ctypes.Structure):
    """What the projection's backward writes: ``SdWorldGradients``."""

    _fields_ = _pointers("means quats scales opacities camera partials")


class BinInputs(ctypes.Structure):
    """Splats on the screen: ``SdBinInputs``."""

    _fields_ = [
        *_pointers("means2d conics opacities depths extents"),
        *_integers("count width height"),
        ("limits", Limits),
    ]


class BinOrder(ctypes.Structure):
    """Scratch and result of the sort by depth: ``SdBinOrder``."""

    _fields_ = [*_pointers("keys sorted_keys indices order tiles offsets scratch"), ("scratch_bytes", c_size_t)]


class BinPairs(ctypes.Structure):
    """Scratch and result of the sort by tile: ``SdBinPairs``."""

    _fields_ = [
        *_pointers("keys sorted_keys gaussians sorted_gaussians tile_offsets"),
        ("count", c_int),
        ("scratch", c_void_p),
        ("scratch_bytes", c_size_t),
    ]


class RasterInputs(ctypes.Structure):
    """What is drawn: ``SdRasterInputs``."""

    _fields_ = [
        *_pointers("means2d conics opacities features background tile_offsets pair_gaussian mask"),
        *_integers("channels width height"),
        ("limits", Limits),
    ]


class RasterGradients(ctypes.Structure):
    """What the raster backward adds to: ``SdRasterGradients``."""

    _fields_ = _pointers("means2d conics opacities features background absolute")


class Pictures(ctypes.Structure):
    """What the forward pass drew and its gradients: ``SdPictures``."""

    _fields_ = _pointers("image alpha grad_image grad_alpha")


class Contributions(ctypes.Structure):
    """What Gaussians add to a picture: ``SdContributions``."""

    _fields_ = _pointers("weight_sum weight_max pixels sums")


class RasterScratch(ctypes.Structure):
    """Checkpoints between its two passes: ``SdRasterScratch``."""

    _fields_ = [*_pointers("checkpoints bucket_tile totals background_partials"), ("pairs", c_int)]


class Images(ctypes.Structure):
    """A picture and its target: ``SdImages``."""

    _fields_ = [*_pointers("image target"), *_integers("width height")]


class Harmonics(ctypes.Structure):
    """Coefficients and where they are seen from: ``SdHarmonics``."""

    _fields_ = [
        *_pointers("means coefficients camera_center extents"),
        *_integers("count bases degree"),
    ]


class HarmonicsGradients(ctypes.Structure):
    """What their backward writes: ``SdHarmonicsGradients``."""

    _fields_ = _pointers("means coefficients camera_center partials")


class Similarity(ctypes.Structure):
    """Losses, their scratch and gradient: ``SdSimilarity``."""

    _fields_ = _pointers("partials means maps ssim_gradient")


class Adam(ctypes.Structure):
    """One step: ``SdAdam``."""

    _fields_ = [
        *_pointers("param grad exp_avg exp_avg_sq visible"),
        ("count", c_longlong),
        ("row_size", c_int),
        *[(name, c_float) for name in ("lr", "beta1", "beta2", "eps")],
        ("step", c_int),
    ]


class Anchors(ctypes.Structure):
    """Visible anchors and the decoder: ``SdAnchors``."""

    _fields_ = [
        *_pointers("positions features offsets log_scales visible camera_center"),
        ("weights", c_void_p * 12),
        ("count", c_int),
    ]


class Decoded(ctypes.Structure):
    """Gaussians of the anchors, or their gradients: ``SdDecoded``."""

    _fields_ = _pointers("means scales quats alphas colors")


class AnchorGradients(ctypes.Structure):
    """What the decoder's backward writes: ``SdAnchorGradients``."""

    _fields_ = _pointers("positions features offsets log_scales weights partials")


class Slots(ctypes.Structure):
    """One decoding, or its gradients: ``SdSlots``."""

    _fields_ = _pointers("scales quats alphas colors")
