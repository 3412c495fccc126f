"""The web client at files in headless Chromium: a mesh, splats with classes, splats that the browser draws itself."""

import numpy as np
import pytest
from PIL import Image
from running_viewer import served
from viewed_meshes import cube, wall
from viewing_browser import NEEDS_CHROMIUM, WEBGL_ON_CPU, WITHOUT_GPU, Page, compare, launched

from scene_distill.export.mesh_files import write_mesh
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import write_ply
from scene_distill.representations.meshes import TriangleMesh
from scene_distill.representations.splats import Splats

pytestmark = NEEDS_CHROMIUM
UPRIGHT = SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0))


SMALL_PAGE = (760, 480)
"""For pages that draw with WebGL on the CPU, which is slow."""


@pytest.fixture
def chromium():
    with launched(*WITHOUT_GPU) as browser:
        yield browser


@pytest.fixture
def chromium_with_webgl():
    with launched(*WEBGL_ON_CPU) as browser:
        yield browser


@pytest.fixture
def mesh_file(tmp_path):
    pytest.importorskip("open3d", reason="Open3D is not installed")
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    colors = np.array([[0, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 0]] * 2, np.float32)
    parts = [cube((x, y, 0.0), colors) for x in (-3.0, 0.0, 3.0) for y in (-3.0, 3.0)]
    write_mesh(TriangleMesh.cat(parts), tmp_path / "blocks.glb", UPRIGHT)
    return tmp_path / "blocks.glb"


def test_a_file_says_that_it_has_no_photos_and_never_waits_for_them(chromium, splat_file, tmp_path):
    with served(splat_file, tmp_path) as viewer, Page(chromium, viewer) as page:
        page.tab("Photos")
        assert page.page.is_disabled("#photo-render") and page.page.is_disabled("#photo-error")
        assert page.page.inner_text("#panel-Photos .empty").strip()
        page.do("viewer.left = 'photo'; viewer.right = 'rgb'; viewer.changed()")
        page.until("viewer.left === 'rgb' && viewer.right === null")
        page.settle()
        page.tab("Tools")
        page.do("const box = document.querySelector('[aria-label=\"x low\"]'); box.value = box.max;"
                "box.dispatchEvent(new Event('input'))")  # fmt: skip
        shown = page.page.evaluate("+document.querySelector('[aria-label=\"x low\"]').value")
        assert abs(shown - page.page.evaluate("viewer.crop.low[0]")) < 0.05
        assert page.page.evaluate("viewer.crop.low[0] <= viewer.crop.high[0]")
        page.tab("Film")
        page.do("document.getElementById('film').textContent = 'an earlier film'")
        for _ in range(2):
            page.page.click("#add-keyframe")
        page.page.fill("[aria-label='Seconds']", "100000")
        page.page.click("#make-film")
        page.until("document.getElementById('note').classList.contains('bad')")
        page.until("document.getElementById('film').textContent === 'an earlier film'")


