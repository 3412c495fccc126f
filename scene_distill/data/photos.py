"""Photos only → a COLMAP model: structure from motion through pycolmap, in stages that survive being killed.

    check    photos that cannot be opened are left out and named
    extract  SIFT on the CPU, one OPENCV camera for all photos of one size; database.db, a few photos at a time
    match    chosen pairs (`photo_pairs`), a few hundred at a time; pairs already in the database are skipped
    map      incremental mapping; of several models the one with most photos
    align    to GPS in east-north-up metres where the photos carry positions

Every stage leaves its result under a name that a half-done one never has, in a folder named after the photos' names,
sizes and times: change a photo and everything is made anew. Undistortion happens where the model is loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scene_distill.core import seeds
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json, write_json
from scene_distill.data import photo_pairs
from scene_distill.data.geodesy import enu_from_gps, read_gps, similarity
from scene_distill.data.photo_files import PhotoFault, list_photos, read_header
from scene_distill.data.posed import Progress
from scene_distill.data.undistortion import make_folder

FEATURES = 4096
"""Features per photo: enough for 800-pixel photos, and matching time grows with its square."""

_EXTRACT_AT_ONCE = 8
_MATCH_AT_ONCE = 400
_GPS_OUTLIER_M = 25.0
_GPS_SPREAD_MIN_M = 2.0
"""Positions closer together than GPS is exact say nothing about which photos overlap."""

_COLLINEAR = 0.05
"""GPS tracks narrower than this share of their length leave the roll about the track open: not used for alignment."""


@dataclass(frozen=True)
class Reconstruction:
    """Where the model is, photos that could not be opened with the reason, and unit, origin and residual if aligned."""

    model: Path
    skipped: dict[str, str]
    metadata: dict[str, object]


def reconstruct(folder: Path, cache: Path, progress: Progress) -> Reconstruction:
    """Cameras and points of the photos directly inside ``folder``, from ``cache`` when they have been made before.

    Raises `UserError` when fewer than 3 photos can be opened, when they do not overlap, when pycolmap is missing, or
    when the cache cannot be written.
    """
    sizes, skipped = _usable_photos(folder, progress)
    if len(sizes) < 3:
        raise UserError(f"{folder}: {len(sizes)} usable photos; structure from motion needs at least 3 that overlap")
    work = cache / f"reconstruction-{_fingerprint(folder, list(sizes))}"
    model, told = work / "model", work / "reconstruction.json"
    if not told.is_file():
        try:
            import pycolmap
        except ImportError as error:
            raise UserError("a folder of photos needs pycolmap; install it with: pip install pycolmap") from error
        make_folder(work)
        links = work / "photos"
        originals = _link(folder, list(sizes), links)
        with _quiet(pycolmap):
            linked_sizes = {link: sizes[name] for link, name in originals.items()}
            _extract(pycolmap, links, work / "database.db", linked_sizes, progress)
            read = _known_cameras(pycolmap, work / "database.db", linked_sizes)[1]
            _match(pycolmap, links, work, [link for link in originals if link in read], progress)
            best = _map(pycolmap, links, work, len(read), progress)
        if best is None:
            raise UserError(
                f"{folder}: no two photos match well enough to place cameras; take more that overlap by two thirds"
            )
        metadata = _align(pycolmap, best, links)
        for image in best.images.values():
            image.name = originals[image.name]
        unread = {name: "pycolmap cannot decode it" for link, name in originals.items() if link not in read}
        shutil.rmtree(model, ignore_errors=True)
        model.mkdir()
        best.write_binary(model)
        write_json(told, {"metadata": metadata, "unread": unread})
    made = read_json(told)
    return Reconstruction(model, {**skipped, **made["unread"]}, made["metadata"])


def _usable_photos(folder: Path, progress: Progress) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Sizes of the photos that can be opened, by name, and the reasons of those that cannot."""
    sizes, skipped = {}, {}
    found = list_photos(folder)
    for done, path in enumerate(found, start=1):
        try:
            header = read_header(path)
            sizes[path.name] = (header.width, header.height)
        except PhotoFault as fault:
            skipped[path.name] = str(fault)
        progress("checking photos", done, len(found))
    return sizes, skipped


