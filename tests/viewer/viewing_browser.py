"""A headless Chromium for the viewer's tests, pages in it, and screenshots that are compared with references/.

Screenshots are compared at a quarter of their size, where fonts and the last bits of a render do not count.
SCENE_DISTILL_UPDATE_REFERENCES=1 writes them anew: look at them before they are committed.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running_viewer import Running

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
NEEDS_CHROMIUM = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: install Debian's package chromium")

FLAGS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--font-render-hinting=none",
]  # fmt: skip
WITHOUT_GPU = ("--disable-gpu",)
WEBGL_ON_CPU = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
REFERENCES = Path(__file__).parent / "references"
SIZE = (1280, 800)
SMALL = (320, 200)

TOLERANCE = 0.02
"""Mean absolute difference in [0, 1] of the shrunk screenshots."""

LARGEST_PATCH = 0.25
"""... and of the worst 16 x 20 patch of them, so that a missing panel cannot hide in the mean."""


@contextmanager
def launched(*flags: str) -> Iterator:
    """A Chromium; the test is skipped where playwright is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, headless=True, args=[*FLAGS, *flags])
        yield browser
        browser.close()


class Page:
    """A page at a viewer, with everything that it complained about."""

    def __init__(self, chromium, viewer: Running, size: tuple[int, int] = SIZE) -> None:
        self.context = chromium.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True)
        self.context.set_default_timeout(120_000)
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
        return self.screenshot()[150:-100, 60:-400].astype(float) / 255


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
