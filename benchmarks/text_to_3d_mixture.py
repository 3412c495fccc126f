"""Text to 3D against a prior whose truth is known: a mixture around renders of the very toy that each prompt means.

Run: python benchmarks/text_to_3d_mixture.py [--arms NAME ...] [--seeds N] [--iterations N] [--table] [--pictures DIR]

Every run (arm x prompt x seed) goes to benchmarks/results/text_to_3d_mixture.json as soon as it is done; a stopped
campaign continues. An object is seen from 24 places on three circles and compared with the exact render of the toy from
there: PSNR in dB, and how much of the toy's silhouette it covers (intersection over union at half coverage). 'right' is
the share of views whose nearest picture of the whole mixture is one that the prompt means, 'facing' the share whose
nearest picture among those shows the same side (within 45 degrees): a face on the back is not. The mixture memorises:
the table says what an objective does with a perfect teacher, not what it makes of one that errs.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scene_distill.core.files import read_json, write_json
from scene_distill.data.captioned_shapes import BACKGROUND, Shot
from scene_distill.data.captioned_shapes_renderer import over
from scene_distill.export.object_files import turntable_strip
from scene_distill.export.pictures import write_png
from scene_distill.methods.text_to_3d.backgrounds import plain
from scene_distill.methods.text_to_3d.generate import MadeObject, text_to_3d
from scene_distill.methods.text_to_3d.registry import find_text_method
from scene_distill.methods.text_to_3d.teachers import cores_of, toy_mixture, toy_of
from scene_distill.methods.text_to_3d.views import ViewBatch, orbit_views
from scene_distill.priors.parts import InParts
from scene_distill.priors.renders import RenderMixture
from scene_distill.training.loop import use_native_threads

RESULTS = Path(__file__).parent / "results" / "text_to_3d_mixture.json"
PROMPTS = ("a red chair", "a blue car", "a yellow duck", "a white snowman with red hat", "a green teapot")
SIZE, SEED = 32, 0
EQUAL = {"levels": "annealed", "level_range": (20.0, 700.0), "guidance": 3.0, "clip": "none", "strength": 1.0}
ARMS: dict[str, tuple[str, dict]] = {
    "dreamer-xl": ("dreamer-xl", {}),
    "dreamer-xl, view words interpolated": ("dreamer-xl", {"view_words": "interpolated"}),
    "dreamer-xl, gamma 0.05": ("dreamer-xl", {"gamma": 0.05}),
    "dreamer-xl, interval 300": ("dreamer-xl", {"interval": (300.0, 300.0)}),
    "tsm, code's gamma": ("tsm", {"gamma_rule": "code"}),
    "tsm, published": ("tsm", {"levels": "published", "guidance": None}),
    **{f"{name}, equal levels and guidance": (name, EQUAL)
       for name in ("tsm", "ism", "sds", "sjc", "csd", "vsd", "cds", "sdi")},
    **{f"{name}, published": (name, {"levels": "published", "guidance": None})
       for name in ("ism", "sds", "sjc", "csd", "vsd", "cds", "sdi")},
}  # fmt: skip


def places() -> ViewBatch:
    """24 places on three circles."""
    parts = [orbit_views(8, SIZE, elevation, start=start) for elevation, start in ((5, 0.0), (20, 15.0), (40, 30.0))]
    return ViewBatch(
        tuple(camera for part in parts for camera in part.cameras),
        torch.cat([part.azimuth for part in parts]),
        torch.cat([part.elevation for part in parts]),
    )


def truth_of(prompt: str, views: ViewBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [C, 3, H, W] of the toy that the mixture holds for a prompt, and its coverage [C, H, W]."""
    shot = Shot(toy_of(prompt), 0.0, 0.0, 3.2, (SEED, "toy", 0, "proportions"))
    pictures = [shot.picture_from(camera) for camera in views.cameras]
    images = np.stack([over(picture, np.array(BACKGROUND)) for picture in pictures])
    coverage = torch.from_numpy(np.stack([picture[..., 3] for picture in pictures])).float() / 255
    return torch.from_numpy(images).permute(0, 3, 1, 2), coverage


