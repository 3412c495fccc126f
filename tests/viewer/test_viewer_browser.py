"""The web client in headless Chromium against the real server, at a run."""

import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from running_viewer import served, train
from viewing_browser import (
    LARGEST_PATCH,
    NEEDS_CHROMIUM,
    REFERENCES,
    TOLERANCE,
    WITHOUT_GPU,
    Page,
    compare,
    differences,
    launched,
)

from scene_distill.training.control import training_state

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def chromium():
    with launched(*WITHOUT_GPU) as browser:
        yield browser


@pytest.fixture(scope="module")
def viewer(town_run, tmp_path_factory):
    with served(town_run, tmp_path_factory.mktemp("films")) as running:
        yield running


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
        told = page.page.inner_text("#picked")
        assert "block" in told and "from the first points" in told and "age 24 steps" in told
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


DRAG_WHILE_SHARP_IS_DRAWN = """const { viewport } = viewer, ask = viewport.ask.bind(viewport);
viewport.ask = (kind) => {
  ask(kind);
  if (kind !== 'sharp' || window.dragged) return;
  window.dragged = true;
  viewer.camera.orbit(0.3, 0);
  viewer.moved();
};"""


def test_a_sharp_picture_that_is_drawn_while_a_drag_begins_is_not_shown(chromium, viewer):
    with Page(chromium, viewer) as page:
        page.do(RECORD)
        page.do(DRAG_WHILE_SHARP_IS_DRAWN)
        page.do("viewer.changed()")
        page.until("kinds.length > 0")
        assert page.page.evaluate("kinds[0][0]") == "draft"
        page.settle()
        assert page.page.evaluate("kinds.at(-1)[0]") == "sharp"


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
        page.do("viewer.camera.zoom(1.7); viewer.moved()")
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


def test_what_a_run_lacks_is_greyed_out_and_says_why(chromium, viewer):
    with Page(chromium, viewer) as page:
        assert page.page.is_disabled("#draw-browser") and "decoder" in page.page.inner_text("#drawn-hint")
        assert page.page.is_disabled("#layer-semantics") and "does not say" in page.page.get_attribute(
            "#layer-semantics", "title"
        )
        page.page.click("#layer-age")
        page.settle()
        assert "made after step" in page.page.inner_text("#legend")
        assert "drawn by the server" in page.page.inner_text("#drawn-by")


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
        one.do("window.closings = 0; viewer.connection.on('closed', () => { ++closings; })")
        one.do("viewer.connection.socket.send('x'.repeat(2000000))")
        one.until("closings > 0 && viewer.connection.open")
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
        page.tab("Blocks")
        page.until("document.querySelectorAll('.chip.training').length === 2")
        chips = "[...document.querySelectorAll('.chip.training')].map((chip) => [chip.textContent, chip.title]).sort()"
        assert page.page.evaluate(chips) == [[f"{n} · w0", f"lane {n} on worker 0"] for n in (0, 1)]
        page.tab("Training")
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
