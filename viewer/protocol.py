"""What a browser may ask for, checked before anything is done with it.

A message is one JSON object with a "type". Whatever is wrong with it becomes a `UserError` of one sentence, which goes
back to that browser; nothing else happens. Angles are radians, lengths the scene's unit, poses ``cam_from_world`` in
row order (OpenCV camera: x right, y down, z forward).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.viewer.layers import LABELS, Look
from scene_distill.viewer.scenes import Selection

LARGEST_MESSAGE = 64 * 1024
"""Characters of a message; a keyframe path of two hundred cameras takes about half."""

LARGEST_SIDE_PX = 4096
LARGEST_PICTURE_PX = 8_400_000
"""Pixels of a picture: 4K and a little."""

SMALLEST_SIDE_PX = 16

MOST_KEYFRAMES = 200
MOST_PATH_FRAMES = 3600


@dataclass(frozen=True, eq=False)
class RenderRequest:
    """A camera, one layer or two to be compared, what is selected and how it is coloured. ``quality`` 1 to 100 is that
    of the JPEG; 0 asks for PNG."""

    number: int
    camera: Camera
    layers: tuple[str, ...]
    selection: Selection
    look: Look
    quality: int


@dataclass(frozen=True, eq=False)
class PickRequest:
    """A pixel of a camera's picture; ``purpose`` goes back with the answer."""

    number: int
    camera: Camera
    selection: Selection
    x: int
    y: int
    purpose: str


@dataclass(frozen=True, eq=False)
class PathRequest:
    """Keyframes to fly through in ``seconds``, drawn as one layer at ``frames_per_second``."""

    keyframes: tuple[Camera, ...]
    seconds: float
    frames_per_second: int
    layer: str
    selection: Selection
    look: Look


@dataclass(frozen=True)
class SteerRequest:
    """A command for the training process: pause, resume, step or set."""

    command: dict[str, Any]


@dataclass(frozen=True)
class CancelRequest:
    """Stop the path that this browser asked for."""


Request = RenderRequest | PickRequest | PathRequest | SteerRequest | CancelRequest


def parse(text: str | bytes) -> Request:
    """The request in a message; raises `UserError` saying what is wrong with it."""
    if isinstance(text, bytes):
        raise UserError("messages are JSON text, not binary")
    if len(text) > LARGEST_MESSAGE:
        raise UserError(f"a message of {len(text)} characters is too long; {LARGEST_MESSAGE} are allowed")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("the message is not valid JSON") from error
    if not isinstance(message, dict):
        raise UserError("a message is a JSON object with a 'type'")
    kind = message.get("type")
    if not isinstance(kind, str) or kind not in _PARSERS:
        raise UserError(f"there is no message type '{str(kind)[:40]}'; there are {', '.join(_PARSERS)}")
    return _PARSERS[kind](message)


def number_of(text: str | bytes) -> int | None:
    """The number of a message that could not be parsed, where it says one."""
    try:
        number = json.loads(text)["id"] if len(text) <= LARGEST_MESSAGE else None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return number if type(number) is int else None


def _render(message: dict[str, Any]) -> RenderRequest:
    layers = message.get("layers", ["rgb"])
    if not isinstance(layers, list) or not 1 <= len(layers) <= 2:
        raise UserError("layers is a list of one or two names")
    camera = _camera(message.get("camera"), "camera")
    number, quality = _whole(message, "id", 0, 2**53), _whole(message, "quality", 0, 100, 85)
    return RenderRequest(
        number, camera, tuple(_layer(layer) for layer in layers), _selection(message), _look(message), quality
    )


def _pick(message: dict[str, Any]) -> PickRequest:
    camera, purpose = _camera(message.get("camera"), "camera"), message.get("purpose", "")
    if not isinstance(purpose, str) or len(purpose) > 40:
        raise UserError("purpose is a short text")
    return PickRequest(
        _whole(message, "id", 0, 2**53), camera, _selection(message), _whole(message, "x", 0, camera.width - 1),
        _whole(message, "y", 0, camera.height - 1), purpose,
    )  # fmt: skip


