"""The files of the fuzz campaign (`fuzz_readers.py`): case n of a reader is always the same damaged file.

Every reader of files that come from elsewhere is here: splats, meshes, point clouds, and the loader of posed scenes
(COLMAP binary and text, transforms.json, with their photos).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fuzz_damage import damaged, damaged_glb, damaged_gzip, damaged_html, damaged_json, damaged_text, damaged_zip
from PIL import Image

from scene_distill.core.cameras import look_at
from scene_distill.core.geometry import quats_from_rotmats
from scene_distill.data.colmap import ColmapCamera, ColmapImage, ColmapModel, ColmapPoints, write_model
from scene_distill.data.load import load_scene
from scene_distill.data.point_clouds import read_point_cloud, write_point_cloud
from scene_distill.data.transforms import write_transforms
from scene_distill.export.assembly import empty_splats
from scene_distill.export.formats import named_format
from scene_distill.export.mesh_files import mesh_files, read_mesh, write_mesh
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.spz import write_spz
from scene_distill.representations.meshes import TriangleMesh
from scene_distill.representations.splats import Splats

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """``write`` makes the damaged file of a case in a folder; ``read`` reads it and tells whether what came out can be
    used (finite numbers, indices that exist)."""

    write: Callable[[Path, random.Random], Path]
    read: Callable[[Path], bool]


def either(first: Damage, second: Damage, share: float) -> Damage:
    """The first kind of damage in that share of the cases, else the second."""
    return lambda data, draw: (first if draw.random() < share else second)(data, draw)


def spoil(path: Path, damage: Damage, draw: random.Random) -> None:
    """Damage a file in its place."""
    path.write_bytes(damage(path.read_bytes(), draw))


# Splats


def splats_of(draw: random.Random) -> Splats:
    """A few splats of some degree."""
    count, bases = draw.choice((1, 5, 300)), draw.choice((1, 4, 9, 16))
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    splats = empty_splats(count, bases)
    for tensor in (splats.means, splats.log_scales, splats.quats, splats.opacity_logits, splats.sh):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return splats


def write_splats_case(name: str, damage: Damage, folder: Path, draw: random.Random) -> Path:
    splats, metadata = splats_of(draw), SplatMetadata(up=(0.0, 0.0, 1.0), antialiased=draw.random() < 0.5)
    if name.startswith("spz"):
        path = folder / "case.spz"
        write_spz(splats, path, metadata, int(name[3:]))
    else:
        kind = named_format(name)
        path = kind.path_in(folder, "case")
        kind.write(splats, path, metadata)
    if name == "sog-folder":
        victim = draw.choice([path, *sorted(path.parent.iterdir())])
        spoil(victim, damaged_json if victim == path else damaged, draw)
    elif name == "gltf" and draw.random() < 0.2:
        spoil(path.with_suffix(".bin"), damaged, draw)
    else:
        spoil(path, damage, draw)
    return path


def read_splats_case(name: str, path: Path) -> bool:
    splats, _ = named_format("spz" if name.startswith("spz") else name).read(path)
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in (splats.means, splats.quats, splats.sh))
    return finite and len(splats) > 0


# Meshes and points


def write_mesh_case(extension: str, damage: Damage, folder: Path, draw: random.Random) -> Path:
    seeds = np.random.default_rng(draw.randrange(1 << 30))
    count = draw.choice((3, 8, 100))
    vertices, faces = seeds.normal(size=(count, 3)), seeds.integers(0, count, (2 * count, 3))
    paint = draw.choice(("none", "colors", "texture"))
    colors = seeds.random((count, 3)).astype(np.float32) if paint == "colors" else None
    uvs = seeds.random((count, 2)).astype(np.float32) if paint == "texture" else None
    texture = seeds.integers(0, 256, (8, 8, 3)).astype(np.uint8) if paint == "texture" else None
    path, mesh = folder / f"case.{extension}", TriangleMesh(vertices, faces, colors, uvs, texture)
    write_mesh(mesh, path, SplatMetadata(up=(0.0, 0.0, 1.0)))
    beside = mesh_files(mesh, path)[1:]
    if beside and draw.random() < 0.2:
        spoil(draw.choice(beside), damaged, draw)
    else:
        spoil(path, damage, draw)
    return path


def read_mesh_case(path: Path) -> bool:
    mesh, _ = read_mesh(path)
    known = [values for values in (mesh.colors, mesh.uvs) if values is not None]
    return bool(np.isfinite(mesh.vertices).all()) and all(np.isfinite(values).all() for values in known)


def write_points_case(folder: Path, draw: random.Random) -> Path:
    seeds, path = np.random.default_rng(draw.randrange(1 << 30)), folder / "case.ply"
    points = seeds.normal(size=(draw.choice((1, 9, 200)), 3))
    colors = seeds.integers(0, 256, points.shape).astype(np.uint8)
    if draw.random() < 0.3:
        fields = [f"property {draw.choice(('float', 'double'))} {axis}" for axis in "xyz"]
        fields += [f"property {draw.choice(('uchar', 'ushort'))} {name}" for name in ("red", "green", "blue")]
        lines = ["ply", "format ascii 1.0", f"element vertex {len(points)}", *fields, "end_header"]
        lines += [" ".join(map(str, (*p, *c))) for p, c in zip(points.tolist(), colors.tolist(), strict=True)]
        path.write_text("\n".join(lines) + "\n")
    else:
        write_point_cloud(path, points, colors)
    spoil(path, either(damaged_text, damaged, 0.4), draw)
    return path


def read_points_case(path: Path) -> bool:
    points, colors = read_point_cloud(path)
    return points.shape == colors.shape and colors.dtype == np.uint8  # the loader drops points that are not finite


# Posed scenes


def model_of(draw: random.Random, photos: Path) -> ColmapModel:
    """A ring of cameras around a few points, and their photos."""
    seeds, count, size = np.random.default_rng(draw.randrange(1 << 30)), 5, (16, 12)
    camera = draw.choice((
        ColmapCamera(1, "PINHOLE", *size, (14.0, 14.5, 8.0, 6.0)),
        ColmapCamera(1, "OPENCV", *size, (14.0, 14.5, 8.0, 6.0, 0.05, -0.01, 0.001, 0.0)),
    ))  # fmt: skip
    points = seeds.uniform(-1, 1, (12, 3))
    images, photos_taken = [], range(1, count + 1)
    photos.mkdir(parents=True)
    for number in photos_taken:
        angle = 2 * np.pi * number / count
        eye = np.array([5 * np.cos(angle), 5 * np.sin(angle), 2.0])
        pose = look_at(eye, np.zeros(3), np.array([0.0, 0.0, 1.0]))
        quat = quats_from_rotmats(torch.from_numpy(pose[:3, :3].copy())).numpy()
        seen = seeds.uniform(0, 12, (len(points), 2)), np.arange(1, len(points) + 1)
        images.append(ColmapImage(number, quat, pose[:3, 3], 1, f"photo_{number}.png", *seen))
        Image.fromarray(seeds.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)).save(photos / f"photo_{number}.png")
    tracks = np.stack(np.broadcast_arrays(np.array(photos_taken), np.arange(len(points))[:, None]), -1).reshape(-1, 2)
    colors, ids = seeds.integers(0, 256, points.shape).astype(np.uint8), np.arange(1, len(points) + 1)
    offsets = np.arange(len(points) + 1) * count
    columns = (tracks[:, 0].astype(np.int32), tracks[:, 1].astype(np.int32))
    cloud = ColmapPoints(ids, points, colors, np.zeros(len(points)), offsets, *columns)
    return ColmapModel({1: camera}, tuple(images), cloud)


def write_colmap_case(kind: str, folder: Path, draw: random.Random) -> Path:
    root = folder / "case"
    write_model(model_of(draw, root / "images"), root / "sparse" / "0", "bin" if kind == "bin" else "txt")
    if draw.random() < 0.1:
        spoil(draw.choice(sorted((root / "images").iterdir())), damaged, draw)
    else:
        stem = draw.choice(("cameras", "images", "points3D"))
        damage = damaged if kind == "bin" else either(damaged_text, damaged, 0.6)
        spoil(root / "sparse" / "0" / f"{stem}.{kind}", damage, draw)
    return root


def write_transforms_case(folder: Path, draw: random.Random) -> Path:
    made, root = folder / "made", folder / "case"
    write_model(model_of(draw, made / "images"), made / "sparse" / "0")
    write_transforms(load_scene(made, test_every=0), root / "transforms.json")
    victim = draw.choice(("transforms.json", "transforms.json", "transforms.json", "sparse_pc.ply"))
    spoil(root / victim, damaged_json if victim.endswith("json") else either(damaged_text, damaged, 0.4), draw)
    return root


def read_scene_case(path: Path) -> bool:
    scene = load_scene(path, test_every=0)
    cameras = [frame.camera for frame in scene.frames]
    inside = all(((frame.seen >= 0) & (frame.seen < len(scene.points))).all() for frame in scene.frames)
    usable = all(np.isfinite(camera.cam_from_world).all() and min(camera.fx, camera.fy) > 0 for camera in cameras)
    return bool(np.isfinite(scene.points).all() and np.isfinite(scene.up).all() and inside and usable)


_PLY = either(damaged_text, damaged, 0.4)
_SPLATS: dict[str, Damage] = {
    "ply": _PLY, "splat": damaged, "compressed.ply": _PLY, "spz2": damaged_gzip, "spz3": damaged_gzip, "spz4": damaged,
    "sog": damaged_zip, "sog-folder": damaged, "glb": damaged_glb, "gltf": damaged_json, "html": damaged_html,
}  # fmt: skip
_MESHES: dict[str, Damage] = {"glb": damaged_glb, "obj": either(damaged_text, damaged, 0.7), "ply": _PLY}

READERS: dict[str, Reader] = {
    **{name: Reader(partial(write_splats_case, name, damage), partial(read_splats_case, name))
       for name, damage in _SPLATS.items()},
    **{f"mesh-{name}": Reader(partial(write_mesh_case, name, damage), read_mesh_case)
       for name, damage in _MESHES.items()},
    "points-ply": Reader(write_points_case, read_points_case),
    **{f"colmap-{kind}": Reader(partial(write_colmap_case, kind), read_scene_case) for kind in ("bin", "txt")},
    "transforms": Reader(write_transforms_case, read_scene_case),
}  # fmt: skip
