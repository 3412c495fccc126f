"""Meshes as glTF 2.0 binary: positions, normals, and a texture or vertex colours, unlit.

Vertices are stored around the mesh's middle, so that float32 keeps its precision far from the world's origin; a node
moves them to their place and turns the world's up axis to +y, as glTF wants. What a photograph shows already holds the
light, so the material is ``KHR_materials_unlit``. Textures are sRGB; ``COLOR_0`` is linear by the specification, so
vertex colours are converted. Frame and provenance stand in ``asset.extras``.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.core.geometry import rotmats_from_quats
from scene_distill.export.gltf import BIN_CHUNK, FLOAT, GLB_MAGIC, JSON_CHUNK, MAX_GLB_BYTES, gltf_from_world
from scene_distill.export.metadata import SplatMetadata
from scene_distill.representations.meshes import TriangleMesh

_UNSIGNED_INT, _UNSIGNED_SHORT = 5125, 5123
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER, _TRIANGLES = 34962, 34963, 4
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP_TO_EDGE = 9729, 9987, 33071


class _Buffer:
    """The binary chunk and the JSON that says what lies where."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self.size = 0

    def view(self, data: bytes, **more: Any) -> int:
        """Index of a new buffer view, padded to four bytes."""
        self.views.append({"buffer": 0, "byteOffset": self.size, "byteLength": len(data), **more})
        self.data += [data, b"\0" * (-len(data) % 4)]
        self.size += len(data) + -len(data) % 4
        return len(self.views) - 1

    def accessor(self, values: np.ndarray, kind: str, component: int, target: int, **more: Any) -> int:
        """Index of a new accessor over rows of values."""
        view = self.view(np.ascontiguousarray(values).tobytes(), target=target)
        count = values.size if kind == "SCALAR" else len(values)
        self.accessors.append({"bufferView": view, "componentType": component, "count": count, "type": kind, **more})
        return len(self.accessors) - 1


def write_mesh_glb(mesh: TriangleMesh, path: Path, metadata: SplatMetadata) -> None:
    """Write the mesh, atomically; `UserError` when it has no face, exceeds the format's 4 GB, or there is no space."""
    if len(mesh) == 0:
        raise UserError(f"There are no faces to write to {path}.")
    buffer = _Buffer()
    text = json.dumps(_document(mesh, metadata, buffer)).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + buffer.size
    if total > MAX_GLB_BYTES:
        raise UserError(f"{len(mesh)} faces need {total} bytes, more than a .glb can have; allow fewer faces.")

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(struct.pack("<III", GLB_MAGIC, 2, total) + struct.pack("<II", len(text), JSON_CHUNK) + text)
            file.write(struct.pack("<II", buffer.size, BIN_CHUNK))
            for data in buffer.data:
                file.write(data)

    write_atomically(path, write)


def _document(mesh: TriangleMesh, metadata: SplatMetadata, buffer: _Buffer) -> dict[str, Any]:
    """The whole JSON; fills the buffer."""
    middle = (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    positions = (mesh.vertices - middle).astype("<f4")
    bounds = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    attributes = {
        "POSITION": buffer.accessor(positions, "VEC3", FLOAT, _ARRAY_BUFFER, **bounds),
        "NORMAL": buffer.accessor(_normals(mesh), "VEC3", FLOAT, _ARRAY_BUFFER),
    }
    material: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    document: dict[str, Any] = {}
    if mesh.uvs is not None and mesh.texture is not None:
        attributes["TEXCOORD_0"] = buffer.accessor(mesh.uvs.astype("<f4"), "VEC2", FLOAT, _ARRAY_BUFFER)
        image = buffer.view(png_bytes(mesh.texture))
        sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP_TO_EDGE,
                   "wrapT": _CLAMP_TO_EDGE}  # fmt: skip
        document = {"images": [{"bufferView": image, "mimeType": "image/png"}], "samplers": [sampler],
                    "textures": [{"source": 0, "sampler": 0}]}  # fmt: skip
        material["baseColorTexture"] = {"index": 0}
    elif mesh.colors is not None:
        levels = np.rint(linear_from_srgb(mesh.colors) * 65535).astype("<u2")
        opaque = np.concatenate([levels, np.full((len(levels), 1), 65535, "<u2")], axis=1)
        attributes["COLOR_0"] = buffer.accessor(opaque, "VEC4", _UNSIGNED_SHORT, _ARRAY_BUFFER, normalized=True)
    indices = buffer.accessor(mesh.faces.astype("<u4").reshape(-1), "SCALAR", _UNSIGNED_INT, _ELEMENT_ARRAY_BUFFER)
    rotation = gltf_from_world(metadata.up)
    x, y, z, w = rotation
    turn = rotmats_from_quats(torch.tensor([w, x, y, z], dtype=torch.float64)).numpy()
    primitive = {"mode": _TRIANGLES, "attributes": attributes, "indices": indices, "material": 0}
    own = {**metadata.values(), "gltf_from_world": rotation}
    return {
        "asset": {"version": "2.0", "generator": metadata.generator, "extras": {"scene_distill": own}},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "mesh", "mesh": 0, "rotation": rotation, "translation": (turn @ middle).tolist()}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [
            {"pbrMetallicRoughness": material, "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}
        ],
        **document,
        "accessors": buffer.accessors,
        "bufferViews": buffer.views,
        "buffers": [{"byteLength": buffer.size}],
    }


def _normals(mesh: TriangleMesh) -> np.ndarray:
    """Unit vertex normals [V, 3] float32; +z where a vertex has no face with an area, as glTF allows no zero."""
    normals = mesh.vertex_normals()
    normals[np.linalg.norm(normals, axis=1) < 0.5] = [0.0, 0.0, 1.0]
    return normals.astype("<f4")


def png_bytes(texture: np.ndarray) -> bytes:
    """A texture [H, W, 3] uint8 as a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(texture).save(out, format="PNG")
    return out.getvalue()


def linear_from_srgb(colors: np.ndarray) -> np.ndarray:
    """Linear light [..., 3] of sRGB-encoded colours, both in [0, 1] (IEC 61966-2-1)."""
    colors = np.clip(colors, 0.0, 1.0)
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(light: np.ndarray) -> np.ndarray:
    """Inverse of `linear_from_srgb`."""
    light = np.clip(light, 0.0, 1.0)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-12) ** (1 / 2.4) - 0.055)
