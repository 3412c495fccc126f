"""Files that are looked at: splats of any format, and meshes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scene_distill.core.errors import UserError
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Frame
from scene_distill.export.formats import read_splats
from scene_distill.export.mesh_files import read_mesh
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply_header import read_ply_header
from scene_distill.export.semantic_columns import read_semantics
from scene_distill.representations.semantics import Semantics
from scene_distill.representations.splats import Splats
from scene_distill.viewer.describing import UNCERTAIN_UP, Looking, described
from scene_distill.viewer.mesh_scene import ViewedMesh
from scene_distill.viewer.scenes import ViewedSplats

LARGEST_GLB_HEAD = 64_000_000
"""Bytes of a .glb's JSON that are looked at to tell splats from a mesh."""


def open_file(path: Path, title: str | None = None) -> FileSession:
    """The session of a file by what is in it; raises `UserError` when it is neither splats nor a mesh."""
    return MeshSession(path, title) if is_mesh(path) else SplatSession(path, title)


def is_mesh(path: Path) -> bool:
    """Whether a file holds a mesh: an .obj, a .ply with faces and no splats, a .glb without the splats' extension."""
    name = path.name.lower()
    try:
        if name.endswith(".ply"):
            with path.open("rb") as file:
                elements = {element.name: element for element in read_ply_header(file, path).elements}
            properties = {name for name, _ in elements["vertex"].properties} if "vertex" in elements else set()
            return "face" in elements and not properties & {"f_dc_0", "packed_position"}
        if name.endswith(".glb"):
            return not _has_splats(path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    return name.endswith(".obj")


def _has_splats(path: Path) -> bool:
    """Whether a .glb names the extension KHR_gaussian_splatting; a damaged one counts so too: that reader says why."""
    with path.open("rb") as file:
        head = file.read(20)
        if len(head) < 20 or head[:4] != b"glTF":
            return True
        text = file.read(min(struct.unpack("<I", head[12:16])[0], LARGEST_GLB_HEAD))
    try:
        document = json.loads(text)
        return any(name.startswith("KHR_gaussian_splatting") for name in document.get("extensionsUsed", []))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return True


class FileSession:
    """A file, which does not change. A subclass says what is in it."""

    looking: Looking

    def __init__(self, path: Path, title: str | None, metadata: SplatMetadata) -> None:
        self.title, self.folder, self.version = title or path.name, path.parent, 1
        self.frames: tuple[Frame, ...] = ()
        self.images: ImageCache | None = None
        self._bytes, self._metadata = path.stat().st_size, metadata

    def describe(self) -> dict[str, Any]:
        """What there is."""
        facts = {"file": self.title, "size": f"{self._bytes / 1e6:.1f} MB", "made by": self._metadata.generator}
        facts |= {"source": self._metadata.source, "up from": "file" if self._metadata.up else "assumed z"}
        return described(self, "file", {k: v for k, v in (facts | self._facts()).items() if v})

    def _facts(self) -> dict[str, str]:
        return {}

    def status(self) -> dict[str, Any]:
        """A file does not change."""
        return {"state": "file", "primitives": len(self.looking.scene)}

    def history(self) -> dict[str, Any]:
        """None."""
        return {"run": {}, "blocks": {}}

    def poll(self) -> bool:
        """Nothing to look at."""
        return False

    def steer(self, command: dict[str, Any]) -> str:
        """Refused: nothing trains here."""
        raise UserError("a file does not train; open a run folder to steer training")


class SplatSession(FileSession):
    """A splat file of any format that `export.formats` reads, with what it says of its splats' classes."""

    def __init__(self, path: Path, title: str | None = None) -> None:
        splats, metadata = read_splats(path)
        super().__init__(path, title, metadata)
        semantics, unsaid = _semantics(path)
        if torch.cuda.is_available():
            splats = Splats(**{name: getattr(splats, name).cuda() for name in splats.__dataclass_fields__})
        scene = ViewedSplats(splats, np.zeros(3), antialiased=metadata.antialiased, semantics=semantics)
        self.looking = Looking(scene, None, _up(metadata), _unit(metadata), unsaid=unsaid)

    def _facts(self) -> dict[str, str]:
        scene = self.looking.scene
        assert isinstance(scene, ViewedSplats)
        classes = {"classes from": scene.semantics.source} if scene.semantics else {}
        return {"splats": f"{len(scene):,}"} | classes


class MeshSession(FileSession):
    """A mesh file: .glb, .obj or .ply."""

    def __init__(self, path: Path, title: str | None = None) -> None:
        mesh, metadata = read_mesh(path)
        super().__init__(path, title, metadata)
        self.looking = Looking(ViewedMesh(mesh, torch.get_num_threads()), None, _up(metadata), _unit(metadata))
        self._vertices = len(mesh.vertices)

    def _facts(self) -> dict[str, str]:
        scene = self.looking.scene
        assert isinstance(scene, ViewedMesh)
        return {"faces": f"{len(scene):,}", "vertices": f"{self._vertices:,}", "coloured by": scene.painted}


def _semantics(path: Path) -> tuple[Semantics | None, str]:
    """What a file says of its splats' classes, or why it says nothing."""
    if not path.name.lower().endswith(".ply"):
        return None, "only a .ply can say it: in a property semantic, label, class or f_sem_0, f_sem_1, ..."
    try:
        found = read_semantics(path)
    except UserError as error:
        return None, str(error).replace(f"{path}: ", "")
    return found, "" if found else "the file has no property semantic, label, class or f_sem_0, f_sem_1, ..."


def _up(metadata: SplatMetadata) -> np.ndarray:
    up = np.asarray(metadata.up, float) if metadata.up is not None else UNCERTAIN_UP
    return up / np.linalg.norm(up)


def _unit(metadata: SplatMetadata) -> str:
    return "m" if metadata.unit == "metre" else "units"
