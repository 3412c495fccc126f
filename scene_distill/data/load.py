"""Files → scenes: recognise what a folder holds, check every photo, and hand over a `Scene` ready for training.

Three layouts are understood, in this order: a COLMAP model beside its photos (images/ or images_N/ with sparse/0,
sparse or colmap/sparse/0, binary or text), a nerfstudio transforms.json, and a folder of photos only, which goes
through structure from motion first. A scene_info.json beside them may say the up axis, unit and origin; it never
changes the split.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from scene_distill.core.errors import UserError, brief
from scene_distill.data import colmap, photos
from scene_distill.data.photo_files import PhotoFault, PhotoHeader, list_photos, read_header
from scene_distill.data.posed import PosedPhoto, PosedSet, Progress
from scene_distill.data.scene import Frame, Scene
from scene_distill.data.transforms import read_transforms
from scene_distill.data.undistortion import Undistorter
from scene_distill.data.up_axis import up_axis
from scene_distill.data.visibility import visible_points

CACHE = "scene-distill-cache"
"""Folder inside the scene for what is made once: undistorted photos, structure from motion."""

LAYOUTS = (
    "a COLMAP folder (images/ with sparse/0, sparse or colmap/sparse/0), a nerfstudio transforms.json, "
    "or a folder of photos"
)


def load_scene(
    path: Path | str, *, test_every: int = 8, test_list: Path | None = None, progress: Progress | None = None
) -> Scene:
    """The scene at ``path``, its photos checked and undistorted.

    Held out are the names in the file ``test_list`` (one per line), else the split a transforms.json brings, else every
    ``test_every``-th photo by sorted name, counted before bad photos are left out (0 holds out none). Photos that are
    missing, unreadable, of the wrong size or without a usable pose are in ``Scene.skipped`` with the reason.
    ``progress(stage, done, total)`` is called along the way. Raises `UserError` when nothing is recognised, when fewer
    than two photos remain to train on, when more than half are bad, and when there are no points to start from.
    """
    root = Path(path)
    tell = progress or (lambda stage, done, total: None)
    found, skipped = _read(root, tell)
    held_out, split = _held_out(found, skipped, test_every, test_list)
    folder = root if root.is_dir() else root.parent
    frames, faults, noted = _checked(found.photos, folder / CACHE / "undistorted", tell)
    skipped = {**skipped, **faults}
    _refuse_if_hopeless(root, frames, held_out, skipped)
    points, colors, rows, dropped = _finite_points(root, found)
    tracked = any(photo.seen is not None and len(photo.seen) for photo in found.photos)
    seen_from = "tracks" if tracked else "projection"
    frames = [replace(frame, seen=_seen(frame, seen_from, points, rows)) for frame in frames]
    metadata = {"unit": "unknown", **found.metadata, **noted, **_scene_info(folder)}
    up, up_from = metadata.pop("up", None), "metadata"
    if up is None:
        up, up_from = up_axis([frame.camera for frame in frames], points)
    metadata |= {"test_from": split, "seen_from": seen_from, "up_from": up_from, "points_dropped": dropped}
    metadata["photos_without_pose"] = sorted(set(found.without_pose) - set(skipped))
    test = frozenset(frame.name for frame in frames if frame.name in held_out)
    return Scene(root, tuple(frames), points, colors, test, np.asarray(up), metadata, dict(sorted(skipped.items())))


def _read(root: Path, tell: Progress) -> tuple[PosedSet, dict[str, str]]:
    """The photos and points below ``root`` by whichever layout fits, and photos already left out."""
    if not root.exists():
        raise UserError(f"{root} does not exist; give {LAYOUTS}")
    if root.is_file():
        if root.suffix != ".json":
            raise UserError(f"{root} is a file; give {LAYOUTS}")
        return read_transforms(root), {}
    model_folder = colmap.find_model(root)
    if model_folder is not None:
        return _read_colmap(model_folder, *_photo_folder(root)), {}
    if (root / "transforms.json").is_file():
        return read_transforms(root / "transforms.json"), {}
    folder = root / "images" if (root / "images").is_dir() else root
    if not list_photos(folder):
        raise UserError(f"{root} holds nothing to train on; give {LAYOUTS}")
    made = photos.reconstruct(folder, root / CACHE, tell)
    found = _read_colmap(made.model, folder, 1)
    metadata = {**found.metadata, **made.metadata, "source": "photos (structure from motion)"}
    return replace(found, metadata=metadata), made.skipped


def _read_colmap(model_folder: Path, folder: Path, shrink: int) -> PosedSet:
    model = colmap.read_model(model_folder)
    seen = colmap.seen_points(model)
    found, names = [], Counter(image.name for image in model.images)
    for image in sorted(model.images, key=lambda image: image.name):
        camera = model.cameras.get(image.camera_id)
        twice = names[image.name] > 1
        found.append(
            PosedPhoto(
                f"{image.name} (image {image.id})" if twice else image.name,
                folder / image.name,
                camera.lens() if camera else None,
                None if twice else image.cam_from_world(),
                seen[image.id],
                shrink,
            )
        )
    kind = "binary" if colmap.model_kind(model_folder) == "bin" else "text"
    without_pose = [path.name for path in list_photos(folder) if path.name not in names]
    metadata: dict[str, object] = {"source": f"COLMAP {kind} model"}
    return PosedSet(found, model.points.xyz, model.points.colors, None, metadata, without_pose)


def _photo_folder(root: Path) -> tuple[Path, int]:
    """The folder with a COLMAP model's photos and how many times they are shrunk: images/, else the least images_N/."""
    if (root / "images").is_dir():
        return root / "images", 1
    shrunk = [
        (int(m[1]), p) for p in root.glob("images_*") if p.is_dir() and (m := re.fullmatch(r"images_(\d+)", p.name))
    ]
    shrunk = [(factor, folder) for factor, folder in sorted(shrunk) if factor > 0]
    if not shrunk:
        raise UserError(
            f"{root} holds a COLMAP model but no images/ or images_N/ folder; put the photos into {root}/images"
        )
    factor, folder = shrunk[0]
    return folder, factor


