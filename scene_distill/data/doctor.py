"""What a scene is made of and what is wrong with it, before anything is trained."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from scene_distill.core import seeds
from scene_distill.data.doctor_photos import PhotoLook, alike, look_at_photos
from scene_distill.data.doctor_poses import Poses, examine_poses, pose_problems
from scene_distill.data.photo_quality import low_outliers, outliers
from scene_distill.data.scene import Frame, Scene

PHOTOS_DECODED = 40
"""Photos whose pixels are looked at unless more are asked for."""

_BRIGHTNESS_LEAST = 25.0
_GRID = (8, 6)
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Diagnosis:
    """Facts about a scene; lengths in its own unit.

    ``resolutions`` counts photos per size. ``spacing`` is the median distance of a point to its nearest neighbour,
    ``ground_sample`` the median size of a pixel on the points it sees, ``spacing_px`` their ratio. ``extent_cameras``
    and ``extent_points`` are (along two horizontal axes, along up), the points' from the 1st to the 99th percentile.
    ``image_coverage`` is the median share of an 8x6 grid over a photo in which it sees a point; ``views_per_point`` the
    median number of photos that see a point, ``thin_points`` the share of points that fewer than three see.
    ``blurred``, ``exposure_outliers`` and ``alike`` (groups that show the same, without those of one file) are among
    ``photos_decoded`` photos; ``duplicates`` are groups of photos with the same file or the same pose.
    """

    root: str
    source: str
    frames: int
    train: int
    test: int
    test_from: str
    skipped: dict[str, str]
    photos_without_pose: list[str]
    resolutions: dict[str, int]
    points: int
    spacing: float
    ground_sample: float
    spacing_px: float
    image_coverage: float
    views_per_point: float
    thin_points: float
    poses: Poses
    extent_cameras: tuple[float, float, float]
    extent_points: tuple[float, float, float]
    unit: str
    up: tuple[float, float, float]
    up_from: str
    photos_decoded: int
    blurred: list[str]
    exposure_outliers: list[str]
    duplicates: list[list[str]]
    alike: list[list[str]]
    notes: list[str]

    def lines(self) -> list[str]:
        """The diagnosis for people, facts first, then what deserves a look."""
        unit = "m" if self.unit == "metre" else "units"
        sizes = ", ".join(f"{count} of {size}" for size, count in self.resolutions.items())
        facts = [
            f"scene      {self.root} ({self.source})",
            f"photos     {self.frames} ({self.train} to train on, {self.test} held out: {self.test_from}); {sizes}",
            f"points     {self.points:,}, {self.spacing:.3g} {unit} apart ({self.spacing_px:.1f} px), "
            f"each seen by {self.views_per_point:.0f} photos",
            f"pixel      {self.ground_sample:.3g} {unit} on the ground, points in {self.image_coverage:.0%} of a photo",
            f"extent     cameras {_box(self.extent_cameras)} {unit}, points {_box(self.extent_points)} {unit}",
            f"up         ({', '.join(f'{value:.3f}' for value in self.up)}), from {self.up_from}; unit {self.unit}",
            f"poses      {self._poses(unit)}",
        ]
        return facts + [f"! {problem}" for problem in self.problems()]

    def _poses(self, unit: str) -> str:
        poses, (low, middle, high) = self.poses, self.poses.down
        roll = "" if poses.level is None else f", rolled {poses.level:.1f}"
        gps = (
            "" if poses.gps_scale is None else f"; lengths are {poses.gps_scale:.3g} of GPS ({poses.gps_photos} photos)"
        )
        return (
            f"{poses.height:.3g} {unit} above the points, {poses.spacing:.3g} {unit} apart, looking {middle:.0f} "
            f"degrees down ({low:.0f} to {high:.0f}){roll}; points seen under {poses.parallax:.0f} degrees{gps}"
        )

    def flagged(self) -> dict[str, list[str]]:
        """Photos that deserve a look, by name, with the reasons."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for reason, names in (
            ("blurred", self.blurred), ("exposure", self.exposure_outliers), ("far from all others", self.poses.far),
            ("rolled", self.poses.rolled), ("sees few points", self.poses.few_points),
            *(("same photo or pose", group) for group in self.duplicates),
            *(("shows the same", group) for group in self.alike),
        ):  # fmt: skip
            for name in names:
                reasons[name].append(reason)
        return dict(sorted(reasons.items()))

    def problems(self) -> list[str]:
        """What deserves a look, one sentence each; empty for a healthy scene."""
        found = []
        for reason, count in Counter(self.skipped.values()).most_common():
            names = [name for name, why in self.skipped.items() if why == reason]
            found.append(f"{count} photos left out because {reason}: {_some(names)}")
        if self.photos_without_pose:
            missing = self.photos_without_pose
            found.append(f"{len(missing)} photos have no pose and are not used: {_some(missing)}")
        among = f"among {self.photos_decoded} photos looked at"
        if self.blurred:
            found.append(f"{len(self.blurred)} look blurred {among}: {_some(self.blurred)}")
        if self.exposure_outliers:
            found.append(
                f"{len(self.exposure_outliers)} are much darker or brighter than the others {among}: "
                f"{_some(self.exposure_outliers)}"
            )
        found += [f"the same photo or pose more than once: {_some(group)}" for group in self.duplicates]
        found += [f"photos that show the same, from other poses or files: {_some(group)}" for group in self.alike]
        found += [f"{what}: {_some(names)}" if names else what for what, names in pose_problems(self.poses, self.unit)]
        if self.thin_points > 0.5:
            found.append(f"{self.thin_points:.0%} of the points are seen by fewer than three photos")
        if self.image_coverage < 0.3:
            found.append(f"points cover only {self.image_coverage:.0%} of a photo: expect holes where there are none")
        if self.views_per_point < 3:
            found.append(f"points are seen by {self.views_per_point:.0f} photos only: take more that overlap")
        return found + list(self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, the problems included."""
        return {**asdict(self), "problems": self.problems()}


def diagnose(scene: Scene) -> Diagnosis:
    """The diagnosis of ``scene``: every frame's pose and points, and the pixels of at most 40 photos spread over it."""
    return examine(scene)[0]


def examine(scene: Scene, photos: int = PHOTOS_DECODED) -> tuple[Diagnosis, list[PhotoLook]]:
    """The diagnosis, and what was seen of ``photos`` photos spread over the scene (0: of all)."""
    frames = scene.frames
    count = min(photos or len(frames), len(frames))
    looked_at = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]
    looks = look_at_photos(looked_at)
    blurred = low_outliers(np.array([look.sharpness for look in looks]))
    exposure = outliers(np.array([look.brightness for look in looks]), _BRIGHTNESS_LEAST)
    duplicates = _duplicates(frames)
    spacing, ground_sample = _spacing(scene.points), _ground_sample(scene)
    axes = horizontal_axes(scene.up)
    centers = np.stack([frame.camera.center for frame in frames])
    sizes = Counter(f"{frame.camera.width}x{frame.camera.height}" for frame in frames)
    without_pose = scene.metadata.get("photos_without_pose", [])
    diagnosis = Diagnosis(
        root=str(scene.root),
        source=str(scene.metadata.get("source", "unknown")),
        frames=len(frames),
        train=len(scene.train_frames),
        test=len(scene.test_frames),
        test_from=str(scene.metadata.get("test_from", "unknown")),
        skipped=dict(scene.skipped),
        photos_without_pose=list(without_pose) if isinstance(without_pose, Iterable) else [],
        resolutions=dict(sizes.most_common()),
        points=len(scene.points),
        spacing=spacing,
        ground_sample=ground_sample,
        spacing_px=spacing / ground_sample if ground_sample > 0 else 0.0,
        image_coverage=float(np.median([_coverage(frame, scene.points) for frame in frames])),
        views_per_point=_views_per_point(scene),
        thin_points=_thin_points(scene),
        poses=examine_poses(scene),
        extent_cameras=_extent(centers @ axes.T, 0.0),
        extent_points=_extent(scene.points @ axes.T, 1.0),
        unit=str(scene.metadata.get("unit", "unknown")),
        up=_three(scene.up),
        up_from=str(scene.metadata.get("up_from", "unknown")),
        photos_decoded=len(looks),
        blurred=[looked_at[i].name for i in blurred],
        exposure_outliers=[looked_at[i].name for i in exposure],
        duplicates=duplicates,
        alike=[group for group in alike(looks) if not any(set(group) <= set(known) for known in duplicates)],
        notes=_notes(scene),
    )
    return diagnosis, looks


