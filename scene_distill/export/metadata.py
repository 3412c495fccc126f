"""What a splat file should say about itself besides its splats."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import scene_distill
from scene_distill.core.errors import UserError
from scene_distill.data.scene import Scene

_PREFIX = "scene_distill."


@dataclass(frozen=True)
class SplatMetadata:
    """Frame and provenance of a splat file; what is not known stays at its default.

    unit: "metre" or "unknown"; up: the world's up axis; origin: (latitude, longitude, altitude) of the world's origin
    in degrees and metres; source: the data the splats were made from; generator: program and version that wrote the
    file; antialiased: whether opacities were trained with the 2D-filter compensation, so that a viewer must apply it
    too.
    """

    unit: str = "unknown"
    up: tuple[float, float, float] | None = None
    origin: tuple[float, float, float] | None = None
    source: str = ""
    generator: str = f"scene-distill {scene_distill.__version__}"
    antialiased: bool = False

    @classmethod
    def of_scene(cls, scene: Scene, *, antialiased: bool = False) -> SplatMetadata:
        """Metadata of splats that live in the scene's own world frame."""
        origin = scene.metadata.get("origin")
        return cls(
            unit=str(scene.metadata.get("unit", "unknown")),
            up=_triple("up", list(scene.up), str(scene.root)),
            origin=None if origin is None else _triple("origin", origin, str(scene.root)),
            source=str(scene.metadata.get("source", "")),
            antialiased=antialiased,
        )

    def comments(self) -> list[str]:
        """Header lines ``scene_distill.<field> <JSON>`` of the fields that are known, ASCII without line breaks."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [f"{_PREFIX}{name} {json.dumps(value)}" for name, value in values if value not in (None, "")]


def metadata_from_comments(comments: Iterable[str], path: Path) -> SplatMetadata:
    """Inverse of `SplatMetadata.comments`; other comments are not ours and are passed over.

    A file without our comments has an empty generator. Raises `UserError`, naming the file ``path``, when one of ours
    is damaged.
    """
    values: dict[str, Any] = {"generator": ""}
    for comment in comments:
        if not comment.startswith(_PREFIX):
            continue
        name, _, text = comment.removeprefix(_PREFIX).partition(" ")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} has a damaged header comment '{comment[:80]}'; export the file again.") from error
        if name in ("up", "origin"):
            values[name] = _triple(name, value, str(path))
        elif name in ("unit", "source", "generator"):
            values[name] = str(value)
        elif name == "antialiased":
            values[name] = bool(value)
    return SplatMetadata(**values)


def _triple(name: str, value: Any, where: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} gives '{name}' as {str(value)[:60]!r}; it should be three numbers.") from error
    return first, second, third
