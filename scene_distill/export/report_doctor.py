"""The doctor's page about a data folder: what deserves a look, maps from above and from the side, photos, and what a
training run would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.data.doctor import Diagnosis, horizontal_axes
from scene_distill.data.doctor_photos import PhotoLook
from scene_distill.data.images import read_photo
from scene_distill.data.scene import Frame, Scene
from scene_distill.export.report_charts import Series, dot_chart
from scene_distill.export.report_maps import View, camera_marks, point_map, view_counts
from scene_distill.export.report_page import colour, facts, picture_of, section, text, write_page

TYPICAL = 4
"""Photos shown although nothing is wrong with them."""

FLAGGED_MOST = 24
PHOTO_WIDTH = 420
ARROW = "#ff2d55"

SHORTEST_ARROW = 0.06
"""Part of a photo's height below which an arrow says nothing."""

FLAT, WIDE_PX = 0.4, 1130
"""A side view lower than this part of its width gets a row of its own, this wide."""


@dataclass(frozen=True, eq=False)
class Expected:
    """What a run is expected to take: its method, the plan in words, and which block owns each point [P]."""

    method: str
    plan: str
    owners: np.ndarray


def write_doctor_page(path: Path, scene: Scene, found: Diagnosis, looks: Sequence[PhotoLook],
                      machine: Sequence[str], expected: Expected | None) -> None:  # fmt: skip
    """Write the page atomically."""
    problems = found.problems()
    body = [_verdict(problems), section("Facts", facts(_pairs(found.lines())))]
    body.append(section("Where it is", _maps(scene, found)))
    if expected is not None:
        body.append(section(f"A run of {expected.method}", _expected(scene, found, expected)))
    body.append(section("Photos", _photos(scene, found, looks)))
    body.append(section("This machine", facts(_pairs(machine))))
    title = f"{Path(found.root).resolve().name}: {_count(len(problems), 'thing')} to look at" if problems else (
        f"{Path(found.root).resolve().name}: nothing is wrong with it"
    )  # fmt: skip
    lead = f"{found.frames} photos and {found.points:,} points from a {text(found.source)}"
    write_page(path, title, lead, "".join(body))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _pairs(lines: Sequence[str]) -> dict[str, str]:
    """Console lines 'name   value' as names and values; those that start with '!' are problems and not facts."""
    parts = (line.split(maxsplit=1) for line in lines if not line.startswith("!"))
    return {part[0]: text(part[1]) for part in parts if len(part) == 2}


def _verdict(problems: Sequence[str]) -> str:
    if not problems:
        return section("Sound", "<p>Poses, coverage, photos and points look healthy.</p>", "verdict")
    items = "".join(f"<li>{text(problem)}</li>" for problem in problems)
    return section("Deserves a look", f'<ul class="problems">{items}</ul>', "verdict look")


def _maps(scene: Scene, found: Diagnosis) -> str:
    axes = horizontal_axes(scene.up)
    unit = "m" if found.unit == "metre" else "units"
    cameras = [frame.camera for frame in scene.frames]
    above, side = View(scene, axes[0], axes[1]), View(scene, axes[0], axes[2])
    flagged = set(found.poses.far) | set(found.poses.rolled) | set(found.poses.apart)
    marks = [ARROW if f.name in flagged else colour(1) if f.name in scene.test else colour(0) for f in scene.frames]
    flat = side.height < FLAT * side.width
    if flat:
        side = View(scene, axes[0], axes[2], WIDE_PX)
    maps = [
        _map("From above", point_map(above, scene.colors, camera_marks(above, cameras, marks), unit)),
        _map("Photos that see a place", view_counts(above, unit)),
        _map("From the side, up is up", point_map(side, scene.colors, camera_marks(side, cameras, marks), unit)),
    ]
    layout = (
        f'<div class="grid2">{maps[0]}{maps[1]}</div>{maps[2]}' if flat else f'<div class="grid3">{"".join(maps)}</div>'
    )
    look = f', <span style="color:{ARROW}">deserves a look</span>' if flagged else ""
    return (
        f'{layout}<p class="note">Cameras: <span style="color:{colour(0)}">training</span>, '
        f'<span style="color:{colour(1)}">held out</span>{look}; a line '
        "says where a camera looks. The farthest 1 % of the points are not shown.</p>"
    )


def _map(name: str, chart: str) -> str:
    return f"<div><h3>{text(name)}</h3>{chart}</div>"


