"""Mesh files by their extension: .glb (`mesh_glb`), .obj with .mtl and .png, .ply; and a reader for all three.

.obj  vertices in the world frame as decimals that give the same float64 back; colours behind the position (the
      extension that MeshLab, Blender and Open3D read) or ``vt`` and a material with the texture. Metadata in comments.
.ply  binary little-endian, positions as double, colours as bytes; with a texture ``s t`` and a comment
      ``TextureFile`` (MeshLab's). Metadata in comments.

Texture coordinates have v up in both, v down in glTF; `TriangleMesh` has v down.
"""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scene_distill.core.console import say
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.core.geometry import rotmats_from_quats
from scene_distill.data.photo_files import UNREADABLE
from scene_distill.export.mesh_glb import png_bytes, srgb_from_linear, write_mesh_glb
from scene_distill.export.metadata import SplatMetadata, metadata_from_comments, metadata_from_values
from scene_distill.representations.meshes import TriangleMesh

_ROWS_AT_ONCE = 1 << 16
_HEAD_BYTES = 1 << 16


def write_mesh(mesh: TriangleMesh, path: Path, metadata: SplatMetadata) -> None:
    """Write the mesh in the format that the file's extension names, each file whole or not at all.

    Raises `UserError` for another extension, for a mesh without faces, or when there is no space.
    """
    writers: dict[str, Callable[[TriangleMesh, Path, SplatMetadata], None]]
    writers = {".glb": write_mesh_glb, ".obj": write_obj, ".ply": write_mesh_ply}
    if path.suffix.lower() not in writers:
        raise UserError(f"{path} has no known mesh format; name the file {', '.join(writers)}.")
    if len(mesh) == 0:
        raise UserError(f"There are no faces to write to {path}.")
    writers[path.suffix.lower()](mesh, path, metadata)


def mesh_files(mesh: TriangleMesh, path: Path) -> list[Path]:
    """The files that `write_mesh` makes for this path."""
    if mesh.texture is None or path.suffix.lower() == ".glb":
        return [path]
    texture = path.with_suffix(".png")
    return [path, path.with_suffix(".mtl"), texture] if path.suffix.lower() == ".obj" else [path, texture]


def write_obj(mesh: TriangleMesh, path: Path, metadata: SplatMetadata) -> None:
    """Write the mesh as text, its texture and material beside it first."""
    if mesh.texture is not None:
        data = png_bytes(mesh.texture)
        write_atomically(path.with_suffix(".png"), lambda temporary: _write_bytes(temporary, data))
        lines = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 0", f"map_Kd {path.stem}.png", ""]
        material = "\n".join(lines).encode()
        write_atomically(path.with_suffix(".mtl"), lambda temporary: _write_bytes(temporary, material))

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="ascii", newline="\n") as file:
            file.writelines(_obj_lines(mesh, path.stem, metadata))

    write_atomically(path, write)


def _obj_lines(mesh: TriangleMesh, stem: str, metadata: SplatMetadata) -> Iterator[str]:
    yield from (f"# {comment}\n" for comment in metadata.comments())
    if mesh.texture is not None:
        yield f"mtllib {stem}.mtl\n"
    for rows in _slices(len(mesh.vertices)):
        columns = mesh.vertices[rows].tolist()
        if mesh.colors is None:
            yield "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in columns)
        else:
            colors = np.clip(mesh.colors[rows], 0.0, 1.0).tolist()
            yield "".join(
                f"v {x!r} {y!r} {z!r} {r:.6g} {g:.6g} {b:.6g}\n"
                for (x, y, z), (r, g, b) in zip(columns, colors, strict=True)
            )
    if mesh.uvs is not None:
        for rows in _slices(len(mesh.uvs)):
            yield "".join(f"vt {u:.9g} {1 - v:.9g}\n" for u, v in mesh.uvs[rows].astype(np.float64).tolist())
        yield "usemtl surface\n"
    corner = "{0}" if mesh.uvs is None else "{0}/{0}"
    line = "f " + " ".join(corner.replace("0", str(k)) for k in range(3)) + "\n"
    for rows in _slices(len(mesh)):
        yield "".join(line.format(*face) for face in (mesh.faces[rows] + 1).tolist())