def _spacing(points: np.ndarray) -> float:
    """Median distance of a point to its nearest neighbour; over 20,000 of them when there are more."""
    if len(points) < 2:
        return 0.0
    asked = points[seeds.numpy_generator(0, "doctor").permutation(len(points))[:20_000]]
    return float(np.median(cKDTree(points).query(asked, k=2)[0][:, 1]))


def _ground_sample(scene: Scene) -> float:
    """Median over frames of (median depth of the points seen) / focal length in pixels."""
    sizes = []
    for frame in scene.frames:
        depth = frame.camera.project(scene.points[frame.seen])[1]
        if (depth > 0).any():
            sizes.append(float(np.median(depth[depth > 0])) / frame.camera.fx)
    return float(np.median(sizes)) if sizes else 0.0


def _coverage(frame: Frame, points: np.ndarray) -> float:
    """Share of the cells of an 8x6 grid over the photo in which it sees a point."""
    pixels, depth = frame.camera.project(points[frame.seen])
    cells = np.floor(pixels[depth > 0] / [frame.camera.width, frame.camera.height] * _GRID).astype(int)
    inside = cells[((cells >= 0) & (cells < _GRID)).all(1)]
    return len(np.unique(inside, axis=0)) / (_GRID[0] * _GRID[1])


def _views_per_point(scene: Scene) -> float:
    seen = np.bincount(np.concatenate([frame.seen for frame in scene.frames]), minlength=len(scene.points))
    return float(np.median(seen[seen > 0])) if (seen > 0).any() else 0.0


