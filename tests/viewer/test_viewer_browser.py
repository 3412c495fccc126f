"""The web client in headless Chromium against the real server.

Screenshots are compared with references/ at a quarter of their size, where fonts and the last bits of a render do not
count. SCENE_DISTILL_UPDATE_REFERENCES=1 writes them anew: look at them before they are committed.
"""

import os
import shutil
import threading
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running_viewer import Running, served, train

from scene_distill.training.control import training_state

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: install Debian's package chromium")

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--font-render-hinting=none",
]  # fmt: skip
REFERENCES = Path(__file__).parent / "references"
SIZE = (1280, 800)
SMALL = (320, 200)

TOLERANCE = 0.02
"""Mean absolute difference in [0, 1] of the shrunk screenshots."""

LARGEST_PATCH = 0.25
"""... and of the worst 16 x 20 patch of them, so that a missing panel cannot hide in the mean."""


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def viewer(town_run, tmp_path_factory):
    with served(town_run, tmp_path_factory.mktemp("films")) as running:
        yield running


class Page:
    """A page at a viewer, with everything that it complained about."""

    def __init__(self, chromium, viewer: Running) -> None:
        self.context = chromium.new_context(viewport={"width": SIZE[0], "height": SIZE[1]}, accept_downloads=True)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda told: self.complaints.append(told.text) if told.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(viewer.url)
        self.settle()

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        self.context.close()
        if kind is None:
            assert self.complaints == []

    def until(self, condition: str, seconds: float = 90.0):
        """Wait for a JavaScript expression; the page's content policy forbids what playwright itself would do."""
        end = time.monotonic() + seconds
        while not (found := self.page.evaluate(condition)):
            assert time.monotonic() < end, f"{condition} did not come true"
            self.page.wait_for_timeout(40)
        return found

    def settle(self) -> None:
        self.until("document.body.dataset.frame === 'sharp'")

    def do(self, script: str) -> None:
        self.page.evaluate(f"() => {{ {script} }}")

    def tab(self, name: str) -> None:
        self.page.click(f"#tab-{name}")

    def screenshot(self) -> np.ndarray:
        hidden = [self.page.locator("#timing"), self.page.locator("#note")]
        shot = self.page.screenshot(mask=hidden, mask_color="#16191d")
        return np.asarray(Image.open(BytesIO(shot)).convert("RGB"))

    def picture(self) -> np.ndarray:
        """The viewport without what lies over it."""
        return self.screenshot()[150:700, 60:880].astype(float) / 255


def compare(shot: np.ndarray, name: str) -> None:
    small = Image.fromarray(shot).resize(SMALL, Image.Resampling.BOX)
    path = REFERENCES / f"{name}.png"
    if os.environ.get("SCENE_DISTILL_UPDATE_REFERENCES"):
        REFERENCES.mkdir(exist_ok=True)
        small.save(path, optimize=True)
    mean, worst = differences(np.asarray(small), np.asarray(Image.open(path).convert("RGB")))
    assert mean < TOLERANCE and worst < LARGEST_PATCH, f"{name}: mean {mean:.4f}, worst patch {worst:.4f}"


