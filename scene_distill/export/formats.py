"""The splat formats that are known, each a writer and a reader, chosen by name or by the file's extension.

A file format is one module with ``read(path)`` and ``write(splats, path, metadata)``; adding one is a line in
`SPLAT_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scene_distill.core.errors import UserError
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply, write_ply
from scene_distill.export.splat import read_splat, write_splat
from scene_distill.representations.splats import Splats


@dataclass(frozen=True)
class SplatFormat:
    """How to read and write one kind of splat file; ``name`` is what ``--format`` takes."""

    name: str
    extension: str
    read: Callable[[Path], tuple[Splats, SplatMetadata]]
    write: Callable[[Splats, Path, SplatMetadata], None]


SPLAT_FORMATS = (
    SplatFormat("ply", ".ply", read_ply, write_ply),
    SplatFormat("splat", ".splat", read_splat, write_splat),
)


def splat_format(path: Path) -> SplatFormat:
    """Format of a file by its name, the longest extension first; `UserError` for one that is not known."""
    for known in sorted(SPLAT_FORMATS, key=lambda known: -len(known.extension)):
        if path.name.lower().endswith(known.extension):
            return known
    extensions = " or ".join(dict.fromkeys(known.extension for known in SPLAT_FORMATS))
    raise UserError(f"{path} has no known splat format; name the file {extensions}.")


def write_splats(splats: Splats, path: Path, metadata: SplatMetadata) -> None:
    """Write the splats in the format that the file's extension names."""
    splat_format(path).write(splats, path, metadata)


def read_splats(path: Path) -> tuple[Splats, SplatMetadata]:
    """Splats and metadata of a file in the format that its extension names."""
    return splat_format(path).read(path)
