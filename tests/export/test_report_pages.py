"""Report pages are one file that loads nothing, say what they should, and compare only what compares."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_scene import make_scene

from scene_distill.core.cameras import look_at
from scene_distill.core.errors import UserError
from scene_distill.data.doctor import examine
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.export import report_compare
from scene_distill.export.report_charts import Series, line_chart, span, tick_text, ticks
from scene_distill.export.report_compare import chosen_views, write_comparison
from scene_distill.export.report_doctor import Expected, write_doctor_page
from scene_distill.export.report_page import write_page
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.renderers.splat import render
from scene_distill.representations.splats import Splats
from scene_distill.training import comparison
from scene_distill.training.comparison import ABSENT, compare, config_differences, labels, refuse_other_views
from scene_distill.training.report import Measured
from scene_distill.training.run_folder import RunFolder

VOID = {"meta", "img", "input", "br", "line", "path", "circle", "rect", "polyline", "image"}


@pytest.fixture(autouse=True)
def one_thread():
    """As in a run: torch's threads would spin against the native ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Page(HTMLParser):
    """What a page refers to, its text, and whether its tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses, self.text, self.open = [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    @property
    def loads_nothing(self) -> bool:
        outside = re.search(r"url\(|@import|https?://", self.source)
        return outside is None and all(address.startswith("data:image/webp") for address in self.addresses)


class Points:
    """A scene of sparse points as splats of one opacity."""

    def __init__(self, scene, logit: float):
        self.metadata, self.origin = {}, np.zeros(3)
        splats = Splats.from_points(scene.points, scene.colors)
        self.all = replace(splats, opacity_logits=torch.full_like(splats.opacity_logits, logit))

    def __len__(self):
        return len(self.all)

    def render(self, camera, *, with_depth=False):
        return render(self.all, camera, with_depth=with_depth)


def measured(folder: Path, data: Path, config=None, logit: float = 2.0, width: int = 40, **load) -> Measured:
    config = config or SplatsConfig(seed=1)
    scene = load_scene(data, **load)
    folder.mkdir(parents=True)
    log = RunFolder(folder)
    for step in range(1, 30):
        log.append({"round": 0, "step": step, "seconds": step, "units": {"0": {"loss": 1 / step, "l1": 0.5 / step}}})
    log.metrics.write_text(json.dumps({"seconds": 75.0, "steps": 29}))
    method = "splats" if isinstance(config, SplatsConfig) else "momentum-gs"
    return Measured(method, config, log, Points(scene, logit), scene, ImageCache(scene.frames, width, 10**6))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_scene(tmp_path_factory.mktemp("town") / "<town & co>", count=16).root


def test_two_methods_on_one_page(tmp_path, data):
    first = measured(tmp_path / "a" / "run", data)
    second = measured(tmp_path / "b" / "run", data, MomentumGSConfig(seed=3, iterations=77), -2.0)
    runs = compare([first, second])
    write_comparison(tmp_path / "page.html", runs, pictures=2, width=30)
    page = Page(tmp_path / "page.html")
    assert page.loads_nothing
    for words in ("a/run", "b/run", "momentum-gs", "paired", "bootstrap", "75 s", "iterations", "77",
                  "seed 1", "seed 3", "<town & co>", "of 2", "consistency", "sha256"):  # fmt: skip
        assert words in page.words, words
    values = json.loads(re.search(r'id="data">(.*?)</script>', page.source)[1])
    assert values["sources"] == ["photo", "a/run", "b/run"] and len(values["views"]) == 2
    assert all(len(view["pictures"]) == 3 for view in values["views"])
    interval = runs[1].against(runs[0], "psnr")
    assert f"{interval.mean:+.2f}" in page.words and f"{runs[0].interval('psnr').mean:.2f}" in page.words


def test_one_run_is_not_told_what_only_several_need(tmp_path, data):
    write_comparison(tmp_path / "page.html", compare([measured(tmp_path / "only", data)]), pictures=2, width=30)
    words = Page(tmp_path / "page.html").words
    for several in (
        "paired",
        "Green and red",
        "Differences",
        "runs differ",
        "that differ",
        "first run",
        "each run",
        "different methods",
    ):
        assert several not in words, several
    assert "bootstrap" in words and "where the PSNR is lowest" in words


def test_a_machine_with_one_core_has_one_core():
    machine = {"gpu": "", "processor": "x", "cores": 1, "kernels": "avx2", "memory_bytes": 1, "torch": "2"}
    code = {"version": "1", "source_sha256": "0" * 64}
    said = report_compare._made({"code": code, "machine": machine, "time": "now"})
    assert "x, 1 core (avx2)" in said
    assert "x, 2 cores (avx2)" in report_compare._made({"code": code, "machine": machine | {"cores": 2}, "time": "now"})


@pytest.mark.parametrize(("size", "shown"), [((1280, 800), (100, 75)), ((900, 60), (56, 42))])
def test_tables_fit_their_page_and_small_photos_stay_small(tmp_path, data, size, shown):
    """Photos of 40 x 30 px are enlarged 2.5 times, or to 70 % of the window's height."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    engine = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    runs = [measured(tmp_path / name / "a run with a long name", data, logit=2.0 - k) for k, name in enumerate("ab")]
    write_comparison(tmp_path / "page.html", compare(runs), pictures=2, width=1000)
    with engine.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": size[0], "height": size[1]})
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function("document.querySelector('.split').style.getPropertyValue('--high') !== ''")
        widths = page.evaluate("[...document.querySelectorAll('.scroll')].map((s) => [s.scrollWidth, s.clientWidth])")
        box = page.locator(".split").bounding_box()
        chromium.close()
    assert all(inside <= outside for inside, outside in widths) and len(widths) >= 2, widths
    assert (box["width"], box["height"]) == pytest.approx(shown, abs=1)


