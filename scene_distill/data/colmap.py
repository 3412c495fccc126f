"""COLMAP sparse models: cameras, images and points3D, binary or text, read and written.

The file layouts are COLMAP's documented ones (https://colmap.github.io/format.html). Poses are ``cam_from_world`` in
OpenCV axes, quaternions (w, x, y, z), pixel centres at half-integers: the house conventions, so nothing is converted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch

from scene_distill.core.errors import UserError, brief
from scene_distill.core.geometry import rotmats_from_quats
from scene_distill.data import colmap_binary, colmap_text
from scene_distill.data.lens import Lens

MODEL_PARAMS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8}
"""Number of parameters of every camera model understood here."""

FileKind = Literal["bin", "txt"]
T = TypeVar("T")


@dataclass(frozen=True)
class ColmapCamera:
    """Intrinsics: ``params`` in pixels, in COLMAP's order for ``model``."""

    id: int
    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def lens(self) -> Lens:
        """The same intrinsics as a `Lens`."""
        p = self.params
        size = (self.width, self.height)
        if self.model == "SIMPLE_PINHOLE":
            return Lens(*size, p[0], p[0], p[1], p[2])
        if self.model == "SIMPLE_RADIAL":
            return Lens(*size, p[0], p[0], p[1], p[2], k1=p[3])
        if self.model == "RADIAL":
            return Lens(*size, p[0], p[0], p[1], p[2], k1=p[3], k2=p[4])
        return Lens(*size, *p)


@dataclass(frozen=True, eq=False)
class ColmapImage:
    """One registered photo: pose ``cam_from_world`` as quat [4] (w, x, y, z) and translation [3] (world units).

    ``points2d`` [O, 2] float64 are its keypoints in pixels; ``point_ids`` [O] int64 the 3D point of each, -1 for none.
    """

    id: int
    quat: np.ndarray
    translation: np.ndarray
    camera_id: int
    name: str
    points2d: np.ndarray
    point_ids: np.ndarray

    def cam_from_world(self) -> np.ndarray | None:
        """The pose as a [4, 4] float64 matrix, None when it is not finite or its quaternion is zero."""
        norm = float(np.linalg.norm(self.quat))
        if not (np.isfinite(self.translation).all() and np.isfinite(norm) and norm > 1e-6):
            return None
        pose = np.eye(4)
        pose[:3, :3] = rotmats_from_quats(torch.from_numpy(np.asarray(self.quat, dtype=np.float64))).numpy()
        pose[:3, 3] = self.translation
        return pose


@dataclass(frozen=True, eq=False)
class ColmapPoints:
    """P sparse points and their tracks, ragged: point i is seen by entries ``offsets[i]:offsets[i + 1]``.

    ids [P] int64; xyz [P, 3] float64 world; colors [P, 3] uint8; errors [P] float64 pixels; offsets [P + 1] int64;
    track_images [T] int32 image ids; track_keypoints [T] int32 indices into that image's points2d.
    """

    ids: np.ndarray
    xyz: np.ndarray
    colors: np.ndarray
    errors: np.ndarray
    offsets: np.ndarray
    track_images: np.ndarray
    track_keypoints: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def without_tracks(xyz: np.ndarray, colors: np.ndarray) -> ColmapPoints:
        """Points numbered from 1 that no image is known to see."""
        count = len(xyz)
        none = np.zeros(0, np.int32)
        ids = np.arange(1, count + 1, dtype=np.int64)
        return ColmapPoints(ids, xyz, colors, np.zeros(count), np.zeros(count + 1, np.int64), none, none)


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """A sparse model: cameras by id, images in file order, points."""

    cameras: dict[int, ColmapCamera]
    images: tuple[ColmapImage, ...]
    points: ColmapPoints = field(
        default_factory=lambda: ColmapPoints.without_tracks(np.zeros((0, 3)), np.zeros((0, 3), np.uint8))
    )


def find_model(root: Path) -> Path | None:
    """The folder with the sparse model below ``root``: sparse/0, sparse, colmap/sparse/0, colmap/sparse or root."""
    for folder in ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", "."):
        if model_kind(root / folder) is not None:
            return root / folder
    return None


