import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter
from tiny_scene import make_scene

from scene_distill.data.doctor import diagnose
from scene_distill.data.load import load_scene
from scene_distill.data.photo_quality import brightness, low_outliers, outliers, sharpness

APART = ", ".join(f"photo_{k:02d}.jpg" for k in (1, 2, 4, 5, 7))
GROUPS = f"photos fall into 3 groups (4, 3, 3) that share no points: {APART} and 1 more"
HOLES = "points cover only {} of a photo: expect holes where there are none"


def test_facts_of_a_small_scene(tmp_path):
    tiny = make_scene(tmp_path)
    xyz = np.stack(np.meshgrid(np.arange(5), np.arange(5), np.arange(2)), -1).reshape(-1, 3) * 0.25 - 0.5
    tiny.model = replace(tiny.model, points=replace(tiny.model.points, xyz=xyz))
    scene = load_scene(tiny.save())
    found = diagnose(scene)
    assert (found.frames, found.train, found.test, found.points) == (10, 8, 2, 50)
    assert found.resolutions == {"40x30": 10} and found.spacing == pytest.approx(0.25)
    depths = [np.median(f.camera.project(scene.points[f.seen])[1]) / 35 for f in scene.frames]
    assert found.ground_sample == pytest.approx(np.median(depths))
    assert found.spacing_px == pytest.approx(0.25 / np.median(depths))
    assert found.views_per_point == 3 and found.thin_points == 0
    assert found.problems() == [GROUPS, HOLES.format(f"{found.image_coverage:.0%}")]
    assert found.extent_cameras == pytest.approx((9.510565, 10.0, 0.0), abs=1e-6)
    assert json.loads(json.dumps(found.to_dict()))["up"] == pytest.approx([0, 0, 1])
    assert any("50, 0.25 units apart" in line for line in found.lines())


def test_faults_are_found_and_named(tmp_path):
    tiny = make_scene(tmp_path, count=20)
    images = tmp_path / "images"
    blurred = Image.open(images / "photo_03.jpg").filter(ImageFilter.GaussianBlur(2))
    blurred.save(images / "photo_03.jpg")
    Image.fromarray(np.asarray(Image.open(images / "photo_05.jpg")) // 3).save(images / "photo_05.jpg", quality=95)
    shutil.copy(images / "photo_07.jpg", images / "photo_06.jpg")
    (images / "photo_10.jpg").unlink()
    Image.new("RGB", (40, 30)).save(images / "lonely.jpg")
    tiny.change_image(12, quat=tiny.model.images[13].quat, translation=tiny.model.images[13].translation)
    found = diagnose(load_scene(tiny.save()))
    assert found.blurred == ["photo_03.jpg"] and found.exposure_outliers == ["photo_05.jpg"]
    assert found.duplicates == [["photo_06.jpg", "photo_07.jpg"], ["photo_12.jpg", "photo_13.jpg"]]
    assert found.photos_without_pose == ["lonely.jpg"] and list(found.skipped) == ["photo_10.jpg"]
    text = "\n".join(found.lines())
    for name in ("photo_03", "photo_05", "photo_06", "photo_10", "photo_12", "lonely"):
        assert name in text
    assert len(found.problems()) == 8 and found.problems()[-1].startswith("points cover only")
    assert found.alike == [], "a copy of a file is told once"


def test_sharpness_falls_with_blur_and_not_with_contrast():
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.normal(size=(80, 80)), 1)
    levels = [128 + 200 * gaussian_filter(texture, sigma) for sigma in (0, 1, 2, 4)]
    photos = [torch.from_numpy(np.repeat(level[..., None], 3, 2).clip(0, 255).astype(np.uint8)) for level in levels]
    values = [sharpness(photo) for photo in photos]
    assert values == sorted(values, reverse=True) and values[0] > 3 * values[2]
    dull = (photos[0].float() / 2 + 60).to(torch.uint8)
    assert sharpness(dull) == pytest.approx(values[0], rel=0.05)
    assert sharpness(torch.full((9, 9, 3), 7, dtype=torch.uint8)) == 0.0
    assert brightness(torch.full((9, 9, 3), 7, dtype=torch.uint8)) == pytest.approx(7)


def test_outliers_need_both_distance_and_size():
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 0.2, 0.7])
    assert low_outliers(values).tolist() == [5]
    assert outliers(np.array([100.0, 101, 99, 100, 104]), 25).tolist() == []
    assert outliers(np.array([100.0, 101, 99, 100, 160]), 25).tolist() == [4]


def test_the_shared_aerial_set_is_healthy(aerial_set):
    found = diagnose(load_scene(aerial_set))
    assert found.unit == "metre" and not found.problems()
    assert 0.1 < found.ground_sample < 0.2 and found.image_coverage > 0.9
    assert 10 < found.extent_points[2] < 20 and found.extent_cameras[2] < 3


def test_photos_that_show_the_same_are_found_in_other_files_and_light(tmp_path):
    make_scene(tmp_path, count=20)
    images = tmp_path / "images"
    smooth = gaussian_filter(np.random.default_rng(1).uniform(0, 255, (30, 40, 3)), (3, 3, 0)) * 6 - 630
    for name, gain in (("photo_08", 1.0), ("photo_09", 0.8)):
        Image.fromarray((smooth * gain).clip(0, 255).astype(np.uint8)).save(images / f"{name}.jpg", quality=80)
    found = diagnose(load_scene(tmp_path))
    assert found.alike == [["photo_08.jpg", "photo_09.jpg"]] and found.duplicates == []
    assert any("photos that show the same" in problem for problem in found.problems())
    assert "shows the same" in found.flagged()["photo_08.jpg"]