def test_the_script_runs_in_a_browser(tmp_path, data):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    write_comparison(tmp_path / "page.html", compare([measured(tmp_path / "only", data)]), pictures=2, width=30)
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}",
         "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert re.search(r'class="tag r">only\s+\d+\.\d\d dB<', done.stdout), done.stdout[-500:] + done.stderr[-500:]
    assert re.search(r'class="over"[^>]*clip-path: inset\(0(px)? 0(px)? 0(px)? 50%\)', done.stdout)
    assert 'class="tile on"' in done.stdout


def test_other_held_out_views_sizes_or_photos_are_one_sentence(tmp_path, data):
    first = measured(tmp_path / "a", data)
    with pytest.raises(UserError, match=r"b holds out other views than .*a \(4 and 2, 1 of them the same\)"):
        refuse_other_views([first, measured(tmp_path / "b", data, test_every=5)])
    with pytest.raises(UserError, match=r"c is measured on photos 20 px wide and .*a on 40 px"):
        compare([first, measured(tmp_path / "c", data, width=20)])
    other = tmp_path / "other"
    shutil.copytree(data, other)
    shutil.copy(other / "images" / "photo_01.jpg", other / "images" / "photo_00.jpg")
    with pytest.raises(UserError, match="d sees other photos under the same names"):
        compare([first, measured(tmp_path / "d", other)])
    with pytest.raises(UserError, match="given twice"):
        labels([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_labels_tell_runs_apart_and_settings_say_who_has_them():
    assert labels([Path("/x/one/run"), Path("/x/two/run")]) == ["one/run", "two/run"]
    found = {d.name: d for d in config_differences([SplatsConfig(seed=1, workers=2), MomentumGSConfig(seed=2)])}
    assert found["seed"].values == (1, 2) and found["seed"].decides
    assert found["workers"].values == (2, 1) and not found["workers"].decides
    assert found["momentum"].values == (ABSENT, 0.9) and "blocks" in found and "output_dir" not in found
    assert config_differences([SplatsConfig(), SplatsConfig(resume=True)]) == []


def test_shown_views_are_spread_and_where_runs_differ_most(tmp_path):
    names = [f"{k:02d}" for k in range(20)]

    class Run:
        def __init__(self, bonus):
            per_view = {name: {"psnr": 20.0 + (bonus if name in ("07", "13") else 0)} for name in names}
            self.found = comparison.Evaluation({}, per_view, "")

    assert chosen_views([Run(0), Run(5)], names, 4) == {"00", "19", "07", "13"}
    assert chosen_views([Run(0), Run(5)], names, 50) == set(names)


def test_the_doctors_page_shows_what_deserves_a_look(tmp_path, data):
    folder = tmp_path / "sick"
    shutil.copytree(data, folder)
    shutil.copy(folder / "images" / "photo_07.jpg", folder / "images" / "photo_06.jpg")
    scene = load_scene(folder)
    found, looks = examine(scene, 0)
    assert len(looks) == 16
    expected = Expected("splats", "2 blocks <of> many", np.arange(len(scene.points)) % 2)
    write_doctor_page(tmp_path / "page.html", scene, found, looks, ["machine    fast", "! kernels  none"], expected)
    page = Page(tmp_path / "page.html")
    assert page.loads_nothing
    assert f"{len(found.problems())} things to look at" in page.words
    for words in (*found.problems(), "2 blocks <of> many", "machine", "fast", "From above", "same photo or pose"):
        assert words in page.words, words
    assert page.source.count("<figure>") == 16 or "photo_06.jpg" in page.words
    healthy = replace(found, duplicates=[], poses=replace(found.poses, groups=[16], apart=[]), image_coverage=1.0)
    write_doctor_page(tmp_path / "page.html", scene, healthy, looks, [], None)
    healthy_page = Page(tmp_path / "page.html").words
    assert "nothing is wrong with it" in healthy_page
    assert "Arrows on photos point up" in healthy_page and "Some of them" in healthy_page
    for word in ("Others", "Deserve", "deserves a look"):
        assert word not in healthy_page, word


def test_arrows_and_maps_of_photos_taken_straight_down(tmp_path, data):
    scene = load_scene(data)
    found, looks = examine(scene, 0)
    healthy = replace(found, duplicates=[], poses=replace(found.poses, groups=[16], apart=[]))
    pose = look_at(np.array([0.0, 0.0, 5.0]), np.zeros(3), np.array([0.0, 1.0, 0.0]))
    down = [replace(f, camera=replace(f.camera, cam_from_world=pose)) for f in scene.frames]
    points = scene.points.copy()
    points[:3] = 0.0  # every photo sees one of them, in its middle
    flat = replace(scene, frames=tuple(down), points=points * [10.0, 10.0, 1.0])
    write_doctor_page(tmp_path / "flat.html", flat, healthy, looks, [], None)
    page = Page(tmp_path / "flat.html")
    assert "rrow" not in page.words
    order = [page.words.index(name) for name in ("From above", "Photos that see a place", "From the side")]
    assert order == sorted(order) and 'class="grid3"' not in page.source
    wide = [int(width) for width in re.findall(r'<svg viewBox="0 0 \d+ \d+" width="(\d+)"', page.source)]
    assert wide[:3] == [max(wide[:2]), max(wide[:2]), 1130], "the flat side view has a row of its own"
    tall = replace(scene, frames=tuple(down), points=points)
    write_doctor_page(tmp_path / "tall.html", tall, healthy, looks, [], None)
    assert 'class="grid3"' in Page(tmp_path / "tall.html").source


def test_text_from_outside_stays_text(tmp_path):
    write_page(tmp_path / "p.html", "<b>", "lead", "", data={"name": "</script><script>alert(1)</script>"})
    source = (tmp_path / "p.html").read_text()
    assert "<title>&lt;b&gt;</title>" in source and "</script><script>alert" not in source
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_charts_hold_their_values_and_have_round_ticks():
    assert ticks(0, 10) == pytest.approx([0, 2, 4, 6, 8, 10]) and ticks(3, 3) == [3]
    assert ticks(0.21, 0.83) == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert tick_text(12_000) == "12k" and tick_text(0.25) == "0.25"
    low, high = span([np.array([1.0, 2.0]), np.array([5.0])])
    assert low < 1 and high > 5
    svg = line_chart([Series("a & b", "#000", np.arange(5.0), np.arange(5.0) ** 2)], "step", "loss")
    points = re.search(r'polyline points="([^"]*)"', svg)[1].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == 5 and heights == sorted(heights, reverse=True) and "a &amp; b" in svg