def differences(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    apart = np.abs(one.astype(float) - other.astype(float)).mean(2) / 255
    patches = apart.reshape(SMALL[1] // 20, 20, SMALL[0] // 16, 16).mean((1, 3))
    return float(apart.mean()), float(patches.max())


PANELS = {
    "View": "", "Blocks": "viewer.left = 'blocks'; viewer.show.boxes = true; viewer.changed()",
    "Training": "viewer.left = 'depth'; viewer.changed()", "Photos": "viewer.stand(5)",
    "Tools": "viewer.crop.on = true; viewer.left = 'normals'; viewer.changed()",
    "Film": "viewer.left = 'teacher'; viewer.right = 'difference'; viewer.gain = 40; viewer.changed()",
}  # fmt: skip


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_opens_and_looks_as_it_should(chromium, viewer, name):
    with Page(chromium, viewer) as page:
        page.tab(name)
        page.do(PANELS[name])
        page.settle()
        page.page.wait_for_load_state("networkidle") if name == "Photos" else None
        if name == "Photos":
            page.until("[...document.querySelectorAll('#photos img')].slice(0, 9).every((image) => image.complete)")
        page.page.wait_for_timeout(200)
        compare(page.screenshot(), name.lower())


def test_the_references_are_told_apart():
    shots = [np.asarray(Image.open(REFERENCES / f"{name.lower()}.png").convert("RGB")) for name in PANELS]
    for index, one in enumerate(shots):
        for other in shots[index + 1 :]:
            mean, worst = differences(one, other)
            assert mean > TOLERANCE or worst > LARGEST_PATCH


RECORD = """window.kinds = []; const show = viewer.showFrame.bind(viewer);
viewer.showFrame = (header, kind, spent) => { kinds.push([kind, header.camera.width]); show(header, kind, spent); };"""


def test_mouse_and_keys_move_the_camera_with_drafts_in_between(chromium, viewer):
    with Page(chromium, viewer) as page:
        before = page.picture()
        page.do(RECORD)
        page.page.mouse.move(400, 400)
        page.page.mouse.down()
        for step in range(8):
            page.page.mouse.move(400 + 15 * step, 400 + 4 * step)
            page.page.wait_for_timeout(30)
        page.page.mouse.up()
        page.settle()
        turned = page.picture()
        assert np.abs(turned - before).mean() > 0.02
        kinds = page.page.evaluate("kinds")
        assert {kind for kind, _ in kinds} == {"draft", "sharp"} and kinds[-1][0] == "sharp"
        assert max(width for kind, width in kinds if kind == "draft") <= 512 < kinds[-1][1]
        page.page.mouse.wheel(0, -400)
        page.page.wait_for_timeout(50)
        page.settle()
        closer = page.picture()
        assert np.abs(closer - turned).mean() > 0.02
        page.page.keyboard.down("w")
        page.page.wait_for_timeout(300)
        page.page.keyboard.up("w")
        page.settle()
        assert np.abs(page.picture() - closer).mean() > 0.005


def test_blocks_split_crop_inspect_and_measure(chromium, viewer):
    with Page(chromium, viewer) as page:
        whole = page.picture()
        page.tab("Blocks")
        page.page.click("#blocks tr:nth-child(2) button")
        page.settle()
        solo = page.picture()
        assert (solo.sum(2) > 0.05).mean() < 0.8 * (whole.sum(2) > 0.05).mean()
        page.page.click("#panel-Blocks >> text=All")
        page.settle()
        assert np.abs(page.picture() - whole).mean() < 0.002
        page.do("viewer.right = 'depth'; viewer.changed()")
        page.settle()
        half = page.picture()
        page.page.mouse.move(472, 300)
        page.page.mouse.down()
        page.page.mouse.move(700, 300, steps=3)
        page.page.mouse.up()
        moved = page.picture()
        assert np.abs(moved[:, 430:620] - half[:, 430:620]).mean() > 0.02  # between the old and the new place
        assert np.abs(moved[:, 680:] - half[:, 680:]).mean() < 0.002
        page.do("viewer.right = null; viewer.changed()")
        page.page.click("#tool-inspect")
        page.page.mouse.click(470, 430)
        page.until("document.querySelectorAll('#picked .share').length > 3")
        assert "block" in page.page.inner_text("#picked")
        page.page.click("#tool-measure")
        for number, x in enumerate((380, 560), 1):
            page.page.mouse.click(x, 430)
            page.until(f"viewer.measures.length === 1 && viewer.measures[0].points.length === {number}")
        length = page.page.evaluate("viewer.measures[0].length")
        ends = np.array(page.page.evaluate("viewer.measures[0].points"))
        assert length == pytest.approx(np.linalg.norm(ends[0] - ends[1])) and 5 < length < 300
        assert f"{length:.3f} m" in page.page.inner_text("#measured")
        page.page.click("#crop")
        page.do("viewer.crop.high[0] = (viewer.crop.low[0] + viewer.crop.high[0]) / 2; viewer.changed()")
        page.settle()
        assert (page.picture().sum(2) > 0.05).mean() < 0.9 * (whole.sum(2) > 0.05).mean()


def test_photos_film_and_screenshot(chromium, viewer):
    with Page(chromium, viewer) as page:
        page.tab("Photos")
        page.page.click("#photos figure:nth-child(4)")
        page.settle()
        pose = viewer.session.frames[3].camera.cam_from_world.ravel()
        assert np.allclose(page.page.evaluate("viewer.viewport.shown.header.camera.pose"), pose, atol=1e-5)
        page.page.click("#panel-Photos >> text=Error heat map")
        page.settle()
        assert page.page.evaluate("viewer.viewport.shown.header.frame") == 3
        assert viewer.session.frames[3].name in page.page.inner_text("#legend")
        page.do("viewer.left = 'rgb'; viewer.changed()")
        page.page.click("#tool-frusta")
        page.page.click("#tools >> text=Home")
        page.until("document.body.dataset.frame === 'sharp' && viewer.frustumHits.length > 10")
        hit = page.page.evaluate(
            "viewer.frustumHits.find((hit) => hit.x > 80 && hit.x < 880 && hit.y > 100 && hit.y < 700)"
        )
        page.page.mouse.click(hit["x"], hit["y"] + 38)
        page.until("viewer.standing !== null")
        page.tab("Film")
        page.page.click("#add-keyframe")
        page.page.click("#tools >> text=Home")
        page.page.click("#add-keyframe")
        if shutil.which("ffmpeg"):
            page.page.fill("[aria-label='Seconds']", "0.3")
            page.page.select_option("[aria-label='Size']", "640 × 360")
            page.page.click("#make-film")
            page.until("document.querySelector('#film a') !== null")
            answer = page.context.request.get(viewer.url + page.page.get_attribute("#film a", "href"))
            assert answer.body()[4:8] == b"ftyp"
        page.page.select_option("[aria-label='Screenshot size']", "640 × 360")
        with page.page.expect_download() as download:
            page.page.click("#screenshot")
        assert Image.open(download.value.path()).size == (640, 360)


def test_two_browsers_and_hostile_messages_from_one_of_them(chromium, viewer):
    with Page(chromium, viewer) as one, Page(chromium, viewer) as other:
        same = one.picture()
        assert np.abs(other.picture() - same).mean() < 0.002
        other.do("viewer.left = 'alpha'; viewer.changed()")
        for hostile in (
            '"{"',
            '"[".repeat(60000)',
            "new Uint8Array(99)",
            "JSON.stringify({type: 'render', camera: 7})",
        ):
            one.do(f"document.getElementById('note').textContent = ''; viewer.connection.socket.send({hostile})")
            one.until("document.getElementById('note').textContent.length > 10")
        one.do("viewer.left = 'depth'; viewer.changed()")
        one.settle()
        other.settle()
        assert np.abs(other.picture() - one.picture()).mean() > 0.05
        one.do("viewer.connection.socket.send('x'.repeat(2000000))")
        one.until("!viewer.connection.open")
        one.until("viewer.connection.open")
        one.do("viewer.left = 'rgb'; viewer.changed()")
        one.settle()
        assert np.abs(one.picture() - same).mean() < 0.002


def test_the_page_connects_again_when_the_server_was_restarted(chromium, town_run, tmp_path):
    with served(town_run, tmp_path) as viewer:
        page = Page(chromium, viewer)
        page.do("window.mark = 'same page'; viewer.camera.orbit(0.4, 0); viewer.moved()")
        page.settle()
        before = page.picture()
        viewer.stop()
        page.until("document.getElementById('link').className === 'dot'")
        viewer.start()
        page.until("document.getElementById('link').className === 'dot on'")
        page.do("viewer.camera.orbit(-0.2, 0); viewer.moved()")
        page.settle()
        assert np.abs(page.picture() - before).mean() > 0.01
        page.do("viewer.camera.orbit(0.2, 0); viewer.moved()")
        page.settle()
        assert np.abs(page.picture() - before).mean() < 0.002
        assert page.page.evaluate("mark") == "same page"
        assert all("WebSocket" in complaint for complaint in page.complaints)
        page.context.close()


def test_a_run_in_training_is_paused_stepped_changed_and_resumed_from_the_page(chromium, town_config, tmp_path):
    run = tmp_path / "run"
    config = replace(town_config, iterations=32, visits=4)

    def wait_for_the_click(step):
        end = time.monotonic() + 120
        while step.round == 2 and not (run / "control.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.02)

    thread = threading.Thread(target=train, args=(config, run, wait_for_the_click), daemon=True)
    thread.start()
    end = time.monotonic() + 90
    while training_state(run) is None or training_state(run)["round"] < 1:
        assert time.monotonic() < end
        time.sleep(0.05)
    with served(run, tmp_path) as viewer, Page(chromium, viewer) as page:
        page.tab("Training")
        page.until("!document.getElementById('pause').disabled")
        page.page.click("#pause")
        page.until("document.getElementById('state').textContent === 'paused'")
        at = page.until("viewer.status.state === 'paused' && viewer.status.step")
        page.page.click("#step")
        page.until(f"viewer.status.step === {at} + 2")
        page.page.fill("[aria-label='dssim']", "0.4")
        page.page.click("#tunables tr:has([aria-label='dssim']) button")
        page.until("document.getElementById('events').textContent.includes('dssim 0.2 → 0.4')")
        page.page.fill("[aria-label='dssim']", "-3")
        page.page.click("#tunables tr:has([aria-label='dssim']) button")
        page.until("document.getElementById('note').textContent.includes('dssim must lie')")
        version = page.page.evaluate("viewer.scene.version")
        page.page.click("#resume")
        page.until("viewer.status.state === 'training' || viewer.status.state === 'finished'")
        page.until(f"viewer.scene.version > {version}")
        page.tab("Blocks")
        page.until("viewer.status.state === 'finished'")
    thread.join(90)
    assert training_state(run)["state"] == "finished"
