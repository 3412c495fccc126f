"""The picture of docs/mdt_dist.md: every kind of the small world as its teacher and its student make it.

Run: python benchmarks/mdt_pictures.py MODEL [--output FILE.jpg] [--seed N]. Rows are kinds; columns: teacher in 25
steps, teacher in 1, student in 1, student in 2 renoised steps; the student's one step from four sides, the others from
two, all from the same noise.
"""

import argparse
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.data.captioned_shapes import SHAPE_NAMES
from scene_distill.data.shape_world import prompt_words
from scene_distill.methods.mdt_dist.model import ShapeModel, Shapes, Walk
from scene_distill.training.prior_pictures import picture_grid
from scene_distill.training.shape_pictures import AZIMUTHS, splat_views

TWO = (30.0, 150.0)
WALKS = {
    Walk(25, role="teacher"): TWO,
    Walk(1, role="teacher"): TWO,
    Walk(1, role="student"): AZIMUTHS,
    Walk(2, "renoise", role="student"): TWO,
}
"""Columns, and the azimuths in degrees that each is seen from."""
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white")
PIXELS = 96
MOST_BYTES = 150_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/images/mdt_dist.jpg"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = ShapeModel.load(options.model)
    prompts = [f"a {COLORS[i % len(COLORS)]} {kind}" for i, kind in enumerate(SHAPE_NAMES)]
    words = torch.tensor([prompt_words(prompt) for prompt in prompts])
    columns = []
    for walk, azimuths in WALKS.items():
        shapes = model.sample(words, walk, options.seed)
        columns.append([views(model, shapes, row, azimuths) for row in range(len(prompts))])
    half = len(prompts) // 2
    rows = [torch.cat([column[i] for i in (row, row + half) for column in columns]) for row in range(half)]
    sheet = picture_grid(torch.cat(rows), 2 * sum(map(len, WALKS.values())))
    for quality in (88, 80, 70, 60, 50, 40):
        data = BytesIO()
        Image.fromarray(sheet).save(data, format="JPEG", quality=quality)
        if len(data.getvalue()) <= MOST_BYTES:
            break
    write_atomically(options.output, lambda temporary: _write(temporary, data.getvalue()))
    print(f"{options.output}: {len(data.getvalue()) / 1000:.0f} kB; two kinds a row, {', '.join(prompts)}")


def views(model: ShapeModel, shapes: Shapes, row: int, azimuths: tuple[float, ...]) -> torch.Tensor:
    try:
        return splat_views(model.splats_of(shapes, row), PIXELS, azimuths)
    except UserError:  # an empty structure: the one-step teacher makes some
        return torch.ones(len(azimuths), 3, PIXELS, PIXELS)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


if __name__ == "__main__":
    main()
