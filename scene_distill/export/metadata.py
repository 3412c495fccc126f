"""What a splat file should say about itself besides its splats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import scene_distill
from scene_distill.core.errors import UserError
from scene_distill.data.scene import Scene

_PREFIX = "scene_distill."

DISPLAY_SRGB = "srgb_rec709_display"
"""Colours as photographs store them: BT.709 primaries, sRGB curve, display-referred (the name that glTF uses)."""

MAX_TEXT_CHARS = 4096
"""Longest text that is read into one field."""

_RENDER_MODE = "SplatRenderMode: "
_MIP_MODE = "mip"


@dataclass(frozen=True)
class SplatMetadata:
    """Frame and provenance of a splat file; what is not known stays at its default.

    unit: "metre" or "unknown"; up: the world's up axis; origin: (latitude, longitude, altitude) of the world's origin
    in degrees and metres; source: the data the splats were made from; generator: program and version that wrote the
    file; antialiased: whether opacities were trained with the 2D-filter compensation, so that a viewer must apply it
    too; color_space: what the splats' colours are.
    """

    unit: str = "unknown"
    up: tuple[float, float, float] | None = None
    origin: tuple[float, float, float] | None = None
    source: str = ""
    generator: str = f"scene-distill {scene_distill.__version__}"
    antialiased: bool = False
    color_space: str = DISPLAY_SRGB

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

    def values(self) -> dict[str, Any]:
        """The fields that are known, by name, as JSON values."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value not in (None, "")}

    def comments(self) -> list[str]:
        """PLY header lines ``scene_distill.<field> <JSON>`` of the known fields, ASCII without line breaks; and
        ``SplatRenderMode: mip``, which other programs read, when antialiased."""
        ours = [f"{_PREFIX}{name} {json.dumps(value)}" for name, value in self.values().items()]
        return [*ours, _RENDER_MODE + _MIP_MODE] if self.antialiased else ours


def metadata_from_values(values: Mapping[str, Any], path: Path) -> SplatMetadata:
    """Inverse of `SplatMetadata.values` for the file ``path``; fields that are not ours are passed over.

    Without our fields the generator is empty. Raises `UserError`, naming the file, when one of ours is damaged.
    """
    known: dict[str, Any] = {"generator": ""}
    for name, value in values.items():
        if name in ("up", "origin"):
            known[name] = _triple(name, value, str(path))
        elif name in ("unit", "source", "generator", "color_space"):
            known[name] = str(value)[:MAX_TEXT_CHARS]
        elif name == "antialiased":
            known[name] = bool(value)
    return SplatMetadata(**known)


def metadata_from_comments(comments: Iterable[str], path: Path) -> SplatMetadata:
    """Inverse of `SplatMetadata.comments`; other comments are not ours and are passed over.

    A file without our comments has an empty generator. Raises `UserError`, naming the file ``path``, when one of ours
    is damaged.
    """
    values: dict[str, Any] = {}
    for comment in comments:
        if comment.lower() in (f"{_RENDER_MODE}{_MIP_MODE}".lower(), "antialiased 1"):
            values.setdefault("antialiased", True)
        if not comment.startswith(_PREFIX):
            continue
        name, _, text = comment.removeprefix(_PREFIX).partition(" ")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} has a damaged header comment '{comment[:80]}'; export the file again.") from error
    return metadata_from_values(values, path)


def _triple(name: str, value: Any, where: str) -> tuple[float, float, float]:
    try:
        first, second, third = (float(number) for number in value)
        if not math.isfinite(first + second + third):
            raise ValueError(name)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where} gives '{name}' as {str(value)[:60]!r}; it should be three numbers.") from error
    return first, second, third
