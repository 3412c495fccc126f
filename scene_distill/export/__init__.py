"""Splat files that other people's programs open, each with a reader, chosen by the file's extension."""

from __future__ import annotations

from scene_distill.export.formats import SPLAT_FORMATS, SplatFormat, read_splats, splat_format, write_splats

__all__ = ["SPLAT_FORMATS", "SplatFormat", "read_splats", "splat_format", "write_splats"]
