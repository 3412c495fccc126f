"""The splat formats that are known, each a writer and a reader, chosen by name or by the file's extension.

A file format is one module with ``read(path)`` and ``write(splats, path, metadata)``; adding one is a line in
`SPLAT_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scene_distill.core.errors import UserError
from scene_distill.export.compressed_ply import is_compressed, read_compressed_ply, write_compressed_ply
from scene_distill.export.gltf import write_glb, write_gltf
from scene_distill.export.gltf_reader import read_gltf
from scene_distill.export.html import read_html, write_html
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply, write_ply
from scene_distill.export.ply_header import read_ply_header
from scene_distill.export.sog import META_NAME, write_sog, write_sog_folder
from scene_distill.export.sog_reader import read_sog, read_sog_folder
from scene_distill.export.splat import read_splat, write_splat
from scene_distill.export.spz import read_spz, write_spz
from scene_distill.representations.splats import Splats


@dataclass(frozen=True)
class SplatFormat:
    """How to read and write one kind of splat file.

    ``name`` is what ``--format`` takes; ``extension`` ends the file's name, or is the whole name of the file that
    stands for a folder.
    """

    name: str
    extension: str
    read: Callable[[Path], tuple[Splats, SplatMetadata]]
    write: Callable[[Splats, Path, SplatMetadata], None]

    def path_in(self, folder: Path, stem: str) -> Path:
        """Where a file of this format goes that is called ``stem``."""
        if self.extension == META_NAME:
            return folder / f"{stem}_sog" / META_NAME
        return folder / f"{stem}{self.extension}"


def read_any_ply(path: Path) -> tuple[Splats, SplatMetadata]:
    """`read_ply`, or `read_compressed_ply` when the file's header says that it is packed."""
    try:
        with path.open("rb") as file:
            packed = is_compressed(read_ply_header(file, path))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    return read_compressed_ply(path) if packed else read_ply(path)


SPLAT_FORMATS = (
    SplatFormat("ply", ".ply", read_any_ply, write_ply),
    SplatFormat("splat", ".splat", read_splat, write_splat),
    SplatFormat("compressed.ply", ".compressed.ply", read_any_ply, write_compressed_ply),
    SplatFormat("spz", ".spz", read_spz, write_spz),
    SplatFormat("sog", ".sog", read_sog, write_sog),
    SplatFormat("sog-folder", META_NAME, read_sog_folder, write_sog_folder),
    SplatFormat("glb", ".glb", read_gltf, write_glb),
    SplatFormat("gltf", ".gltf", read_gltf, write_gltf),
    SplatFormat("html", ".html", read_html, write_html),
)


def splat_format(path: Path) -> SplatFormat:
    """Format of a file by its name, the longest extension first; `UserError` for one that is not known."""
    for known in sorted(SPLAT_FORMATS, key=lambda known: -len(known.extension)):
        if path.name.lower().endswith(known.extension):
            return known
    extensions = " or ".join(known.extension for known in SPLAT_FORMATS)
    raise UserError(f"{path} has no known splat format; name the file {extensions}.")


def named_format(name: str, others: Sequence[str] = ()) -> SplatFormat:
    """Format by the name that ``--format`` takes; `UserError` for one that is not known, with all names and those of
    ``others`` that are no splat formats."""
    for known in SPLAT_FORMATS:
        if known.name == name:
            return known
    known_names = ", ".join([*(known.name for known in SPLAT_FORMATS), *others])
    raise UserError(f"There is no format '{name}'; choose of {known_names}.")


def write_splats(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write the splats in the format that the file's extension names."""
    splat_format(path).write(splats, path, metadata)


def read_splats(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats and metadata of a file in the format that its extension names."""
    return splat_format(path).read(path)
