"""transforms.json as nerfstudio writes it: read into posed photos and written from a scene.

``transform_matrix`` is world_from_cam with OpenGL camera axes (x right, y up, z backward); turning y and z gives the
house's OpenCV axes. Poses and the point cloud are in the file's own world; ``applied_transform``, which its maker has
already applied to both, is carried along in the metadata so that exporters can undo it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from scene_distill.core.errors import UserError, brief
from scene_distill.data.lens import Lens
from scene_distill.data.photo_files import SUFFIXES, PhotoFault, read_header
from scene_distill.data.point_clouds import read_point_cloud, write_point_cloud
from scene_distill.data.posed import PosedPhoto, PosedSet
from scene_distill.data.scene import Scene

_PINHOLE_LIKE = frozenset({"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE"})
_ROTATION_TOLERANCE = 1e-3
_LONGEST_NAME = 500


def read_transforms(path: Path) -> PosedSet:
    """The photos, points and split of the transforms.json at ``path``.

    Intrinsics are those of the file, overridden by those of a frame; ``camera_angle_x`` stands in for a missing
    ``fl_x``, the photo's own size for a missing ``w`` and ``h``. Raises `UserError` when the file is not JSON with a
    list of frames or a lens is not perspective.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({brief(error)}); export it again") from error
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(f, dict) and _is_name(f.get("file_path")) for f in frames):
        raise UserError(f"{path} has no list of frames with a file_path each; it is not a nerfstudio transforms.json")
    if not _is_name(content.get("ply_file_path") or ""):
        raise UserError(f"{path} has a ply_file_path that is not the name of a file; correct or remove it")
    photos = [_photo(content, frame, path) for frame in frames]
    points, colors = np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    if content.get("ply_file_path"):
        points, colors = read_point_cloud(path.parent / content["ply_file_path"])
    metadata: dict[str, object] = {"source": f"transforms.json ({path.name})"}
    for key in ("applied_transform", "applied_scale"):
        if key in content:
            metadata[key] = content[key]
    masks = sum("mask_path" in frame for frame in frames)
    if masks:
        metadata["masks_ignored"] = masks
    return PosedSet(photos, points, colors, _held_out(content, path), metadata)


def write_transforms(scene: Scene, path: Path, ply_name: str = "sparse_pc.ply") -> None:
    """Write ``scene`` as a transforms.json at ``path`` and its points as a PLY beside it; the split is written too.

    Photos inside the file's folder are named relative to it, others by their full path.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    frames, names = [], {}
    for frame in scene.frames:
        world_from_cam = frame.camera.world_from_cam
        world_from_cam[:3, 1:3] *= -1
        photo = Path(os.path.relpath(frame.path, folder))
        names[frame.name] = frame.path.resolve().as_posix() if photo.parts[0] == ".." else photo.as_posix()
        camera = frame.camera
        intrinsics = {"w": camera.width, "h": camera.height, "fl_x": camera.fx, "fl_y": camera.fy}
        intrinsics |= {"cx": camera.cx, "cy": camera.cy}
        frames.append({"file_path": names[frame.name], **intrinsics, "transform_matrix": world_from_cam.tolist()})
    content: dict[str, object] = {"camera_model": "OPENCV", "ply_file_path": ply_name}
    content |= {key: scene.metadata[key] for key in ("applied_transform", "applied_scale") if key in scene.metadata}
    content["train_filenames"] = [names[frame.name] for frame in scene.train_frames]
    content["test_filenames"] = [names[frame.name] for frame in scene.test_frames]
    write_point_cloud(folder / ply_name, scene.points, scene.colors)
    path.write_text(json.dumps({**content, "frames": frames}, indent=1), encoding="utf-8")


def _held_out(content: dict[str, Any], path: Path) -> frozenset[str] | None:
    """Names held out by the file's split: test_filenames, else val_filenames, else what train_filenames leaves out."""
    for key in ("test_filenames", "val_filenames", "train_filenames"):
        names = content.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path} has {key} that are not a list of file names; correct or remove them")
    for key in ("test_filenames", "val_filenames"):
        if content.get(key):
            return frozenset(_name(file_path) for file_path in content[key])
    if "train_filenames" in content:
        kept = {_name(file_path) for file_path in content["train_filenames"] or []}
        return frozenset(name for frame in content["frames"] if (name := _name(frame["file_path"])) not in kept)
    return None


def _is_name(value: object) -> bool:
    """Whether something can be the name of a file."""
    return isinstance(value, str) and len(value) <= _LONGEST_NAME


def _name(file_path: str) -> str:
    return Path(file_path).as_posix()


def _photo(content: dict[str, Any], frame: dict[str, Any], path: Path) -> PosedPhoto:
    photo = path.parent / frame["file_path"]
    if photo.suffix.lower() not in SUFFIXES:
        photo = next((p for s in (".png", ".jpg") if os.path.isfile(p := Path(f"{photo}{s}"))), photo)
    lens = _lens({**content, **frame}, photo, path)
    return PosedPhoto(_name(frame["file_path"]), photo, lens, _pose(frame.get("transform_matrix")))


def _lens(values: dict[str, Any], photo: Path, path: Path) -> Lens | None:
    """The lens of one frame; None when its numbers are missing or not numbers."""
    model = values.get("camera_model", "OPENCV")
    further = [key for key in ("k3", "k4", "k5", "k6") if values.get(key)]
    known = isinstance(model, str) and model in _PINHOLE_LIKE
    if not known or further:
        what = f"the camera model {str(model)[:40]}" if not known else f"the distortion {', '.join(further)}"
        raise UserError(f"{path} uses {what}, which is not supported; undistort the photos to a pinhole first")
    try:
        if "w" in values and "h" in values:
            width, height = int(values["w"]), int(values["h"])
        else:
            header = read_header(photo)
            width, height = header.width, header.height
        angle = values.get("camera_angle_x")
        fx = float(values["fl_x"]) if "fl_x" in values else width / 2 / math.tan(float(angle) / 2)  # type: ignore[arg-type]
        fy = float(values.get("fl_y", fx))
        cx, cy = float(values.get("cx", width / 2)), float(values.get("cy", height / 2))
        k1, k2, p1, p2 = (float(values.get(key, 0.0)) for key in ("k1", "k2", "p1", "p2"))
    except (TypeError, ValueError, OverflowError, ZeroDivisionError, PhotoFault):
        return None
    return Lens(width, height, fx, fy, cx, cy, k1, k2, p1, p2)


def _pose(matrix: object) -> np.ndarray | None:
    """``cam_from_world`` [4, 4] in OpenCV axes of an OpenGL world_from_cam; None unless finite and a rotation."""
    try:
        world_from_cam = np.array(matrix, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return None
    if world_from_cam.shape not in ((4, 4), (3, 4)) or not np.isfinite(world_from_cam).all():
        return None
    rotation = world_from_cam[:3, :3] * [1.0, -1.0, -1.0]
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        return None
    left, _, right = np.linalg.svd(rotation)
    pose = np.eye(4)
    pose[:3, :3] = (left @ right).T
    pose[:3, 3] = -pose[:3, :3] @ world_from_cam[:3, 3]
    return pose
