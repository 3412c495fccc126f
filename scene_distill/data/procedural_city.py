"""A town that makes itself: photos, exact depth and poses, sparse points, written as a COLMAP project.

The folder goes through the same door as real data (`images/`, `sparse/0`); beside it lie exact depth maps and a
`scene_info.json` with the recipe. Everything follows from the seed. Photos and points are counted per city block, so a
city of twice as many blocks is twice as much work of the same kind: what the memory benchmark needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from scene_distill.core.cameras import Camera
from scene_distill.core.configs import load_config, to_plain
from scene_distill.core.errors import UserError
from scene_distill.core.files import read_json, write_error, write_json
from scene_distill.core.geometry import quats_from_rotmats
from scene_distill.core.seeds import numpy_generator
from scene_distill.data.city_layout import build_city
from scene_distill.data.city_renderer import CityRenderer
from scene_distill.data.city_survey import Flight, Matching, SparsePoints, fly, survey_points
from scene_distill.data.colmap import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints, write_model
from scene_distill.data.posed import Progress

SOURCE = "scene-distill procedural city"
VERSION = 6
"""Counts changes of the generator that change its pictures: older cached cities are made again."""
DEPTH_UNIT_M = 0.005
"""Metres per grey level of the 16-bit depth maps; 0 means nothing was hit."""


@dataclass(frozen=True)
class CityConfig:
    """Recipe of a procedural city. Lengths in metres, angles in degrees; everything is per block where it can be."""

    seed: int = 7
    """Seed of the layout, the textures and the flight."""
    blocks_x: int = 3
    """City blocks from west to east."""
    blocks_y: int = 3
    """City blocks from south to north."""
    block_size: float = 60.0
    """Distance between street centre lines."""
    building_height_min: float = 7.0
    """Height of the lowest blocks and halls; houses may be lower."""
    building_height_max: float = 27.0
    """Height of the office towers."""
    sun_azimuth: float = 215.0
    """Where the sun stands, clockwise from north."""
    sun_elevation: float = 46.0
    """Height of the sun above the horizon."""
    nadir_side: int = 3
    """Photos straight down per block: this number squared, on a square grid (it sets the overlap)."""
    obliques: int = 8
    """Oblique photos per block, looking at its middle from evenly spread headings."""
    altitude: float = 56.0
    """Height of the drone above the ground."""
    oblique_pitch: float = 58.0
    """How far below the horizon oblique photos look."""
    width: int = 400
    """Width of the photos in pixels."""
    height: int = 300
    """Height of the photos in pixels."""
    focal: float = 0.9
    """Focal length in image widths."""
    points_per_block: int = 6000
    """Sparse points per block, on average."""
    jpeg_quality: int = 95
    """Quality of the photos' JPEG files."""
    depth: bool = True
    """Write 16-bit depth maps beside the photos."""

    @property
    def photos_per_block(self) -> int:
        """Nadir and oblique photos of one block."""
        return self.nadir_side**2 + self.obliques

    @property
    def fingerprint(self) -> str:
        """Key of everything that decides the folder's content."""
        text = json.dumps([VERSION, to_plain(self)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def load_recipe(name: str) -> CityConfig:
    """The recipe called ``name`` ("city_demo"), a file of the repository's data/ folder or of the installed package.

    Raises `UserError` when there is no such recipe, listing those there are.
    """
    folders = [Path(str(files("scene_distill"))) / "recipes", Path(__file__).resolve().parents[2] / "data"]
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return load_config(CityConfig, path)
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("city_*.yaml")})
    raise UserError(f"there is no recipe called '{name}'; choose one of {', '.join(known)}")