def model_kind(folder: Path) -> FileKind | None:
    """'bin' or 'txt' when ``folder`` holds a cameras and an images file of that kind (binary preferred)."""
    kinds: tuple[FileKind, ...] = ("bin", "txt")
    for kind in kinds:
        if all((folder / f"{stem}.{kind}").is_file() for stem in ("cameras", "images")):
            return kind
    return None


def read_model(folder: Path) -> ColmapModel:
    """The model in ``folder``, binary if present, else text; without a points3D file it has no points.

    Raises `UserError` when there is no model, a file is damaged, or a camera model is not one of `MODEL_PARAMS`.
    """
    kind = model_kind(folder)
    if kind is None:
        raise UserError(f"{folder} holds no COLMAP model; expected cameras.bin and images.bin (or .txt)")
    parser = colmap_binary if kind == "bin" else colmap_text
    cameras = {row[0]: _camera(row, folder) for row in _parsed(parser.read_cameras, folder / f"cameras.{kind}")}
    images = tuple(ColmapImage(*row) for row in _parsed(parser.read_images, folder / f"images.{kind}"))
    points_file = folder / f"points3D.{kind}"
    if not points_file.is_file():
        return ColmapModel(cameras, images)
    return ColmapModel(cameras, images, ColmapPoints(*_parsed(parser.read_points, points_file)))


def write_model(model: ColmapModel, folder: Path, kind: FileKind = "bin") -> None:
    """Write cameras, images and points3D of ``model`` into ``folder`` (made if needed), binary or text."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = colmap_binary if kind == "bin" else colmap_text
    cameras = [(c.id, c.model, c.width, c.height, c.params) for c in model.cameras.values()]
    images = [(i.id, i.quat, i.translation, i.camera_id, i.name, i.points2d, i.point_ids) for i in model.images]
    p = model.points
    writer.write_cameras(folder / f"cameras.{kind}", cameras)
    writer.write_images(folder / f"images.{kind}", images)
    writer.write_points(
        folder / f"points3D.{kind}", (p.ids, p.xyz, p.colors, p.errors, p.offsets, p.track_images, p.track_keypoints)
    )


def seen_points(model: ColmapModel) -> dict[int, np.ndarray]:
    """Sorted unique rows of ``model.points`` [P_f] int64 that each image observes, by image id.

    Taken from the images' keypoints and from the points' tracks (writers often leave one of the two out).
    """
    points = model.points
    rows_of_tracks = np.repeat(np.arange(len(points)), np.diff(points.offsets))
    order = np.argsort(points.track_images, kind="stable")
    tracked_images = points.track_images[order]
    by_id = np.argsort(points.ids)
    sorted_ids = points.ids[by_id]
    seen = {}
    for image in model.images:
        begin, end = np.searchsorted(tracked_images, [image.id, image.id + 1])
        ids = image.point_ids[image.point_ids >= 0]
        spot = np.minimum(np.searchsorted(sorted_ids, ids), max(len(points) - 1, 0))
        known = by_id[spot[sorted_ids[spot] == ids]] if len(points) else np.zeros(0, np.int64)
        seen[image.id] = np.union1d(known, rows_of_tracks[order[begin:end]]).astype(np.int64)
    return seen


def _camera(row: tuple, folder: Path) -> ColmapCamera:
    camera = ColmapCamera(*row)
    if camera.model not in MODEL_PARAMS:
        known = ", ".join(MODEL_PARAMS)
        raise UserError(
            f"camera {camera.id} in {folder} has the model {camera.model}, which is not supported; "
            f"undistort with COLMAP's image_undistorter or use one of {known}"
        )
    if len(camera.params) != MODEL_PARAMS[camera.model]:
        raise UserError(
            f"camera {camera.id} in {folder} has {len(camera.params)} parameters; "
            f"{camera.model} needs {MODEL_PARAMS[camera.model]}"
        )
    return camera


def _parsed(parse: Callable[[Path], T], path: Path) -> T:
    try:
        return parse(path)
    except (ValueError, IndexError, OverflowError, struct.error, OSError, MemoryError) as error:
        raise UserError(f"{path} is damaged or not a COLMAP file ({brief(error)}); export the model again") from error