def test_a_mesh_is_looked_at_inspected_measured_and_cropped(chromium, mesh_file):
    with served(mesh_file, mesh_file.parent) as viewer, Page(chromium, viewer) as page:
        assert page.page.is_disabled("#layer-features") and page.page.is_disabled("#draw-browser")
        page.do("viewer.right = 'wireframe'; viewer.changed()")
        page.settle()
        compare(page.screenshot(), "mesh")
        whole = page.picture()
        page.page.click("#tool-inspect")
        lit = np.argwhere(whole.sum(2) > 0.8)
        y, x = (int(v) for v in lit[len(lit) // 2])
        page.page.mouse.click(x + 60, y + 150)
        page.until("document.getElementById('picked').textContent.includes('face')")
        told = page.page.inner_text("#picked")
        assert "normal" in told and "Gaussians" not in told
        page.page.click("#tool-measure")
        page.page.mouse.click(x + 60, y + 150)
        page.until("viewer.measures.length === 1")
        assert np.allclose(
            page.page.evaluate("viewer.measures[0].points[0]"), page.page.evaluate("viewer.picked.point")
        )
        page.do("viewer.crop.on = true; viewer.crop.high[0] = 0; viewer.right = null; viewer.changed()")
        page.settle()
        assert (page.picture().sum(2) > 0.3).mean() < 0.8 * (whole.sum(2) > 0.3).mean()


@pytest.fixture
def classes_file(tmp_path):
    """Three boxes of splats side by side, each of a class of its own."""
    plyfile = pytest.importorskip("plyfile")
    generator = np.random.default_rng(3)
    points = generator.uniform(-1, 1, (1500, 3)) * [1.0, 2.0, 0.4]
    labels = np.arange(len(points), dtype="i4") % 3
    points[:, 0] += 2.5 * (labels - 1)
    colors = generator.integers(60, 220, (len(points), 3)).astype(np.uint8)
    splats = Splats.from_points(points, colors)
    splats.opacity_logits.fill_(2.0)
    path = tmp_path / "boxes.ply"
    write_ply(splats, path, UPRIGHT)
    file = plyfile.PlyData.read(path)
    rows = file["vertex"].data
    wider = np.empty(len(rows), [*rows.dtype.descr, ("label", "i4")])
    for name in rows.dtype.names:
        wider[name] = rows[name]
    wider["label"] = labels
    names = 'scene_distill.classes ["road", "roof", "tree"]'
    plyfile.PlyData([plyfile.PlyElement.describe(wider, "vertex")], comments=[*file.comments, names]).write(path)
    return path


def test_classes_are_shown_with_their_names_and_in_the_inspected_pixel(chromium, classes_file):
    with served(classes_file, classes_file.parent) as viewer, Page(chromium, viewer) as page:
        assert page.page.is_disabled("#layer-age")
        page.page.click("#layer-semantics")
        page.settle()
        assert all(name in page.page.inner_text("#classes") for name in ("road", "roof", "tree"))
        compare(page.screenshot(), "semantics")
        page.page.click("#tool-inspect")
        page.page.mouse.click(470, 420)
        page.until("document.querySelectorAll('#picked .share').length > 0")
        told = page.page.inner_text("#picked")
        assert any(name in told for name in ("road", "roof", "tree")) and "age unknown" in told


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10 * np.log10(((one - other) ** 2).mean()))


def test_the_browser_draws_the_splats_that_the_server_draws_and_gives_back_what_it_cannot(
    chromium_with_webgl, classes_file
):
    with served(classes_file, classes_file.parent) as viewer, Page(chromium_with_webgl, viewer, SMALL_PAGE) as page:
        server = page.picture()
        page.do("viewer.viewport.slowMs = Infinity")
        page.page.click("#draw-browser")
        page.until("document.getElementById('drawn-by').textContent === 'drawn by this browser'")
        page.settle()
        browser = page.picture()
        assert psnr(server, browser) > 32 and browser.std() > 0.1
        page.do("viewer.camera.orbit(0.7, 0.2); viewer.moved()")
        page.settle()
        turned = page.picture()
        assert psnr(turned, browser) < 25
        page.page.click("#tool-inspect")
        page.page.mouse.click(212, 270)
        page.until("document.querySelectorAll('#picked .share').length > 0")
        page.do("viewer.picked = null; viewer.setTool('look'); viewer.left = 'depth'; viewer.changed()")
        page.until("document.getElementById('drawn-by').textContent === 'drawn by the server'")
        page.settle()
        assert "depth" in page.page.inner_text("#legend").lower()
        page.do("viewer.left = 'rgb'; viewer.changed()")
        page.until("document.getElementById('drawn-by').textContent === 'drawn by this browser'")
        page.settle()
        assert psnr(page.picture(), turned) > 50
        page.tab("View")
        page.page.click("#draw-server")
        page.until("document.getElementById('drawn-by').textContent === 'drawn by the server'")
        page.settle()
        assert psnr(page.picture(), turned) > 32


def test_a_browser_that_cannot_fetch_the_splats_says_so_and_the_server_draws(chromium_with_webgl, classes_file):
    with served(classes_file, classes_file.parent) as viewer, Page(chromium_with_webgl, viewer, SMALL_PAGE) as page:
        page.do("viewer.scene.browser.address = '/splats/99'; viewer.setDrawnBy('browser')")
        page.until("document.getElementById('note').textContent.includes('the server draws')")
        assert page.page.evaluate("viewer.drawnBy") == "server"
        page.settle()
        page.complaints[:] = [told for told in page.complaints if "404" not in told]


def test_a_browser_that_draws_too_slowly_gives_it_back_to_the_server(chromium_with_webgl, classes_file):
    with served(classes_file, classes_file.parent) as viewer, Page(chromium_with_webgl, viewer, SMALL_PAGE) as page:
        page.do("viewer.viewport.slowMs = 0; viewer.setDrawnBy('browser')")
        page.until("document.getElementById('drawn-by').textContent === 'drawn by this browser'")
        page.do("setInterval(() => { viewer.camera.orbit(0.1, 0); viewer.moved(); }, 50)")
        page.until("viewer.drawnBy === 'server'")
        assert "took more than 0 s" in page.page.inner_text("#note")
        page.until("document.getElementById('drawn-by').textContent === 'drawn by the server'")


@pytest.mark.parametrize("size", [(1280, 800), (760, 480), (620, 900)])
@pytest.mark.parametrize("box", [([-40, -3, 0], [60, 90, 7]), ([5, 5, 5], [5, 5, 5]), ([0, 0, 0], [1, 1, 30])])
def test_home_sees_the_whole_scene_and_not_much_more(chromium, splat_file, tmp_path, size, box):
    with served(splat_file, tmp_path) as viewer, Page(chromium, viewer, size) as page:
        page.do(f"viewer.scene.bounds = {[list(map(float, end)) for end in box]}; viewer.home()")
        pose = np.array(page.page.evaluate("viewer.camera.pose()")).reshape(4, 4)
        aspect, slope = page.page.evaluate("[viewer.viewport.aspect, Math.tan(viewer.camera.fov / 2)]")
        corners = np.array(np.meshgrid(*np.array(box, float).T)).reshape(3, -1).T @ pose[:3, :3].T + pose[:3, 3]
        seen = np.abs(corners[:, :2] / corners[:, 2:] / [slope * aspect, slope])
        assert (corners[:, 2] > 0).all() and seen.max() <= 1
        assert box[0] == box[1] or seen.max() > 0.85


def test_a_textured_wall_has_its_picture(chromium, tmp_path):
    pytest.importorskip("open3d", reason="Open3D is not installed")
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    picture = Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    write_mesh(wall(np.asarray(picture), 2.0), tmp_path / "wall.obj", UPRIGHT)
    with served(tmp_path / "wall.obj", tmp_path) as viewer, Page(chromium, viewer) as page:
        assert page.page.evaluate("viewer.scene.facts['coloured by']") == "texture"
        assert page.picture().std() > 0.05
