"""Lenses: intrinsics with Brown-Conrady distortion, as photographs come from a camera before undistortion."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scene_distill.core.cameras import Camera

_NEWTON_STEPS = 20
_FOLD_SAMPLES = 17


@dataclass(frozen=True)
class Lens:
    """Intrinsics in pixels and the coefficients of OpenCV's radial-tangential model (COLMAP's OPENCV).

    A ray (u, v, 1) lands on the pixel ``(fx u' + cx, fy v' + cy)`` with, for r2 = u^2 + v^2,

        u' = u (1 + k1 r2 + k2 r2^2) + 2 p1 u v + p2 (r2 + 2 u^2)
        v' = v (1 + k1 r2 + k2 r2^2) + 2 p2 u v + p1 (r2 + 2 v^2)

    Pixel centres are half-integers. All zeros is a pinhole.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0

    @property
    def is_pinhole(self) -> bool:
        """True when no distortion coefficient is set."""
        return self.k1 == self.k2 == self.p1 == self.p2 == 0.0

    @property
    def is_sane(self) -> bool:
        """True when every number is finite, the focal lengths are positive and the image is not empty."""
        numbers = (self.fx, self.fy, self.cx, self.cy, self.k1, self.k2, self.p1, self.p2)
        return bool(np.isfinite(numbers).all()) and min(self.fx, self.fy) > 0 and min(self.width, self.height) > 0

    def scaled(self, width: int, height: int) -> Lens:
        """The same lens on an image of another size; each axis is scaled by its own ratio."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy
        )

    def camera(self, cam_from_world: np.ndarray) -> Camera:
        """The pinhole camera at ``cam_from_world`` [4, 4]; distortion is dropped, so undistort the photo first."""
        return Camera(self.width, self.height, self.fx, self.fy, self.cx, self.cy, cam_from_world)

    def distorted(self, rays: np.ndarray) -> np.ndarray:
        """Distorted normalised coordinates [..., 2] of rays [..., 2] = (u, v)."""
        u, v = rays[..., 0], rays[..., 1]
        r2 = u * u + v * v
        radial = 1 + self.k1 * r2 + self.k2 * r2 * r2
        return np.stack(
            [
                u * radial + 2 * self.p1 * u * v + self.p2 * (r2 + 2 * u * u),
                v * radial + 2 * self.p2 * u * v + self.p1 * (r2 + 2 * v * v),
            ],
            axis=-1,
        )

    def undistorted(self, points: np.ndarray) -> np.ndarray:
        """Rays [..., 2] whose distorted coordinates are ``points`` [..., 2] (Newton; the inverse of `distorted`)."""
        rays = points.astype(float).copy()
        for _ in range(_NEWTON_STEPS):
            step = self._newton_step(rays, self.distorted(rays) - points)
            rays -= step
            if np.abs(step).max(initial=0.0) < 1e-14:
                break
        return rays

    def folds(self, rays: np.ndarray) -> np.ndarray:
        """[...] bool: whether the distortion turns back on itself between the optical axis and rays [..., 2].

        Beyond such a fold another ray lands on the same pixel, and the polynomial no longer describes a lens.
        """
        way = rays[..., None, :] * np.linspace(0.0, 1.0, _FOLD_SAMPLES)[:, None]
        uu, vv, uv = self._jacobian(way)
        return ((uu * vv - uv * uv <= 0) | (uu + vv <= 0)).any(-1)

    def _newton_step(self, rays: np.ndarray, error: np.ndarray) -> np.ndarray:
        """The inverse of the Jacobian of `distorted` at rays [..., 2], times error [..., 2]."""
        uu, vv, uv = self._jacobian(rays)
        rows = [vv * error[..., 0] - uv * error[..., 1], uu * error[..., 1] - uv * error[..., 0]]
        return np.stack(rows, -1) / (uu * vv - uv * uv)[..., None]

    def _jacobian(self, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """du'/du, dv'/dv and du'/dv = dv'/du [...] at rays [..., 2]; the matrix is symmetric."""
        u, v = rays[..., 0], rays[..., 1]
        r2 = u * u + v * v
        radial = 1 + self.k1 * r2 + self.k2 * r2 * r2
        slope = 2 * self.k1 + 4 * self.k2 * r2
        uu = radial + slope * u * u + 2 * self.p1 * v + 6 * self.p2 * u
        vv = radial + slope * v * v + 2 * self.p2 * u + 6 * self.p1 * v
        return uu, vv, slope * u * v + 2 * self.p1 * u + 2 * self.p2 * v