def compared(made: MadeObject, mixture: RenderMixture, sides: torch.Tensor) -> dict[str, float]:
    """An object against its toy; ``sides`` [K]: azimuths of the mixture's pictures of it, its first ones."""
    views = places()
    seen = made.trained.render(views.cameras, plain())
    truth, coverage = truth_of(made.prompt, views)
    images = seen.lesson.float()
    error = (images - truth).square().mean((1, 2, 3))
    drawn, wanted = seen.alpha > 0.5, coverage > 0.5
    overlap = (drawn & wanted).sum((1, 2)) / (drawn | wanted).sum((1, 2)).clamp(min=1)
    own = mixture.encode(images).flatten(1)
    nearest = torch.cdist(own, mixture.mixture.centres[: len(sides)].flatten(1)).argmin(1)
    apart = (torch.remainder(sides[nearest] - views.azimuth + 180, 360) - 180).abs()
    return {
        "psnr": float((-10 * error.log10()).mean()),
        "iou": float(overlap.mean()),
        "right": float(mixture.truth(images, made.prompt).float().mean()),
        "facing": float((apart <= 45).double().mean()),
        "saturated": float(((images < 0.02) | (images > 0.98)).any(1).float().mean()),
        "finite": float(made.finite),
    }


def run(arm: str, prompt: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train one object and compare it."""
    name, changes = ARMS[arm]
    method = find_text_method(name)
    config = replace(method.default(), prior="mixture", image_size=SIZE, iterations=options.iterations, visits=1,
                     seed=seed, threads=options.threads, **changes)  # fmt: skip
    mixture = toy_mixture([prompt], SIZE, SEED)
    # pictures of the prompt's toy come first, at golden-angle azimuths (teachers._around)
    count = sum(1 for caption in mixture.captions if caption.startswith(toy_of(prompt).caption()))
    sides = -180 + 360 * torch.remainder(torch.arange(count) * 0.6180339887498949, 1.0).double()
    prior = InParts(mixture, config.prior_batch, cores_of(options.threads), config.prior_parts)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        (made,) = text_to_3d(method, config, [prompt], prior, Path(folder) / "run")
        seconds = time.perf_counter() - started
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            stem = f"{arm}-{prompt}-{seed}".replace(" ", "_").replace(",", "").replace("'", "")
            write_png(turntable_strip(made.trained, 8, 96), options.pictures / f"{stem}.png")
        return compared(made, mixture, sides) | {"evaluations": float(made.evaluations), "seconds": seconds}


def table(results: dict[str, dict[str, float]], steps: int) -> None:
    """Means over prompts and seeds of runs of so many steps, and the spread of PSNR between runs."""
    print("| arm | runs | PSNR dB | ± | IoU | right | facing | saturated | evaluations | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for arm in ARMS:
        runs = [
            figures for key, figures in results.items() if key.startswith(f"{arm} | ") and key.endswith(f" | {steps}")
        ]
        if not runs:
            continue
        mean = {name: statistics.fmean(figures[name] for figures in runs) for name in runs[0]}
        spread = statistics.pstdev([figures["psnr"] for figures in runs])
        print(
            f"| {arm} | {len(runs)} | {mean['psnr']:.1f} | {spread:.1f} | {mean['iou']:.2f} | {mean['right']:.2f} | "
            f"{mean['facing']:.2f} | {mean['saturated']:.2f} | {mean['evaluations']:.0f} | {mean['seconds']:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="also write a turntable of every object here")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    use_native_threads(options.threads)
    results = read_json(RESULTS) if RESULTS.exists() else {}
    for arm in options.arms if not options.table else ():
        for prompt in PROMPTS[: options.prompts]:
            for seed in range(options.seeds):
                key = f"{arm} | {prompt} | {seed} | {options.iterations}"
                if key not in results:
                    figures = run(arm, prompt, seed, options)
                    results = (read_json(RESULTS) if RESULTS.exists() else {}) | {key: figures}
                    write_json(RESULTS, results)
                    print(key, {name: round(value, 3) for name, value in figures.items()}, flush=True)
    table(results, options.iterations)


if __name__ == "__main__":
    main()