def write_mesh_ply(mesh: TriangleMesh, path: Path, metadata: SplatMetadata) -> None:
    """Write the mesh as binary PLY, its texture beside it first."""
    fields: list[tuple[str, Any, str]] = [(axis, "<f8", "double") for axis in "xyz"]
    if mesh.colors is not None:
        fields += [(channel, "u1", "uchar") for channel in ("red", "green", "blue")]
    comments = metadata.comments()
    if mesh.texture is not None:
        data = png_bytes(mesh.texture)
        write_atomically(path.with_suffix(".png"), lambda temporary: _write_bytes(temporary, data))
        fields += [("s", "<f4", "float"), ("t", "<f4", "float")]
        comments = [f"TextureFile {path.stem}.png", *comments]
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in comments)]
    lines += [f"element vertex {len(mesh.vertices)}", *(f"property {kind} {name}" for name, _, kind in fields)]
    lines += [f"element face {len(mesh)}", "property list uchar int vertex_indices", "end_header", ""]
    vertex = np.dtype([(name, kind) for name, kind, _ in fields])
    face = np.dtype([("count", "u1"), ("corners", "<i4", 3)])

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write("\n".join(lines).encode("ascii"))
            for rows in _slices(len(mesh.vertices)):
                file.write(_ply_vertices(mesh, rows, vertex).tobytes())
            for rows in _slices(len(mesh)):
                table = np.empty(len(mesh.faces[rows]), face)
                table["count"], table["corners"] = 3, mesh.faces[rows]
                file.write(table.tobytes())

    write_atomically(path, write)


def _ply_vertices(mesh: TriangleMesh, rows: slice, dtype: np.dtype) -> np.ndarray:
    table = np.empty(len(mesh.vertices[rows]), dtype)
    for column, axis in enumerate("xyz"):
        table[axis] = mesh.vertices[rows, column]
    if mesh.colors is not None:
        levels = np.rint(np.clip(mesh.colors[rows], 0.0, 1.0) * 255).astype(np.uint8)
        for column, channel in enumerate(("red", "green", "blue")):
            table[channel] = levels[:, column]
    if mesh.uvs is not None:
        table["s"], table["t"] = mesh.uvs[rows, 0], 1 - mesh.uvs[rows, 1]
    return table


def read_mesh(path: Path) -> tuple[TriangleMesh, SplatMetadata]:
    """Mesh and metadata of a .glb, .obj or .ply file, through trimesh; a .glb of ours is turned back to its own world.

    A texture that is missing or no picture is told, and the mesh comes without it. Raises `UserError` when trimesh is
    not installed, or the file is missing, damaged, or without triangles.
    """
    if path.suffix.lower() not in (".glb", ".obj", ".ply"):
        raise UserError(f"{path} has no known mesh format; name the file .glb, .obj, .ply.")
    try:
        import trimesh
    except ImportError as error:
        raise UserError(f"reading meshes needs trimesh ({error}); install it with pip install 'scene-distill[meshes]'"
                        ) from error  # fmt: skip
    try:
        if path.suffix.lower() == ".obj":
            _check_indices(path)
        metadata, world_from_file = _metadata(path)
        with _quiet("trimesh"):
            mesh = _loaded(trimesh, path)
        lost = _lost_texture(path, mesh)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UserError:
        raise
    except Exception as error:  # trimesh raises whatever its parsers happen to meet in damaged files
        raise UserError(f"{path} is damaged or not a mesh ({str(error)[:120] or type(error).__name__}).") from error
    if len(mesh) == 0 or not np.isfinite(mesh.vertices).all():
        raise UserError(f"{path} has no triangles, or vertices that are not finite; it is no mesh that can be used.")
    if lost is not None:
        say(f"{path}: its texture {lost} is no picture that can be read; the mesh comes without it")
        mesh = mesh.without_texture()
    vertices = mesh.vertices @ world_from_file.T
    if not all(np.isfinite(values).all() for values in (vertices, mesh.colors, mesh.uvs) if values is not None):
        raise UserError(f"{path} has positions, colours or texture coordinates that are not finite; export it again.")
    return TriangleMesh(vertices, mesh.faces, mesh.colors, mesh.uvs, mesh.texture), metadata


def _check_indices(path: Path) -> None:
    """Raise ValueError for an .obj whose faces name points, texture coordinates or normals that are not there: trimesh
    makes arrays as long as the largest number."""
    counts = {b"v": 0, b"vt": 0, b"vn": 0}
    largest = [0, 0, 0]
    with path.open("rb") as file:
        for line in file:
            words = line.split()
            if words and words[0] in counts:
                counts[words[0]] += 1
            elif words and words[0] == b"f":
                for corner in words[1:]:
                    for place, number in enumerate(corner.split(b"/")[:3]):
                        if number.lstrip(b"+-").isdigit():
                            largest[place] = max(largest[place], abs(int(number[:20])))
    for (kind, count), most in zip(counts.items(), largest, strict=True):
        if most > count:
            raise ValueError(f"a face names {kind.decode()} {most} of {count}")


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Keep what a library logs about damaged files to itself: the reader says it in its own words."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _lost_texture(path: Path, mesh: TriangleMesh) -> str | None:
    """The texture that a file names and that is missing or no picture; None when all is well."""
    from PIL import Image

    if path.suffix.lower() == ".glb":
        materials = _glb_document(path).get("materials", []) if mesh.texture is None and mesh.colors is None else []
        asked = any("baseColorTexture" in material.get("pbrMetallicRoughness", {}) for material in materials)
        return "inside it" if asked else None
    words = _words_after(path, "TextureFile" if path.suffix.lower() == ".ply" else "mtllib")
    if words is not None and path.suffix.lower() == ".obj":
        material = path.parent / words
        words = _words_after(material, "map_Kd") if os.path.isfile(material) else words
    if words is None:
        return None
    try:
        with Image.open(path.parent / words) as image:
            image.verify()
    except UNREADABLE:
        return words[:100]
    return None


