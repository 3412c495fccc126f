"""The report of a run: nerfstudio's keys as they were, every view, and where the figures come from."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_scene import make_scene

from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.renderers.splat import render
from scene_distill.representations.splats import Splats
from scene_distill.training.evaluation import evaluate, summary
from scene_distill.training.provenance import code_version, data_sha256
from scene_distill.training.report import Measured, report_run
from scene_distill.training.run_folder import RunFolder

NERFSTUDIO = {"experiment_name", "method_name", "checkpoint", "results"}
RESULTS = {
    "psnr", "psnr_std", "ssim", "ssim_std", "psnr_corrected", "psnr_corrected_std", "ssim_corrected",
    "ssim_corrected_std", "num_rays_per_sec", "fps",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """As in a run: torch's threads would spin against the native ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Points:
    """A scene of the sparse points as splats."""

    def __init__(self, scene):
        self.metadata, self.origin = {}, np.zeros(3)
        self.all = Splats.from_points(scene.points, scene.colors)

    def __len__(self):
        return len(self.all)

    def render(self, camera, *, with_depth=False):
        return render(self.all, camera, with_depth=with_depth)


@pytest.fixture
def measured(tmp_path):
    scene = load_scene(make_scene(tmp_path / "data").root)
    images = ImageCache(scene.frames, 40, 10**6)
    (tmp_path / "run").mkdir()
    return Measured("splats", SplatsConfig(seed=7), RunFolder(tmp_path / "run"), Points(scene), scene, images)


def test_keys_of_nerfstudio_stay_and_ours_stand_beside_them(measured):
    report = report_run(measured, lambda frame, rendering, photo: None, {"steps": 3})
    assert json.loads((measured.folder.path / "metrics.json").read_text()) == json.loads(json.dumps(report))
    assert set(report) >= NERFSTUDIO and set(report["results"]) == RESULTS
    assert report["steps"] == 3 and report["views_are_held_out"] and "lpips" not in report
    assert set(report["per_view"]) == measured.scene.test == {"photo_00.jpg", "photo_08.jpg"}
    values = [view["psnr"] for view in report["per_view"].values()]
    assert report["results"]["psnr"] == pytest.approx(np.mean(values))
    told = report["provenance"]
    assert told["seed"] == 7 and told["config"]["seed"] == 7 and told["method"] == "splats"
    assert told["data"]["photos"] == 10 and len(told["data"]["sha256"]) == 64
    assert told["machine"]["cores"] >= 1 and told["machine"]["torch"] == torch.__version__
    assert told["time"].endswith("+00:00")
    assert told["code"] == code_version() and len(told["code"]["source_sha256"]) == 64


def test_lpips_appears_only_with_its_network_named(measured, tmp_path):
    def fake(render, photo):
        return float((render - photo).abs().mean())

    fake.provenance = lambda: {"network": "alex"}
    images = ImageCache(measured.scene.frames, 40, 10**6)
    report = report_run(replace(measured, images=images), lambda *_: None, {}, fake)
    assert {"lpips", "lpips_std", "lpips_corrected"} <= set(report["results"])
    assert report["lpips"] == {"network": "alex"} and "LPIPS (alex) 0." in summary(report)


def test_evaluation_in_short_has_the_same_figures(measured):
    frames = measured.scene.test_frames
    results = evaluate(measured.trained, frames, measured.images)
    again = report_run(measured, lambda *_: None, {})["results"]
    assert {k: v for k, v in results.items() if k not in ("fps", "num_rays_per_sec")} == {
        k: v for k, v in again.items() if k not in ("fps", "num_rays_per_sec")
    }


def test_the_held_out_set_is_told_by_its_pixels(measured):
    first = report_run(measured, lambda *_: None, {})["held_out"]
    assert report_run(measured, lambda *_: None, {})["held_out"] == first and first["views"] == 2
    smaller = replace(measured, images=ImageCache(measured.scene.frames, 36, 10**6))
    assert report_run(smaller, lambda *_: None, {})["held_out"] != first


def test_the_data_hash_follows_what_is_used_and_not_where_it_lies(tmp_path):
    first = make_scene(tmp_path / "a").root
    same = make_scene(tmp_path / "b" / "elsewhere").root
    assert data_sha256(load_scene(first)) == data_sha256(load_scene(same))
    assert data_sha256(load_scene(first)) != data_sha256(load_scene(first, test_every=3))
    photo = same / "images" / "photo_03.jpg"
    content = bytearray(photo.read_bytes())
    content[len(content) // 2] ^= 1
    photo.write_bytes(bytes(content))
    assert data_sha256(load_scene(first)) != data_sha256(load_scene(same))
