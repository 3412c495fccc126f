"""A nerfstudio user's story on a machine without a GPU: ns-train, killed and resumed; ns-eval, ns-viewer, ns-render."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.methods import METHODS
from scene_distill.training.loop import prepare

pytest.importorskip("nerfstudio")

ROOT = Path(__file__).parents[2]
WORDS = ["--blocks", "3", "--lanes", "2", "--iterations", "30", "--visits", "5", "--image-width", "80", "--seed", "5",
         "--max-memory", "8GB"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with city/ in it, and the entry points of pyproject.toml as an installed distribution has them."""
    folder = tmp_path_factory.mktemp("nerfstudio")
    make_city(load_recipe("city_test"), folder / "city")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = folder / "installed" / f"scene_distill-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
              for group, points in project["entry-points"].items()]  # fmt: skip
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    return folder


def environment(place: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(place / "installed"), str(ROOT)])
    return os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "COLUMNS": "200"} | more


def command(*words: object) -> list[str]:
    return [sys.executable, str(Path(sys.executable).parent / str(words[0])), *map(str, words[1:])]


def run(place: Path, *words: object, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*words),
        cwd=place,
        env=environment(place, **more),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@contextmanager
def running(place: Path, *words: object) -> Iterator[subprocess.Popen]:
    with (place / "output.txt").open("w") as output:
        process = subprocess.Popen(command(*words), cwd=place, env=environment(place), stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(condition, process: subprocess.Popen, place: Path):
    for _ in range(2400):
        found = condition()
        if found:
            return found
        assert process.poll() is None, (place / "output.txt").read_text()[-2000:]
        time.sleep(0.05)
    raise AssertionError("waited in vain: " + (place / "output.txt").read_text()[-2000:])


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """The run folder of an ns-train that was killed after its second commit and resumed with the same words."""
    words = ["ns-train", "momentum-gs", "--data", "city/", *WORDS]
    with running(place, *words) as process:

        def committed_twice() -> bool:
            manifests = list(place.glob("outputs/city/momentum-gs/*/checkpoint/checkpoint.json"))
            return bool(manifests) and json.loads(manifests[0].read_text())["next_round"] >= 2

        wait_for(committed_twice, process, place)
        os.kill(process.pid, signal.SIGKILL)
    done = run(place, *words, "--resume", "True")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed at round" in done.stdout
    assert "next: ns-viewer --load-config" in done.stdout
    runs = list(place.glob("outputs/city/momentum-gs/*"))
    assert len(runs) == 1, "resuming must not start another folder"
    return runs[0]


def test_a_killed_and_resumed_run_equals_the_engine_uninterrupted(place: Path, trained: Path) -> None:
    entry = METHODS["momentum-gs"]
    flags = {word.lstrip("-").replace("-", "_"): value for word, value in zip(WORDS[::2], WORDS[1::2], strict=True)}
    numbers = {name: int(value) for name, value in flags.items() if name != "max_memory"}
    config = entry.config(data=place / "city", output_dir=place / "engine", max_memory=flags["max_memory"], **numbers)
    training = prepare(entry.name, config, entry.build)
    training.folder.open(config, entry.name)
    training.train()
    ours, theirs = load_file(trained / "model.safetensors"), load_file(place / "engine" / "model.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_run_folder_holds_what_both_sides_expect(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "log.jsonl", "metrics.json", "model.safetensors", "checkpoint"} <= names
    assert {"config.yml", "nerfstudio_models", "dataparser_transforms.json"} <= names
    steps = list((trained / "nerfstudio_models").iterdir())
    assert [path.name for path in steps] == ["step-000000090.ckpt"]
    content = torch.load(steps[0], weights_only=True)
    assert content["step"] == 90
    assert all(isinstance(value, torch.Tensor) for value in content["pipeline"].values())


TOOLS = """
import sys
from nerfstudio.scripts import eval as ns_eval, render as ns_render

for words in {commands!r}:
    sys.argv = words
    {{"ns-eval": ns_eval, "ns-render": ns_render}}[words[0]].entrypoint()
"""


@pytest.fixture(scope="module")
def looked_at(place: Path, trained: Path) -> Path:
    """The run after ns-eval and two kinds of ns-render, in one process to import nerfstudio once.

    Nerfstudio looks for ffmpeg even when only pictures are asked for; a stand-in that is never run will do.
    """
    path, config = os.environ["PATH"], ["--load-config", str(trained.relative_to(place) / "config.yml")]
    if shutil.which("ffmpeg") is None:
        (place / "bin").mkdir()
        (place / "bin" / "ffmpeg").write_text("#!/bin/sh\nexit 1\n")
        (place / "bin" / "ffmpeg").chmod(0o755)
        path = f"{place / 'bin'}{os.pathsep}{path}"
    commands = [
        ["ns-eval", *config, "--output-path", "eval.json"],
        ["ns-render", "dataset", *config, "--image-format", "png", "--split", "train+test"],
        ["ns-render", "interpolate", *config, "--output-format", "images", "--interpolation-steps", "2",
         "--output-path", "path/video.mp4"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", TOOLS.format(commands=commands)],
        cwd=place, env=environment(place, PATH=path), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return trained


def test_ns_eval_measures_what_training_measured(place: Path, looked_at: Path) -> None:
    report, metrics = (
        json.loads((place / "eval.json").read_text()),
        json.loads((looked_at / "metrics.json").read_text()),
    )
    assert report["method_name"] == "momentum-gs" and report["experiment_name"] == metrics["experiment_name"] == "city"
    assert "lpips" not in report["results"]
    for name in ("psnr", "psnr_std", "ssim", "psnr_corrected", "ssim_corrected"):
        assert report["results"][name] == pytest.approx(metrics["results"][name], abs=1e-4)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(float) - b.astype(float)) ** 2) / 255**2))


