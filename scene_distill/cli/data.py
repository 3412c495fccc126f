"""`scene-distill data city DIR --recipe NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from scene_distill.core.console import progress, say, say_next


@dataclass(frozen=True)
class Data:
    """Make a procedural scene in COLMAP layout."""

    kind: tyro.conf.Positional[Literal["city"]]
    """What to make."""
    folder: tyro.conf.Positional[Path]
    """Folder to write; one made from the same recipe is left as it is."""
    recipe: str = "city_demo"
    """Name of a recipe in data/."""


def main(arguments: list[str]) -> None:
    """Make the scene and say how sharp its photos are."""
    options = tyro.cli(Data, args=arguments, prog="scene-distill data")
    from scene_distill.data.procedural_city import load_recipe, make_city

    config = load_recipe(options.recipe)
    with progress("making a city", 100) as meter:
        make_city(config, options.folder, lambda stage, done, total: meter.update(100 * done // max(total, 1), stage))
    say(f"{options.folder}: {photo_sharpness(options.folder)}")
    say_next(f"scene-distill train momentum-gs --data {options.folder}", "train on it")


def photo_sharpness(folder: Path) -> str:
    """How many photos, their size, and the PSNR of their 8x shrunk and enlarged copies: what blur would score."""
    from PIL import Image

    from scene_distill.core.files import read_json

    files = sorted((folder / "images").iterdir())
    width, height = Image.open(files[0]).size
    blurred = read_json(folder / "scene_info.json")["sharpness_psnr_8x"]
    return f"{len(files)} photos of {width}x{height}; shrunk 8 times they score {blurred:.1f} dB against themselves"
