"""Positions on the Earth: GPS tags of photos and local east-north-up metres (WGS 84)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

_SEMI_MAJOR_M = 6_378_137.0
_FLATTENING = 1 / 298.257223563
_GPS_IFD = 0x8825


def read_gps(path: Path) -> tuple[float, float, float] | None:
    """(latitude, longitude) in degrees and altitude in metres from a photo's EXIF; None when it has no position.

    A missing altitude is read as 0.
    """
    with Image.open(path) as image:
        tags = image.getexif().get_ifd(_GPS_IFD)
    try:
        latitude = _degrees(tags[2]) * (-1 if str(tags[1]).upper().startswith("S") else 1)
        longitude = _degrees(tags[4]) * (-1 if str(tags[3]).upper().startswith("W") else 1)
        below = tags.get(5, 0) in (1, b"\x01")
        altitude = float(tags.get(6, 0.0)) * (-1 if below else 1)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    position = (latitude, longitude, altitude)
    return position if np.isfinite(position).all() and (latitude, longitude) != (0.0, 0.0) else None


def enu_from_gps(positions: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Local east, north, up [..., 3] in metres about origin [3]; positions are (lat, lon in degrees, alt in metres)."""
    latitude, longitude = np.radians(origin[0]), np.radians(origin[1])
    sin_lat, cos_lat, sin_lon, cos_lon = np.sin(latitude), np.cos(latitude), np.sin(longitude), np.cos(longitude)
    enu_from_earth = np.array(
        [
            [-sin_lon, cos_lon, 0.0],
            [-sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat],
            [cos_lat * cos_lon, cos_lat * sin_lon, sin_lat],
        ]
    )
    return (_earth_from_gps(positions) - _earth_from_gps(origin)) @ enu_from_earth.T


def _earth_from_gps(positions: np.ndarray) -> np.ndarray:
    """Earth-centred, Earth-fixed metres [..., 3]."""
    latitude, longitude, altitude = np.radians(positions[..., 0]), np.radians(positions[..., 1]), positions[..., 2]
    squared_eccentricity = _FLATTENING * (2 - _FLATTENING)
    normal = _SEMI_MAJOR_M / np.sqrt(1 - squared_eccentricity * np.sin(latitude) ** 2)
    across = (normal + altitude) * np.cos(latitude)
    z = (normal * (1 - squared_eccentricity) + altitude) * np.sin(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), z], -1)


def _degrees(parts: tuple) -> float:
    degrees, minutes, seconds = (float(part) for part in parts)
    return degrees + minutes / 60 + seconds / 3600


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """(scale, rotation [3, 3], translation [3]) with target ≈ scale · rotation · source + translation, least squares.

    source and target [P, 3]; Umeyama, "Least-squares estimation of transformation parameters between two point
    patterns", 1991, eq. 39 to 42.
    """
    source_mean, target_mean = source.mean(0), target.mean(0)
    source, target = source - source_mean, target - target_mean
    left, values, right = np.linalg.svd(target.T @ source / len(source))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = left @ np.diag(signs) @ right
    scale = float((values * signs).sum() / (source**2).sum(1).mean())
    return scale, rotation, target_mean - scale * rotation @ source_mean