def _held_out(
    found: PosedSet, skipped: dict[str, str], test_every: int, test_list: Path | None
) -> tuple[frozenset[str], str]:
    """Names held out, and in words by which rule."""
    names = sorted([*(photo.name for photo in found.photos), *skipped])
    if test_list is not None:
        if not test_list.is_file():
            raise UserError(f"the list of test photos {test_list} does not exist")
        listed = [line.strip() for line in test_list.read_text(encoding="utf-8").splitlines() if line.strip()]
        unknown = sorted(set(listed) - set(names))
        if unknown:
            raise UserError(f"{test_list} names {unknown[0]} ({len(unknown)} such), which is not a photo of the scene")
        return frozenset(listed), f"the list {test_list.name}"
    if found.test is not None:
        return found.test, "transforms.json"
    if test_every < 0:
        raise UserError(f"one photo in {test_every} cannot be held out; use 8, or 0 to hold out none")
    return frozenset(
        names[::test_every] if test_every else []
    ), f"one photo in {test_every} by name" if test_every else "none"


def _checked(
    found: list[PosedPhoto], cache: Path, tell: Progress
) -> tuple[list[Frame], dict[str, str], dict[str, object]]:
    """Frames by name with undistorted photos, the reasons of those left out, and what is worth noting about the rest.

    Photos of one camera are undistorted together, so that its sampling grid is made once.
    """
    frames, faults, alpha, turned = [], {}, 0, 0
    undistorter = Undistorter(cache)
    stage = "checking photos"
    if any(photo.lens is not None and not photo.lens.is_pinhole for photo in found):
        stage = "undistorting photos"
    for done, photo in enumerate(sorted(found, key=lambda photo: (repr(photo.lens), photo.name)), start=1):
        try:
            frame, header = _frame(photo, undistorter)
        except PhotoFault as fault:
            faults[photo.name] = str(fault)
        else:
            frames.append(frame)
            alpha += header.has_alpha
            turned += header.orientation != 1
        tell(stage, done, len(found))
    noted: dict[str, object] = {}
    if alpha:
        noted["photos_with_alpha_on_black"] = alpha
    if turned:
        noted["exif_orientation_ignored"] = turned
    return sorted(frames, key=lambda frame: frame.name), faults, noted


