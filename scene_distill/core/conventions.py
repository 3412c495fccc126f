"""The house conventions: frames, units, orders, and the constants that every rasterizer backend shares.

Frames       World is right-handed, metric where the data is. Cameras are OpenCV: x right, y down, z forward.
             Matrices say what they map: ``x_cam = cam_from_world @ x_world``.
Pixels       Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5).
Quaternions  (w, x, y, z), not necessarily unit; normalised where used.
Names        ``log_scales``, ``opacity_logits``, ``means2d_px``, ``depth_m``: a value says its space.
Colours      RGB in [0, 1], display-referred (sRGB as photographs store it). Images are [H, W, 3].

Shape letters, used alike in Python and in the kernels:

    N Gaussians   M pairs of (tile, Gaussian)   A anchors   S Gaussians per anchor (slots)   F feature channels of
    an anchor
    C cameras     H, W image      D channels   K SH bases   B batch   P points   T tiles
"""

ALPHA_MIN = 1.0 / 255.0
"""Contributions below one grey level are skipped (3DGS)."""

ALPHA_MAX = 0.999
"""Upper clamp of a single contribution, forward and backward alike (gsplat 1.4/1.5)."""

TRANSMITTANCE_MIN = 1e-4
"""A pixel is finished when the next transmittance would be at or below this (3DGS)."""

EPS2D_PX2 = 0.3
"""Low-pass added to the diagonal of the projected covariance, in square pixels (3DGS)."""

NEAR_M = 0.2
"""Depth in front of the camera below which nothing is drawn (Momentum-GS spec, section 1)."""

TILE = 16
"""Side of a square tile in pixels."""

SH_C0 = 0.28209479177387814
"""Value of the constant real spherical harmonic: rgb = 0.5 + SH_C0 * dc."""

ANCHOR_SLOTS = 10
"""Gaussians per anchor (Momentum-GS: k = 10); the decode kernels are built for it."""

ANCHOR_FEATURES = 32
"""Feature channels per anchor (Scaffold-GS, Momentum-GS)."""
