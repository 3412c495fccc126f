"""How sharp and how bright photos are, and which of a set stand out."""

from __future__ import annotations

import numpy as np
from torch import Tensor

_LUMA = np.array([0.299, 0.587, 0.114])
_OUTLIER = 4.0
"""Robust standard deviations from the median at which a photo stands out."""


def sharpness(photo: Tensor) -> float:
    """Variance of the Laplacian of the grey photo (uint8 [H, W, 3]) over the photo's own variance, >= 0.

    The usual focus measure (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000), divided by the
    contrast so that dull scenes do not pass for blurred ones. 0 for a photo of one colour.
    """
    grey = photo.numpy().astype(np.float64) @ _LUMA
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    variance = float(grey.var())
    return float(laplacian.var()) / variance if variance > 1e-6 and laplacian.size else 0.0


def brightness(photo: Tensor) -> float:
    """Mean grey level in [0, 255] of a photo, uint8 [H, W, 3]."""
    return float((photo.numpy().reshape(-1, 3).mean(0) * _LUMA).sum())


def low_outliers(values: np.ndarray) -> np.ndarray:
    """Indices of values [n] > 0 that are far below the others: 4 robust deviations of the logarithm, and under half."""
    logs = np.log(np.maximum(values, 1e-9))
    middle, deviation = _robust(logs)
    return np.flatnonzero((logs < middle - _OUTLIER * deviation) & (logs < middle - np.log(2)))


def outliers(values: np.ndarray, least: float) -> np.ndarray:
    """Indices of values [n] more than 4 robust deviations and more than ``least`` away from the median."""
    middle, deviation = _robust(values)
    return np.flatnonzero(np.abs(values - middle) > max(_OUTLIER * deviation, least))


def _robust(values: np.ndarray) -> tuple[float, float]:
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))