def _frame(photo: PosedPhoto, undistorter: Undistorter) -> tuple[Frame, PhotoHeader]:
    """The checked, undistorted frame of a photo; raises `PhotoFault` with the reason it cannot be used."""
    if photo.cam_from_world is None:
        raise PhotoFault("its pose is missing, given twice, not finite, or not a rotation")
    if photo.lens is None or not photo.lens.is_sane:
        raise PhotoFault("its camera is missing or its intrinsics are not usable numbers")
    header = read_header(photo.path)
    lens, size = photo.lens, (header.width, header.height)
    if photo.shrink > 1:
        rest = abs(size[0] * photo.shrink - lens.width), abs(size[1] * photo.shrink - lens.height)
        lens = lens.scaled(*size) if max(rest) <= photo.shrink else lens
    if size != (lens.width, lens.height):
        hint = ", which is its EXIF orientation: store it upright" if size == (lens.height, lens.width) else ""
        raise PhotoFault(f"the photo is {size[0]}x{size[1]} but its camera says {lens.width}x{lens.height}{hint}")
    path = photo.path
    if not lens.is_pinhole:
        path, lens = undistorter.undistort(path, lens)
    seen = photo.seen if photo.seen is not None else np.zeros(0, np.int64)
    return Frame(photo.name, path, lens.camera(photo.cam_from_world), seen), header


def _refuse_if_hopeless(root: Path, frames: list[Frame], held_out: frozenset[str], skipped: dict[str, str]) -> None:
    training = sum(frame.name not in held_out for frame in frames)
    total = len(frames) + len(skipped)
    if training >= 2 and 2 * len(skipped) <= total:
        return
    if skipped:
        reason, count = Counter(skipped.values()).most_common(1)[0]
        name = next(name for name, why in skipped.items() if why == reason)
        example = f"; most often ({count}x, e.g. {name}): {reason}"
        raise UserError(
            f"{root}: {len(skipped)} of {total} photos cannot be used, {training} remain to train on{example}"
        )
    raise UserError(
        f"{root}: {total} photos, {len(held_out)} held out, leave {training} to train on; at least 2 are needed"
    )


def _finite_points(root: Path, found: PosedSet) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Finite points [P, 3], their colours, the new row of every old one (-1 for dropped) and how many were dropped."""
    finite = np.isfinite(found.points).all(1)
    if not finite.any():
        raise UserError(
            f"{root} has no 3D points to start from; give a COLMAP model with points3D, or a transforms.json whose "
            "ply_file_path names a point cloud"
        )
    rows = np.where(finite, np.cumsum(finite) - 1, -1)
    return found.points[finite], found.colors[finite], rows, int((~finite).sum())


def _seen(frame: Frame, seen_from: str, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if seen_from == "projection":
        return visible_points(frame.camera, points)
    kept = rows[frame.seen]
    return kept[kept >= 0]


def _scene_info(folder: Path) -> dict[str, object]:
    """unit, up and origin (lat, lon, alt) from a scene_info.json, where there is one.

    Its own keys ``unit`` and ``up`` win; else ``frame`` in words is understood: 'metres' and 'z up'. The origin is its
    ``origin_lat_lon_alt``.
    """
    path = folder / "scene_info.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        words = str(content.get("frame", ""))
        info: dict[str, object] = {}
        if "unit" in content or re.search(r"\bmet(re|er)s?\b", words):
            info["unit"] = str(content.get("unit", "metre"))
        axis = re.search(r"\b([xyz]) up\b", words)
        if "up" in content:
            info["up"] = np.array(content["up"], dtype=float).reshape(3) / np.linalg.norm(content["up"])
        elif axis:
            info["up"] = np.eye(3)["xyz".index(axis[1])]
        if "origin_lat_lon_alt" in content:
            info["origin"] = [float(value) for value in content["origin_lat_lon_alt"]]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a readable scene_info.json ({brief(error)}); correct or remove it") from error
    return info