def make_city(config: CityConfig, root: Path, progress: Progress | None = None) -> Path:
    """Build the city, photograph it and write the project folder ``root``; returns ``root``.

    A folder already made from the same recipe is left as it is; one made from another recipe is replaced, whole or not
    at all. ``progress`` is told the stage, what is done and the total. Raises `UserError` when a setting makes no city,
    when ``root`` holds something else, or when `embreex` is not installed.
    """
    _check(config)
    root = Path(root)
    if _made_from(root) == config.fingerprint:
        return root
    scratch = root.with_name(f".{root.name}.{os.getpid()}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        _write_city(config, scratch, progress or (lambda stage, done, total: None))
        shutil.rmtree(root, ignore_errors=True)
        os.replace(scratch, root)
    except OSError as error:
        raise write_error(root, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def _check(config: CityConfig) -> None:
    """Refuse settings that make no city."""
    least = {
        "blocks_x": 1,
        "blocks_y": 1,
        "nadir_side": 1,
        "obliques": 0,
        "width": 16,
        "height": 16,
        "points_per_block": 1,
    }
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise UserError(f"a city with {name} = {getattr(config, name)} cannot be made; use at least {smallest}")
    if config.block_size < 56:
        raise UserError(f"a block_size of {config.block_size} m leaves no room for buildings; use at least 56")
    if not 7 <= config.building_height_min <= config.building_height_max <= 0.7 * config.altitude:
        raise UserError(
            f"building heights from {config.building_height_min} to {config.building_height_max} m do not fit; "
            "start at 7 or more and stay below 0.7 x altitude"
        )
    if not (0 < config.sun_elevation <= 90 and 20 <= config.oblique_pitch <= 85 and config.focal > 0.2):
        raise UserError("sun_elevation must lie in (0, 90], oblique_pitch in [20, 85] and focal above 0.2")


def _made_from(root: Path) -> str | None:
    """Fingerprint of the finished city in ``root``, None when nothing is there; refuses folders that are not ours."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    info_path = root / "scene_info.json"
    info = read_json(info_path) if info_path.is_file() else {}
    if not isinstance(info, dict) or info.get("source") != SOURCE:
        raise UserError(f"{root} holds something that is not a procedural city; choose another folder")
    return str(info.get("fingerprint"))


def _write_city(config: CityConfig, root: Path, progress: Progress) -> None:
    """Everything that `make_city` promises, into an empty folder."""
    heights = (config.building_height_min, config.building_height_max)
    city = build_city(config.seed, (config.blocks_x, config.blocks_y), config.block_size, heights)
    renderer = CityRenderer(city, config.seed, (config.sun_azimuth, config.sun_elevation))
    flight = Flight(
        config.nadir_side,
        config.obliques,
        config.altitude,
        config.oblique_pitch,
        config.width,
        config.height,
        config.focal,
    )
    cameras = fly(city.plan, flight, config.seed)
    photos, depths = _photograph(config, renderer, cameras, root, progress)
    progress("matching points", 0, 1)
    matching = Matching(config.points_per_block * config.blocks_x * config.blocks_y)
    rng = numpy_generator(config.seed, "city", "points")
    sparse = survey_points(renderer, list(cameras.values()), photos, depths, matching, rng)
    write_model(_colmap_model(cameras, sparse), root / "sparse" / "0")
    progress("matching points", 1, 1)
    write_json(
        root / "scene_info.json",
        {
            "source": SOURCE,
            "fingerprint": config.fingerprint,
            "unit": "metre",
            "up": [0.0, 0.0, 1.0],
            "frame": "ENU, metres, z up, origin at the middle of the city",
            "depth_unit_m": DEPTH_UNIT_M if config.depth else None,
            "sharpness_psnr_8x": round(float(np.mean([shrunk_psnr(photo) for photo in photos])), 3),
            "photos": len(photos),
            "points": len(sparse.xyz),
            "blocks": city.kinds,
            "recipe": to_plain(config),
        },
    )


def _photograph(
    config: CityConfig, renderer: CityRenderer, cameras: dict[str, Camera], root: Path, progress: Progress
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Render and write every photo and depth map; returns photos [H, W, 3] uint8 and depths [H, W] float32."""
    for folder in ("images", "depth") if config.depth else ("images",):
        (root / folder).mkdir()

    def shoot(stem: str) -> tuple[np.ndarray, np.ndarray]:
        photo, depth = renderer.photo(cameras[stem]), renderer.depth(cameras[stem])
        Image.fromarray(photo).save(root / "images" / f"{stem}.jpg", quality=config.jpeg_quality, subsampling=0)
        if config.depth:
            levels = np.clip(np.rint(depth / DEPTH_UNIT_M), 0, 65535).astype(np.uint16)
            Image.fromarray(levels).save(root / "depth" / f"{stem}.png", compress_level=3)
        return photo, depth

    shots = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for shot in pool.map(shoot, cameras):
            shots.append(shot)
            progress("taking photos", len(shots), len(cameras))
    return [photo for photo, _ in shots], [depth for _, depth in shots]


def _colmap_model(cameras: dict[str, Camera], sparse: SparsePoints) -> ColmapModel:
    """The survey as a COLMAP model with one shared pinhole camera; ids count from 1."""
    stems = list(cameras)
    shared = cameras[stems[0]]
    lens = ColmapCamera(1, "PINHOLE", shared.width, shared.height, (shared.fx, shared.fy, shared.cx, shared.cy))
    keypoint = np.empty(len(sparse.point), np.int32)
    images = []
    for row, stem in enumerate(stems):
        mine = np.flatnonzero(sparse.frame == row)
        keypoint[mine] = np.arange(len(mine))
        pose = cameras[stem].cam_from_world
        quat = quats_from_rotmats(torch.from_numpy(pose[:3, :3].copy())).numpy()
        images.append(
            ColmapImage(
                row + 1,
                quat,
                pose[:3, 3],
                1,
                f"{stem}.jpg",
                sparse.pixels[mine],
                sparse.point[mine].astype(np.int64) + 1,
            )
        )
    count = len(sparse.xyz)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(sparse.point, minlength=count))]).astype(np.int64)
    points = ColmapPoints(
        ids=np.arange(1, count + 1, dtype=np.int64),
        xyz=sparse.xyz,
        colors=sparse.colors,
        errors=sparse.errors,
        offsets=offsets,
        track_images=sparse.frame.astype(np.int32) + 1,
        track_keypoints=keypoint,
    )
    return ColmapModel({1: lens}, tuple(images), points)


def shrunk_psnr(photo: np.ndarray, factor: int = 8) -> float:
    """PSNR in dB of a photo [H, W, 3] uint8 against its copy shrunk ``factor`` times (box), re-enlarged (bicubic).

    A measure of detail: a blurry scene scores high.
    """
    image = Image.fromarray(photo)
    small = image.resize((max(1, image.width // factor), max(1, image.height // factor)), Image.Resampling.BOX)
    error = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC), np.float32) - photo
    return float(10 * np.log10(255.0**2 / max(float(np.mean(error**2)), 1e-9)))


def read_depth(root: Path, stem: str) -> np.ndarray:
    """Depth map [H, W] float32 metres along the optical axis of the photo called ``stem``; 0 where nothing was hit."""
    path = root / "depth" / f"{stem}.png"
    if not path.is_file():
        raise UserError(f"{path} does not exist; make the city with depth: true")
    return np.asarray(Image.open(path)).astype(np.float32) * np.float32(DEPTH_UNIT_M)