def _thin_points(scene: Scene) -> float:
    seen = np.bincount(np.concatenate([frame.seen for frame in scene.frames]), minlength=len(scene.points))
    return float((seen < 3).mean())


def _duplicates(frames: tuple[Frame, ...]) -> list[list[str]]:
    """Groups of frames whose files are equal byte for byte or whose poses are equal."""
    by_size: dict[int, list[Frame]] = defaultdict(list)
    groups: dict[object, list[str]] = defaultdict(list)
    for frame in frames:
        by_size[frame.path.stat().st_size].append(frame)
        groups[np.round(frame.camera.cam_from_world, 9).tobytes()].append(frame.name)
    for same_size in by_size.values():
        if len(same_size) > 1:
            for frame in same_size:
                groups[hashlib.blake2b(frame.path.read_bytes()).hexdigest()].append(frame.name)
    return sorted(set_of for set_of in {tuple(g): list(g) for g in groups.values()}.values() if len(set_of) > 1)


def _notes(scene: Scene) -> list[str]:
    """In sentences, what the loader noted about the files."""
    told = {
        "photos_with_alpha_on_black": "{} photos have transparency, composited on black",
        "exif_orientation_ignored": "{} photos carry an EXIF orientation, not applied: cameras refer to stored pixels",
        "masks_ignored": "{} photos have a mask, which is not used",
        "points_dropped": "{} points are not finite and were dropped",
        "gps_unused": "GPS was not used: {}",
    }
    return [text.format(scene.metadata[key]) for key, text in told.items() if scene.metadata.get(key)]


def horizontal_axes(up: np.ndarray) -> np.ndarray:
    """Rows: two horizontal axes and up, [3, 3]."""
    first = np.cross(up, np.eye(3)[int(np.argmin(np.abs(up)))])
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(up, first), up])


def _extent(cloud: np.ndarray, percent: float) -> tuple[float, float, float]:
    low, high = np.percentile(cloud, [percent, 100 - percent], axis=0)
    return _three(high - low)


def _three(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def _box(extent: tuple[float, float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in extent)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