def _link(folder: Path, names: list[str], links: Path) -> dict[str, str]:
    """Original name by the name of a link in ``links``: pycolmap's lists of pairs do not allow spaces in names."""
    links.mkdir(exist_ok=True)
    originals = {}
    for number, name in enumerate(names):
        link = links / f"{number:06d}{Path(name).suffix}"
        originals[link.name] = name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(folder.resolve() / name, links.resolve()))
    return originals


def _fingerprint(folder: Path, names: list[str]) -> str:
    stats = [(name, (stat := (folder / name).stat()).st_size, stat.st_mtime_ns) for name in names]
    return hashlib.blake2b(repr((stats, FEATURES)).encode(), digest_size=8).hexdigest()


def _extract(
    pycolmap: Any, folder: Path, database: Path, sizes: dict[str, tuple[int, int]], progress: Progress
) -> None:
    """Features of every photo into ``database``; photos of one size share one OPENCV camera."""
    cameras, done = _known_cameras(pycolmap, database, sizes)
    missing = [name for name in sizes if name not in done]
    options = pycolmap.FeatureExtractionOptions(
        use_gpu=False, sift=pycolmap.SiftExtractionOptions(max_num_features=FEATURES)
    )
    finished = len(sizes) - len(missing)
    progress("finding features", finished, len(sizes))
    for size in sorted({sizes[name] for name in missing}):
        group = [name for name in missing if sizes[name] == size]
        while group:
            # the first photo of a size alone, so that its camera exists before the others join it
            batch = group[:_EXTRACT_AT_ONCE] if size in cameras else group[:1]
            group = group[len(batch) :]
            reader = pycolmap.ImageReaderOptions(camera_model="OPENCV", existing_camera_id=cameras.get(size, -1))
            pycolmap.extract_features(
                database, folder, batch, pycolmap.CameraMode.SINGLE, reader, options, pycolmap.Device.cpu
            )
            cameras, _ = _known_cameras(pycolmap, database, sizes)
            finished += len(batch)
            progress("finding features", finished, len(sizes))


def _known_cameras(
    pycolmap: Any, database: Path, sizes: dict[str, tuple[int, int]]
) -> tuple[dict[tuple[int, int], int], set[str]]:
    """Camera id of every photo size in the database, and names of the photos whose features are there."""
    with pycolmap.Database.open(database) as opened:
        images = opened.read_all_images()
        done = {image.name for image in images if opened.exists_descriptors(image.image_id)}
        return {sizes[image.name]: image.camera_id for image in images}, done


