"""The gallery is one file that loads nothing, shows every view of every object, and turns in a browser."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scene_distill.core.errors import UserError
from scene_distill.export.report_gallery import GalleryObject, write_gallery

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


def shaded(views: int, size: int = 16) -> torch.Tensor:
    """View v is grey of v / views."""
    return (torch.arange(views) / views)[:, None, None, None].expand(views, size, size, 3)


def strips(page: str) -> list[np.ndarray]:
    found = re.findall(r"url\(data:image/webp;base64,([A-Za-z0-9+/=]+)\)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in found]


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 24), st.text(min_size=1, max_size=30))
def test_every_view_is_there_and_any_prompt_is_text(tmp_path_factory, views: int, prompt: str):
    path = tmp_path_factory.mktemp("gallery") / "gallery.html"
    write_gallery(path, "t", [GalleryObject(prompt, shaded(views))], {})
    page = path.read_text(encoding="utf-8")
    (strip,) = strips(page)
    assert strip.shape == (16, 16 * views, 3)
    middles = strip[8, 8::16].mean(-1) / 255
    np.testing.assert_allclose(middles, np.arange(views) / views, atol=0.02)
    assert f'data-views="{views}"' in page and f"background-size:{100 * views}%" in page
    assert not re.search(r"(src|href)=", page.split("<script>")[0])


def test_figures_settings_and_warnings_are_shown_as_text(tmp_path: Path):
    path = tmp_path / "gallery.html"
    objects = [
        GalleryObject("a red chair", shaded(4), {"evaluations": "4,800"}),
        GalleryObject("<b>a & b</b>", shaded(4), {}, "diverged: <nothing there>"),
    ]
    write_gallery(path, "Two objects", objects, {"method": "dreamer-xl", "prior": "<tiny>"})
    page = path.read_text(encoding="utf-8")
    assert page.count('class="turn"') == 2 and "2 objects" in page
    for words in ("4,800", "dreamer-xl", "&lt;tiny&gt;", "&lt;b&gt;a &amp; b&lt;/b&gt;", "diverged: &lt;nothing there"):
        assert words in page, words
    assert "<b>a & b</b>" not in page


def test_nothing_to_show_and_too_wide_turns_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="at least one object"):
        write_gallery(tmp_path / "g.html", "t", [], {})
    with pytest.raises(UserError, match="show at most 31"):
        write_gallery(tmp_path / "g.html", "t", [GalleryObject("p", torch.zeros(40, 4, 512, 3))], {})
    assert not (tmp_path / "g.html").exists()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium: install Debian's package chromium")
def test_it_turns_in_a_browser(tmp_path: Path):
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    path = tmp_path / "gallery.html"
    write_gallery(path, "t", [GalleryObject("a red chair", shaded(12, 64))], {})
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 900, "height": 700})
        faults = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(path.as_uri())
        turn = page.locator(".turn")
        api.expect(turn).to_have_attribute("data-view", "2", timeout=15_000)
        turn.focus()
        turn.press("ArrowRight")
        stopped = int(turn.get_attribute("data-view"))
        turn.press("ArrowLeft")
        assert int(turn.get_attribute("data-view")) == (stopped + 1) % 12, "the camera goes on to the right"
        box = turn.bounding_box()
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 20 + box["width"] / 4, box["y"] + 20)
        page.mouse.up()
        assert int(turn.get_attribute("data-view")) == (stopped + 1 - 3) % 12, (
            "a quarter of the width is a quarter turn"
        )
        browser.close()
    assert not faults
