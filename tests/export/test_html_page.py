import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from splat_scenes import assert_close, likely_splats

from scene_distill.core.errors import UserError
from scene_distill.export import read_splats
from scene_distill.export.html import read_html, write_html
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.round_trip import orbit_views, pictures
from scene_distill.export.spz import read_spz, write_spz
from scene_distill.training.metrics import psnr

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
METADATA = SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0), source="a <b>town</b> & </script>", antialiased=True)


@pytest.mark.parametrize("bases", [1, 16])
def test_a_page_is_read_back_like_the_spz_in_it(tmp_path, bases):
    splats = likely_splats(100, bases)
    write_html(splats, tmp_path / "scene.html", METADATA)
    write_spz(splats, tmp_path / "scene.spz", METADATA, 3)
    found, metadata = read_splats(tmp_path / "scene.html")
    expected, _ = read_spz(tmp_path / "scene.spz")
    assert metadata == METADATA
    assert_close(found, expected, means=0, log_scales=0, opacities=0, colors=0, sh=0, turn=2e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.html", "scene.spz"]


def test_chunks_of_base64_do_not_show(tmp_path, monkeypatch):
    write_html(likely_splats(500), tmp_path / "whole.html", METADATA)
    whole, _ = read_html(tmp_path / "whole.html")
    monkeypatch.setattr("scene_distill.export.html.BLOCK_BYTES", 99)
    write_html(likely_splats(500), tmp_path / "pieces.html", METADATA)
    assert (tmp_path / "pieces.html").read_bytes() == (tmp_path / "whole.html").read_bytes()
    assert torch.equal(read_html(tmp_path / "pieces.html")[0].means, whole.means)


def test_the_page_is_small_closed_and_needs_no_network(tmp_path):
    write_html(likely_splats(10), tmp_path / "scene.html", METADATA)
    page = (tmp_path / "scene.html").read_text()
    assert len(page) < 60_000
    assert page.count("</script>") == 3 and "<b>" not in page
    assert not re.search(r"""(?:src|href)=|https?:|import[ (]|fetch\(""", page)


@pytest.mark.parametrize(
    "old,new,message",
    [
        (b'id="splats"', b'id="other"', "not a page"),
        (b'</script>\n<script type="module">', b"", "damaged|cut off"),
        (b'octet-stream">H4sI', b'octet-stream">H4%I', "base64|damaged"),
        (b'octet-stream">H4sI', b'octet-stream">AAAA', "begins neither|not an .spz"),
        (b'{"unit"', b'{unit"', "facts about its scene"),
    ],
)
def test_damaged_pages_get_one_sentence(tmp_path, old, new, message):
    path = tmp_path / "scene.html"
    write_html(likely_splats(10), path, SplatMetadata(unit="metre"))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as told:
        read_html(path)
    assert str(path) in str(told.value)


class Browser:
    """A headless Chromium, spoken to by its debugging protocol."""

    def __init__(self, folder, width, height):
        connect = pytest.importorskip("websockets.sync.client").connect
        self._process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader",
             "--hide-scrollbars", "--enable-unsafe-swiftshader", f"--user-data-dir={folder}",
             "--remote-debugging-port=0", "about:blank"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        address = next(found for line in self._process.stderr if (found := re.search(r"ws://([^/]+)/", line)))[1]
        with urllib.request.urlopen(f"http://{address}/json") as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        self._socket = connect(pages[0]["webSocketDebuggerUrl"], max_size=1 << 28)
        self._count, self.events = 0, []
        for domain in ("Runtime", "Page", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method, **params):
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("id") == self._count:
                return message["result"]
            self.events.append(message)

    def value(self, script):
        return self.call("Runtime.evaluate", expression=script)["result"].get("value")

    def open(self, address):
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + 120
        while self.value("document.body && (document.body.dataset.ready || document.body.dataset.failed)") is None:
            assert time.monotonic() < deadline, "the page did not become ready"
            time.sleep(0.1)
        return self.value("document.getElementById('panel').textContent")

    def picture(self):
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return torch.from_numpy(np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(np.float32) / 255)

    def close(self):
        self._socket.close()
        self._process.terminate()
        self._process.wait(30)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("bases,antialiased", [(16, True), (4, False)])
def test_a_browser_shows_from_the_disk_what_our_rasterizer_draws(tmp_path, bases, antialiased):
    path = tmp_path / "scene.html"
    write_html(likely_splats(2000, bases), path, SplatMetadata(up=(0.0, 0.0, 1.0), antialiased=antialiased))
    splats, metadata = read_html(path)
    views = orbit_views(splats, metadata.up, antialiased)
    drawn = pictures(splats, views)
    camera = views.cameras[1]
    pose = camera.moved(-views.origin).cam_from_world[:3].ravel()
    address = ",".join(f"{number:.7g}" for number in [*pose, camera.fy / camera.height])
    browser = Browser(tmp_path / "profile", camera.width, camera.height)
    try:
        assert "2,000 splats" in browser.open(f"{path.as_uri()}#view={address}&quiet")
        shown = browser.picture()
        assert "2,000 splats" in browser.open(path.as_uri())
        assert browser.picture().mean() > 0.02
        requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert {url.partition(":")[0] for url in requests} <= {"file", "blob", "data", "about"}
        errors = [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"]
        errors += [e for e in browser.events if e["method"] == "Log.entryAdded"
                   and e["params"]["entry"]["level"] == "error"]  # fmt: skip
        assert not errors
    finally:
        browser.close()
    covered = drawn.covered[1]
    assert covered.float().mean() > 0.1
    assert psnr(shown[covered], drawn.images[1][covered]) > 38
    assert psnr(shown.flip(1)[covered], drawn.images[1][covered]) < 30