def _match(pycolmap: Any, folder: Path, work: Path, names: list[str], progress: Progress) -> None:
    """Verified matches of the chosen pairs into the database."""
    database = work / "database.db"
    with pycolmap.Database.open(database) as opened:
        ids = {image.name: image.image_id for image in opened.read_all_images()}
        pairs = _pairs(opened, folder, names, ids)
        left = [(i, j) for i, j in pairs if not opened.exists_two_view_geometry(ids[names[i]], ids[names[j]])]
    done = len(pairs) - len(left)
    progress("matching photos", done, len(pairs))
    options = pycolmap.FeatureMatchingOptions(use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions(ransac=pycolmap.RANSACOptions(min_inlier_ratio=0.25, random_seed=0))
    listed = work / "pairs.txt"
    for start in range(0, len(left), _MATCH_AT_ONCE):
        batch = left[start : start + _MATCH_AT_ONCE]
        listed.write_text("".join(f"{names[i]} {names[j]}\n" for i, j in batch), encoding="utf-8")
        pairing = pycolmap.ImportedPairingOptions(match_list_path=listed)
        pycolmap.match_image_pairs(database, options, pairing, verification, pycolmap.Device.cpu)
        progress("matching photos", done + start + len(batch), len(pairs))


def _pairs(opened: Any, folder: Path, names: list[str], ids: dict[str, int]) -> photo_pairs.Pairs:
    positions = _gps_enu(folder, names)
    if positions is not None and len(positions[0]) == len(names):
        horizontal = np.stack(list(positions[0].values()))[:, :2]
        if horizontal.std(0).max() > _GPS_SPREAD_MIN_M:
            return photo_pairs.near_pairs(horizontal)
    if len(names) <= photo_pairs.EXHAUSTIVE_MAX:
        return photo_pairs.all_pairs(len(names))
    descriptors = [opened.read_descriptors(ids[name]).data for name in names]
    return photo_pairs.alike_pairs(descriptors, seeds.numpy_generator(0, "photo-pairs"))


def _map(pycolmap: Any, folder: Path, work: Path, count: int, progress: Progress) -> Any:
    """The reconstruction with most photos, None when not even two of them match."""
    registered = 0
    progress("placing cameras", 0, count)

    def tell_started() -> None:
        nonlocal registered
        registered = 2  # a further model begins with another pair
        progress("placing cameras", registered, count)

    def tell_placed() -> None:
        nonlocal registered
        registered = min(registered + 1, count)
        progress("placing cameras", registered, count)

    options = pycolmap.IncrementalPipelineOptions(min_model_size=3, random_seed=0)
    scratch = work / "mapping"
    scratch.mkdir(exist_ok=True)
    models = pycolmap.incremental_mapping(
        work / "database.db",
        folder,
        scratch,
        options,
        initial_image_pair_callback=tell_started,
        next_image_callback=tell_placed,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    progress("placing cameras", count, count)
    return max(models.values(), key=lambda model: model.num_reg_images()) if models else None


def _align(pycolmap: Any, model: Any, folder: Path) -> dict[str, object]:
    """Move ``model`` into local east-north-up metres when GPS positions fix that frame; unit, origin and residual."""
    images = [model.image(image_id) for image_id in model.reg_image_ids()]
    found = _gps_enu(folder, [image.name for image in images])
    if found is None:
        return {"unit": "unknown"}
    enu, origin = found
    centers = {image.name: image.projection_center() for image in images}
    names = list(enu)
    source, target = np.stack([centers[name] for name in names]), np.stack([enu[name] for name in names])
    widths = np.linalg.svd(target - target.mean(0), compute_uv=False)
    if len(names) < 4 or widths[1] < _COLLINEAR * widths[0]:
        return {"unit": "unknown", "gps_unused": "the positions lie on a line"}
    kept = np.ones(len(names), bool)
    for _ in range(5):
        scale, rotation, translation = similarity(source[kept], target[kept])
        residuals = np.linalg.norm(scale * source @ rotation.T + translation - target, axis=1)
        kept = residuals <= max(3 * float(np.median(residuals)), 1.0)
    if float(np.median(residuals)) > _GPS_OUTLIER_M:
        return {"unit": "unknown", "gps_unused": f"positions are {np.median(residuals):.0f} m off the cameras"}
    model.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(rotation), translation))
    residual_m = round(float(np.median(residuals)), 3)
    return {"unit": "metre", "up": [0.0, 0.0, 1.0], "origin": origin.tolist(), "gps_residual_m": residual_m}


def _gps_enu(folder: Path, names: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """East, north, up [3] in metres by photo name and their origin (lat, lon, alt); None below three positions."""
    found = {name: position for name in names if (position := read_gps(folder / name)) is not None}
    if len(found) < 3:
        return None
    origin = np.median(np.array(list(found.values())), axis=0)
    return {name: enu_from_gps(np.array(position), origin) for name, position in found.items()}, origin


@contextmanager
def _quiet(pycolmap: Any) -> Iterator[None]:
    """Only errors from pycolmap's log while inside."""
    level = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = level