def test_ns_render_writes_pictures_that_look_like_the_photos(place: Path, looked_at: Path) -> None:
    scene = load_scene(place / "city")
    values = []
    for split, frames in (("train", scene.train_frames), ("test", scene.test_frames)):
        assert len(list((place / "renders" / split / "rgb").iterdir())) == len(frames)
        for frame in frames:
            picture = np.asarray(Image.open(place / "renders" / split / "rgb" / f"{Path(frame.name).stem}.png"))
            photo = np.asarray(Image.open(frame.path).resize((80, 60), Image.Resampling.BOX))
            values.append(psnr(picture, photo))
    initial = json.loads((looked_at / "metrics.json").read_text())["initial_points_psnr"]
    assert np.mean(values) > initial + 3
    assert np.mean(values) > 12


def test_ns_render_interpolates_between_the_held_out_views(place: Path, looked_at: Path) -> None:
    assert len(list((place / "path" / "video").glob("*.jpg"))) == 4, "two steps between each two of three views"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def first_sharp_picture(port: int, width: int, height: int, fov: float) -> np.ndarray:
    """Connect as the viewer's page does and wait for the picture at full resolution."""
    import msgspec
    from websockets.sync.client import connect

    camera = {"type": "ViewerCameraMessage", "wxyz": [1, 0, 0, 0], "position": [3, 3, 3], "fov": fov,
              "aspect": width / height, "look_at": [0, 0, 0], "up_direction": [0, 0, 1]}  # fmt: skip
    with connect(f"ws://127.0.0.1:{port}", max_size=None) as page:
        page.send(msgspec.msgpack.encode(camera))
        until = time.time() + 60
        while time.time() < until:
            for message in msgspec.msgpack.decode(page.recv(timeout=60)):
                if message["type"] == "BackgroundImageMessage":
                    picture = Image.open(BytesIO(message["rgb_bytes"])).convert("RGB")
                    if picture.width > 400:
                        return np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    raise AssertionError("no picture came")


def test_ns_viewer_shows_the_first_photo_s_view(place: Path, trained: Path) -> None:
    port, config = free_port(), trained.relative_to(place) / "config.yml"
    words = ["--viewer.websocket-port", port, "--viewer.websocket-host", "127.0.0.1"]
    with running(place, "ns-viewer", "--load-config", config, *words) as process:

        def answers() -> bool:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).status == 200
            except OSError:
                return False

        wait_for(answers, process, place)
        frame = load_scene(place / "city").train_frames[0]
        photo = np.asarray(Image.open(frame.path).resize((80, 60), Image.Resampling.BOX))
        fov = 2 * np.arctan(frame.camera.height / 2 / frame.camera.fy)
        picture = first_sharp_picture(port, 80, 60, float(fov))
    assert psnr(picture, photo) > 12


def test_a_mistake_ends_in_one_sentence(place: Path) -> None:
    done = run(place, "ns-train", "momentum-gs", "--data", "nowhere")
    assert done.returncode == 1
    assert "error: nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stderr
