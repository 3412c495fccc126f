"""From a self-made town to pictures, figures and a splat file, as a user does it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

FLAGS = ["--blocks", "3", "--lanes", "2", "--iterations", "150", "--image-width", "160", "--seed", "1"]


def scene_distill(*arguments: str | Path, ok: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scene_distill", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if ok:
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    return done


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "city"
    scene_distill("data", "city", folder, "--recipe", "city_test")
    return folder


@pytest.fixture(scope="module")
def run(city, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = scene_distill("train", "momentum-gs", "--data", city, "--output-dir", folder, *FLAGS)
    assert "next: scene-distill export" in done.stdout
    return folder


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def test_the_run_folder_holds_what_it_should_and_training_helped(run):
    report = json.loads((run / "metrics.json").read_text())
    results = report["results"]
    assert {"psnr", "psnr_std", "ssim", "ssim_std", "num_rays_per_sec", "fps", "psnr_corrected"} <= set(results)
    assert report["views_are_held_out"]
    assert results["psnr"] > report["initial_points_psnr"] + 3
    assert {"config.yaml", "log.jsonl", "metrics.json", "model.safetensors", "renders"} <= {
        p.name for p in run.iterdir()
    }
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 3 * 150


def test_the_renders_look_like_the_photos_and_not_like_their_mirror_images(run, city):
    views = [path for path in (run / "renders").iterdir() if path.stem != "side_by_side"]
    assert len(views) == 3
    for path in views:
        render = np.asarray(Image.open(path), dtype=float)
        photo = Image.open(next((city / "images").glob(f"{path.stem}.*"))).convert("RGB")
        truth = np.asarray(photo.resize(render.shape[1::-1]), dtype=float)
        likeness = np.corrcoef(render.ravel(), truth.ravel())[0, 1]
        assert likeness > 0.3
        for flipped in (render[:, ::-1], render[::-1], render[::-1, ::-1]):
            assert likeness > np.corrcoef(flipped.ravel(), truth.ravel())[0, 1] + 0.1


def test_eval_again_gives_the_same_figures(run, tmp_path):
    before = json.loads((run / "metrics.json").read_text())["results"]
    scene_distill("eval", run, "--json", tmp_path / "report.json")
    after = json.loads((tmp_path / "report.json").read_text())["results"]
    assert after["psnr"] == before["psnr"] and after["ssim_corrected"] == before["ssim_corrected"]


@pytest.mark.parametrize("kind", ["ply", "splat"])
def test_export_prints_the_cost_of_the_bake_and_others_can_read_it(run, kind):
    done = scene_distill("export", run, "--format", kind, "--refine", "20")
    assert "loss" in done.stdout and "dB" in done.stdout
    path = run / "exports" / f"scene.{kind}"
    if kind == "ply":
        vertex = PlyData.read(str(path))["vertex"]
        assert {"x", "f_dc_0", "f_rest_44", "opacity", "scale_0", "rot_3"} <= {p.name for p in vertex.properties}
        positions = np.stack([vertex["x"], vertex["y"], vertex["z"]], 1)
    else:
        rows = np.fromfile(
            path, dtype=np.dtype([("xyz", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rot", "u1", 4)])
        )
        positions = rows["xyz"]
    assert len(positions) > 1000 and np.isfinite(positions).all()
    assert -30 < np.median(positions[:, 2]) < 60  # metres above the ground of the town


def test_kill_dash_nine_then_resume_ends_with_the_same_bytes(run, city, tmp_path):
    folder = tmp_path / "killed"
    command = ["train", "momentum-gs", "--data", city, "--output-dir", folder, *FLAGS]
    process = subprocess.Popen(
        [sys.executable, "-m", "scene_distill", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while not list(folder.glob("checkpoint/checkpoint.json")) and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "model.safetensors").exists(), "the run ended before it could be killed"
    done = scene_distill(*command, "--resume")
    assert "resumed at round" in done.stdout
    assert weights(folder) == weights(run)


def test_dry_run_says_what_would_happen_and_writes_nothing(city, tmp_path):
    folder = tmp_path / "dry"
    done = scene_distill("train", "momentum-gs", "--data", city, "--output-dir", folder, *FLAGS, "--dry-run")
    assert "3 blocks" in done.stdout and "memory" in done.stdout and "time" in done.stdout
    again = next(line for line in done.stdout.splitlines() if line.startswith("next: "))
    assert f"--output-dir {folder}" in again and "--dry-run  " not in again
    assert not folder.exists()


def test_mistakes_are_one_sentence(run, city, tmp_path):
    scene_distill("train", "momentum-gs", "--data", tmp_path / "nowhere", ok=False)
    scene_distill("train", "no-such-method", ok=False)
    scene_distill("train", "momentum-gs", "--data", city, "--output-dir", run, *FLAGS, ok=False)
    scene_distill(
        "train", "momentum-gs", "--data", city, "--output-dir", run, *FLAGS, "--seed", "2", "--resume", ok=False
    )
    small = scene_distill(
        "train",
        "momentum-gs",
        "--data",
        city,
        "--output-dir",
        tmp_path / "x",
        *FLAGS,
        "--max-memory",
        "100MB",
        ok=False,
    )
    assert "lanes" in small.stderr and not (tmp_path / "x").exists()
    scene_distill("train", "momentum-gs", "--data", city, "--blocks", "0", "--output-dir", tmp_path / "y", ok=False)
    scene_distill("eval", tmp_path, ok=False)
    scene_distill("no-such-command", ok=False)
    (tmp_path / "bad.yaml").write_text("blocks: many\n")
    scene_distill("train", "momentum-gs", "--data", city, "--config", tmp_path / "bad.yaml", ok=False)


def test_settings_come_from_a_file_and_flags_win(city, tmp_path):
    (tmp_path / "c.yaml").write_text("blocks: 2\niterations: 7\n")
    folder = tmp_path / "dry"
    done = scene_distill(
        "train", "momentum-gs", "--data", city, "--config", tmp_path / "c.yaml", "--iterations", "9",
        "--image-width", "80", "--output-dir", folder, "--dry-run",
    )  # fmt: skip
    assert "2 blocks" in done.stdout and "18 steps in all" in done.stdout
