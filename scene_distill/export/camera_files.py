"""A scene's cameras for other programs: a COLMAP model (binary or text) and nerfstudio's transforms.json.

Both keep the world frame: nothing is moved, scaled or turned but the camera axes where the format has its own
(`data.transforms`). Cameras are those of the undistorted photos. Folders appear whole or not at all. What COLMAP has no
place for (unit, up, provenance) stands in a scene_info.json beside it, which our loader reads.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_error, write_json
from scene_distill.core.geometry import quats_from_rotmats
from scene_distill.data.colmap import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints, write_model
from scene_distill.data.scene import Frame, Scene
from scene_distill.data.transforms import write_transforms
from scene_distill.export.metadata import SplatMetadata


def write_colmap(scene: Scene, folder: Path, kind: Literal["bin", "txt"] = "bin") -> None:
    """Write ``folder``/sparse/0 and ``folder``/scene_info.json; photos are not copied (put them into images/).

    A photo's keypoints are the projections of the points that it sees. Raises `UserError` when the scene has no frames
    or the folder cannot be written.
    """
    if not scene.frames:
        raise UserError(f"{scene.root} has no cameras to write to {folder}")

    def fill(scratch: Path) -> None:
        write_model(colmap_model(scene), scratch / "sparse" / "0", kind)
        write_json(scratch / "scene_info.json", _info(scene))

    _whole_folder(folder, ("sparse", "scene_info.json"), fill)


def write_nerfstudio(scene: Scene, folder: Path) -> None:
    """Write ``folder``/transforms.json with the scene's split, and its points beside it; photos stay where they are.

    Raises `UserError` as `write_colmap` does.
    """
    if not scene.frames:
        raise UserError(f"{scene.root} has no cameras to write to {folder}")
    absolute = replace(scene, frames=tuple(replace(frame, path=frame.path.resolve()) for frame in scene.frames))

    def fill(scratch: Path) -> None:
        write_transforms(absolute, scratch / "transforms.json")
        write_json(scratch / "scene_info.json", _info(scene))

    _whole_folder(folder, ("transforms.json", "sparse_pc.ply", "scene_info.json"), fill)


def colmap_model(scene: Scene) -> ColmapModel:
    """The scene as a COLMAP model: one PINHOLE camera per different set of intrinsics, ids count from 1."""
    lenses: dict[tuple[float, ...], ColmapCamera] = {}
    images = []
    for number, frame in enumerate(scene.frames, start=1):
        camera = frame.camera
        key = (camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)
        lens = lenses.setdefault(
            key, ColmapCamera(len(lenses) + 1, "PINHOLE", camera.width, camera.height, tuple(map(float, key[2:])))
        )
        images.append(_image(number, frame, lens.id, scene.points))
    tracks = [(row, frame, keypoint) for frame, image in enumerate(images, 1) for keypoint, row in
              enumerate(image.point_ids - 1)]  # fmt: skip
    table = np.array(tracks, np.int64).reshape(-1, 3)
    table = table[np.argsort(table[:, 0], kind="stable")]
    count = len(scene.points)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(table[:, 0], minlength=count))]).astype(np.int64)
    points = ColmapPoints(
        ids=np.arange(1, count + 1, dtype=np.int64),
        xyz=scene.points,
        colors=scene.colors,
        errors=np.zeros(count),
        offsets=offsets,
        track_images=table[:, 1].astype(np.int32),
        track_keypoints=table[:, 2].astype(np.int32),
    )
    return ColmapModel({lens.id: lens for lens in lenses.values()}, tuple(images), points)


def _image(number: int, frame: Frame, lens: int, points: np.ndarray) -> ColmapImage:
    pose = frame.camera.cam_from_world
    quat = quats_from_rotmats(torch.from_numpy(pose[:3, :3].copy())).numpy()
    pixels, _ = frame.camera.project(points[frame.seen])
    return ColmapImage(number, quat, pose[:3, 3], lens, frame.name, pixels, frame.seen.astype(np.int64) + 1)


def _info(scene: Scene) -> dict[str, object]:
    """What `data.load` understands of the metadata, and where it came from."""
    metadata = SplatMetadata.of_scene(scene)
    info: dict[str, object] = {"unit": metadata.unit, "up": [float(value) for value in scene.up]}
    if metadata.origin is not None:
        info["origin_lat_lon_alt"] = list(metadata.origin)
    return {**info, "source": metadata.source, "generator": metadata.generator}


def _whole_folder(folder: Path, entries: tuple[str, ...], fill: Callable[[Path], None]) -> None:
    """Fill a folder beside ``folder`` and move its ``entries`` in, over older ones of the same names."""
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        scratch.mkdir(parents=True)
        fill(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in entries:
            target = folder / name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(scratch / name, target)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