def _path(message: dict[str, Any]) -> PathRequest:
    frames = message.get("keyframes")
    if not isinstance(frames, list) or not 2 <= len(frames) <= MOST_KEYFRAMES:
        raise UserError(f"a path has 2 to {MOST_KEYFRAMES} keyframes")
    cameras = tuple(_camera(frame, f"keyframe {index}") for index, frame in enumerate(frames))
    if len({(camera.width, camera.height) for camera in cameras}) > 1:
        raise UserError("all keyframes of a path must have the same size")
    seconds, rate = _number(message, "seconds", 0.1, 600.0), _whole(message, "fps", 1, 60, 30)
    if seconds * rate > MOST_PATH_FRAMES:
        raise UserError(f"a path of {seconds * rate:.0f} pictures is too long; {MOST_PATH_FRAMES} are allowed")
    layer = _layer(message.get("layer", "rgb"))
    return PathRequest(cameras, seconds, rate, layer, _selection(message), _look(message))


def _steer(message: dict[str, Any]) -> SteerRequest:
    command: dict[str, Any] = {key: message[key] for key in ("command", "steps", "name", "value") if key in message}
    if command.get("command") not in ("pause", "resume", "step", "set"):
        raise UserError("a steer message has a command: pause, resume, step or set")
    return SteerRequest(command)


_PARSERS: dict[str, Callable[[dict[str, Any]], Request]] = {
    "render": _render, "pick": _pick, "path": _path, "steer": _steer, "cancel": lambda message: CancelRequest(),
}  # fmt: skip


def _camera(value: Any, where: str) -> Camera:
    if not isinstance(value, dict):
        raise UserError(f"{where} is an object with pose, fov, width and height")
    width = _whole(value, "width", SMALLEST_SIDE_PX, LARGEST_SIDE_PX)
    height = _whole(value, "height", SMALLEST_SIDE_PX, LARGEST_SIDE_PX)
    if width * height > LARGEST_PICTURE_PX:
        raise UserError(f"a picture of {width} x {height} pixels is too large; {LARGEST_PICTURE_PX} are allowed")
    fov = _number(value, "fov", math.radians(1), math.radians(170))
    pose = np.array(_numbers(value.get("pose"), 16, f"{where}: pose")).reshape(4, 4)
    rotation = pose[:3, :3]
    rigid = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and np.linalg.det(rotation) > 0
    if not rigid or not np.allclose(pose[3], [0, 0, 0, 1]):
        raise UserError(f"{where}: pose is not a rotation and a translation")
    focal = height / 2 / math.tan(fov / 2)
    return Camera(width, height, focal, focal, width / 2, height / 2, pose)


def _selection(message: dict[str, Any]) -> Selection:
    blocks, crop = message.get("blocks"), message.get("crop")
    if blocks is not None:
        if not isinstance(blocks, list) or len(blocks) > 100_000 or not all(type(block) is int for block in blocks):
            raise UserError("blocks is a list of block numbers")
        if any(not -1 <= block < 2**31 for block in blocks):
            raise UserError("a block number is out of range")
        blocks = frozenset(blocks)
    if crop is not None:
        numbers = _numbers(crop, 6, "crop")
        low, high = np.array(numbers[:3]), np.array(numbers[3:])
        if (low > high).any():
            raise UserError("crop is low x y z, high x y z, with low below high")
        crop = (low, high)
    return Selection(blocks, crop)


def _look(message: dict[str, Any]) -> Look:
    span = message.get("depth_range")
    if span is not None:
        near, far = _numbers(span, 2, "depth_range")
        if not 0 < near < far:
            raise UserError("depth_range is near, far with 0 < near < far")
        span = (near, far)
    return Look(_number(message, "gain", 0.1, 100.0, 4.0), span)


def _layer(value: Any) -> str:
    if not isinstance(value, str) or value not in LABELS:
        raise UserError(f"there is no layer '{str(value)[:40]}'; there are {', '.join(LABELS)}")
    return value


def _numbers(value: Any, count: int, where: str) -> list[float]:
    if not isinstance(value, list) or len(value) != count or not all(_is_number(item) for item in value):
        raise UserError(f"{where} is a list of {count} finite numbers")
    return [float(item) for item in value]


def _number(values: dict[str, Any], name: str, low: float, high: float, default: float | None = None) -> float:
    value: Any = values.get(name, default)
    if not _is_number(value) or not low <= value <= high:
        raise UserError(f"{name} is a number from {low:g} to {high:g}")
    return float(value)


def _whole(values: dict[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    value = values.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{name} is a whole number from {low} to {high}")
    return value


def _is_number(value: Any) -> bool:
    # NaN and infinities fail the comparison.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
