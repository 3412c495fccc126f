"""Keyframes to a film: a smooth path through cameras, and mp4 through ffmpeg.

Positions and the logarithm of the focal length follow a Catmull-Rom spline, rotations spherical linear interpolation,
at even time between keyframes.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.viewer.encoding import eight_bit


def cameras_along(keyframes: Sequence[Camera], count: int) -> list[Camera]:
    """``count`` cameras from the first keyframe to the last, both included; at least two keyframes of one size."""
    from scipy.spatial.transform import Rotation, Slerp

    times = np.linspace(0, len(keyframes) - 1, count)
    turn = Slerp(range(len(keyframes)), Rotation.from_matrix([key.cam_from_world[:3, :3] for key in keyframes]))
    centers = _spline(np.stack([key.center for key in keyframes]), times)
    focals = np.exp(_spline(np.log([[key.fx] for key in keyframes]), times))[:, 0]
    path = []
    for rotation, center, focal in zip(turn(times).as_matrix(), centers, focals, strict=True):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ center
        path.append(replace(keyframes[0], cam_from_world=pose, fx=focal, fy=focal))
    return path


def _spline(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Catmull-Rom through values [K, D] at times [T] in 0 to K - 1; the ends are mirrored."""
    padded = np.concatenate([2 * values[:1] - values[1:2], values, 2 * values[-1:] - values[-2:-1]])
    index = np.minimum(times.astype(int), len(values) - 2)
    t = (times - index)[:, None]
    a, b, c, d = (padded[index + offset] for offset in range(4))
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


class Film:
    """An mp4 (H.264) that grows picture by picture and appears under its name when it is whole (`finish`)."""

    def __init__(self, path: Path, size: tuple[int, int], frames_per_second: int) -> None:
        self.path, self._even = path, (size[0] // 2 * 2, size[1] // 2 * 2)
        program = shutil.which("ffmpeg")
        if program is None:
            raise UserError("ffmpeg is not installed, so no film can be made; install it and ask again")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.stem}.partial.mp4")
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        command = [
            program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
            "-s", f"{self._even[0]}x{self._even[1]}", "-r", str(frames_per_second), "-i", "-",
            "-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart",
            "-threads", "2", str(self._partial),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._complaints
        )

    def add(self, image: Tensor) -> None:
        """Append a picture [H, W, 3] in [0, 1]; an odd last row or column is left out."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(eight_bit(image)[: self._even[1], : self._even[0]].tobytes())
        except BrokenPipeError as error:
            raise UserError(f"ffmpeg stopped: {self._complaint()}") from error

    def finish(self) -> None:
        """Write what is left and give the film its name; `UserError` when ffmpeg failed."""
        if self._ended() != 0:
            self._partial.unlink(missing_ok=True)
            raise UserError(f"ffmpeg could not write {self.path}: {self._complaint()}")
        self._partial.replace(self.path)

    def abandon(self) -> None:
        """Stop and leave nothing behind."""
        self._process.kill()
        self._ended()
        self._partial.unlink(missing_ok=True)

    def _ended(self) -> int:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        return self._process.wait()

    def _complaint(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[0][:200] if lines else "it gave no reason"