def _words_after(path: Path, keyword: str) -> str | None:
    """What follows a keyword in the first lines of a file."""
    with path.open("rb") as file:
        lines = file.read(_HEAD_BYTES).decode("utf-8", errors="replace").splitlines()
    starts = (f"{keyword} ", f"comment {keyword} ")
    return next((line.split(keyword, 1)[1].strip() for line in map(str.strip, lines) if line.startswith(starts)), None)


def _loaded(trimesh: Any, path: Path) -> TriangleMesh:
    """Everything in the file as one mesh in the file's frame, with sRGB colours or a texture where it has one part."""
    if path.suffix.lower() != ".glb":
        return _from_trimesh(trimesh.load(path, force="mesh", process=False, maintain_order=True))
    scene = trimesh.load_scene(path, process=False)
    nodes = scene.graph.nodes_geometry
    if len(nodes) != 1:
        return _from_trimesh(scene.to_mesh()).without_texture()
    transform, name = scene.graph[nodes[0]]
    mesh = _from_trimesh(scene.geometry[name])
    colors = None if mesh.colors is None else srgb_from_linear(mesh.colors).astype(np.float32)
    vertices = mesh.vertices @ transform[:3, :3].T + transform[:3, 3]
    return TriangleMesh(vertices, mesh.faces, colors, mesh.uvs, mesh.texture)


def _from_trimesh(loaded: Any) -> TriangleMesh:
    """The `TriangleMesh` of a trimesh.Trimesh, its colours as they are."""
    vertices, faces = np.asarray(loaded.vertices, np.float64), np.asarray(loaded.faces, np.int64).reshape(-1, 3)
    visual = loaded.visual
    if visual.kind == "vertex":
        return TriangleMesh(vertices, faces, _unit_colors(visual.vertex_colors))
    material = getattr(visual, "material", None)
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if visual.kind == "texture" and getattr(visual, "uv", None) is not None and image is not None:
        uvs = np.asarray(visual.uv, np.float32) * np.array([1, -1], np.float32) + np.array([0, 1], np.float32)
        return TriangleMesh(vertices, faces, None, uvs, np.asarray(image.convert("RGB"), np.uint8))
    beside = getattr(visual, "vertex_attributes", {})
    return TriangleMesh(vertices, faces, _unit_colors(beside["color"]) if "color" in beside else None)


def _unit_colors(values: Any) -> np.ndarray:
    """Colours [V, 3] float32 in [0, 1] of bytes, 16-bit levels or floats."""
    values = np.asarray(values)[:, :3]
    largest = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    return (values.astype(np.float32) / largest).astype(np.float32)


def _metadata(path: Path) -> tuple[SplatMetadata, np.ndarray]:
    """What the file says about itself, and the rotation [3, 3] from its frame to the world's."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if path.suffix.lower() != ".glb":
        text = head.decode("utf-8", errors="replace").splitlines()
        comments = [line.removeprefix("comment").removeprefix("#").strip() for line in text[:200]]
        return metadata_from_comments(comments, path), np.eye(3)
    if len(head) < 20 or head[:4] != b"glTF":
        raise UserError(f"{path} is not a binary glTF file.")
    document = _glb_document(path)
    own = document["asset"].get("extras", {}).get("scene_distill", {})
    if not own:
        return metadata_from_values({"up": (0.0, 1.0, 0.0), "unit": "metre"}, path), np.eye(3)
    x, y, z, w = (float(value) for value in own["gltf_from_world"])
    turn = rotmats_from_quats(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
    return metadata_from_values(own, path), turn.T


def _glb_document(path: Path) -> dict[str, Any]:
    """The JSON of a .glb file."""
    with path.open("rb") as file:
        length = struct.unpack("<I", file.read(20)[12:16])[0]
        return json.loads(file.read(min(length, path.stat().st_size)))


def _slices(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS_AT_ONCE, count)) for start in range(0, count, _ROWS_AT_ONCE))


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