def _expected(scene: Scene, found: Diagnosis, expected: Expected) -> str:
    axes = horizontal_axes(scene.up)
    palette = np.array([[int(colour(k)[i : i + 2], 16) for i in (1, 3, 5)] for k in range(8)], np.uint8)
    shades = (palette[expected.owners % 8] * 0.65 + scene.colors * 0.35).astype(np.uint8)
    chart = point_map(View(scene, axes[0], axes[1]), shades, "", "m" if found.unit == "metre" else "units")
    return (
        f'<div class="grid2"><div><h3>Blocks from above</h3>{chart}</div><div><h3>Blocks, memory, time</h3>'
        f'<pre class="mono scroll">{text(expected.plan)}</pre></div></div>'
    )


def _photos(scene: Scene, found: Diagnosis, looks: Sequence[PhotoLook]) -> str:
    frames = {frame.name: frame for frame in scene.frames}
    names, places = [look.name for look in looks], np.arange(len(looks))
    sharp = Series("sharpness", colour(2), places, np.log10([max(look.sharpness, 1e-6) for look in looks]))
    bright = Series("brightness", colour(4), places, np.array([look.brightness for look in looks]))
    parts = [f"<h3>Sharpness (logarithm) of {len(looks)} photos</h3>", dot_chart([sharp], names, "log10 sharpness")]
    parts += ["<h3>Brightness</h3>", dot_chart([bright], names, "grey level")]
    flagged, arrows = found.flagged(), 0
    if flagged:
        cards = [_card(scene, frames[name], ", ".join(why)) for name, why in list(flagged.items())[:FLAGGED_MOST]]
        arrows += sum(card.arrow for card in cards)
        more = f" (the first {FLAGGED_MOST} of {len(flagged)})" if len(flagged) > FLAGGED_MOST else ""
        parts += [f"<h3>Deserve a look{more}</h3>", _tiles(cards)]
    sound = [frame for frame in scene.frames if frame.name not in flagged]
    typical = [sound[i] for i in np.unique(np.linspace(0, len(sound) - 1, TYPICAL).astype(int))] if sound else []
    if typical:
        cards = [_card(scene, frame, "") for frame in typical]
        arrows += sum(card.arrow for card in cards)
        parts += ["<h3>Others</h3>" if flagged else "<h3>Some of them</h3>", _tiles(cards)]
    if arrows:
        parts.append('<p class="note">Arrows on photos point up; photos taken straight down have none.</p>')
    return "".join(parts)


@dataclass(frozen=True)
class _Card:
    """A photo as HTML, and whether it has an arrow."""

    html: str
    arrow: bool


def _tiles(cards: Sequence[_Card]) -> str:
    return f'<div class="tiles wide">{"".join(card.html for card in cards)}</div>'


def _card(scene: Scene, frame: Frame, why: str) -> _Card:
    from PIL import Image

    width = min(PHOTO_WIDTH, frame.camera.width)
    image = Image.fromarray(read_photo(frame, width).numpy())
    arrow = _draw_up(image, scene, frame, frame.camera.resized(width))
    reason = f' <b class="warn">{text(why)}</b>' if why else ""
    caption = f"<figcaption>{text(frame.name)}{reason}</figcaption>"
    return _Card(f'<figure><img src="{picture_of(image)}" alt="">{caption}</figure>', arrow)


def _draw_up(image: object, scene: Scene, frame: Frame, camera: Camera) -> bool:
    """Draw an arrow along the up axis at a point near the photo's centre; False, and none, where no point is seen there
    or up is towards the camera."""
    from PIL import ImageDraw

    points = scene.points[frame.seen]
    pixels, depth = camera.project(points)
    off = np.linalg.norm(pixels - [camera.width / 2, camera.height / 2], axis=1)
    if not (depth > 0).any():
        return False
    foot = points[int(np.where(depth > 0, off, np.inf).argmin())]
    length = 0.3 * camera.height / camera.fy * float(camera.project(foot[None])[1][0])
    (start, end), ahead = camera.project(np.stack([foot, foot + length * scene.up]))
    along = end - start
    size = float(np.linalg.norm(along))
    if (ahead <= 0).any() or size < SHORTEST_ARROW * camera.height:
        return False
    draw = ImageDraw.Draw(image)  # type: ignore[arg-type]
    draw.line([tuple(start), tuple(end)], fill=ARROW, width=3)
    along, across = along / size, np.array([-along[1], along[0]]) / size
    tip = [tuple(end + 6 * along), tuple(end - 7 * along + 6 * across), tuple(end - 7 * along - 6 * across)]
    draw.polygon(tip, fill=ARROW)
    return True
