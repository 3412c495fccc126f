"""Our trainer under nerfstudio: onlookers see the run and never change it; every way to end is orderly."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("nerfstudio")

from scene_distill.plugins.nerfstudio_methods import momentum_gs
from scene_distill.plugins.nerfstudio_trainer import Trainer

SETTINGS = {"blocks": 2, "lanes": 2, "iterations": 8, "visits": 4, "image_width": 24, "grow_from": 0.0}


def trainer(folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Trainer:
    """What ns-train sets up, for the scene in ``folder``."""
    monkeypatch.setattr(sys, "argv", ["ns-train"])
    config = type(momentum_gs.config)(data=folder, **(SETTINGS | {"vis": "tensorboard"} | fields))
    config.set_timestamp()
    config.save_config()
    made = config.setup(local_rank=0, world_size=1)
    made.setup()
    return made


@pytest.fixture(scope="module")
def plain(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a run that only a logger looked at."""
    with pytest.MonkeyPatch.context() as patch:
        made = trainer(scene_folder, patch, output_dir=tmp_path_factory.mktemp("plain"))
        made.train()
    folder = made.training.folder.path
    assert list(folder.glob("events.out.tfevents.*")), "tensorboard's file"
    return load_file(folder / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


class Browser(threading.Thread):
    """Connects to the viewer as its page does and takes pictures until told to stop."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port, self.seen, self.stop, self.colourful = port, threading.Event(), threading.Event(), threading.Event()

    def run(self) -> None:
        from io import BytesIO

        import msgspec
        import numpy as np
        from PIL import Image
        from websockets.sync.client import connect

        camera = {"type": "ViewerCameraMessage", "wxyz": [1, 0, 0, 0], "position": [3, 3, 3], "fov": 0.8, "aspect": 1.3,
                  "look_at": [0, 0, 0], "up_direction": [0, 0, 1]}  # fmt: skip
        with connect(f"ws://127.0.0.1:{self.port}", max_size=None) as page:
            page.send(msgspec.msgpack.encode(camera))
            while not self.stop.is_set():
                try:
                    messages = msgspec.msgpack.decode(page.recv(timeout=0.2))
                except TimeoutError:
                    continue
                for message in messages:
                    if message["type"] == "BackgroundImageMessage":
                        self.seen.set()
                        if np.asarray(Image.open(BytesIO(message["rgb_bytes"]))).max() > 60:
                            self.colourful.set()


def test_a_browser_that_watches_changes_nothing(
    scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, torch.Tensor]
) -> None:
    made = trainer(scene_folder, monkeypatch, output_dir=tmp_path, vis="viewer")
    hear, browsers = Trainer._hear, []

    def watched(self: Trainer, step: Any) -> None:
        if not browsers:
            (viewer,) = self.onlookers
            browsers.append(Browser(viewer.state.viser_server.get_port()))
            browsers[0].start()
            while not viewer.state.render_statemachines:
                time.sleep(0.01)
        hear(self, step)
        if step.done_steps == step.total_steps:
            self.train_lock.release()
            assert browsers[0].colourful.wait(60), "the page shows the scene while it trains"
            self.train_lock.acquire()

    monkeypatch.setattr(Trainer, "_hear", watched)
    try:
        made.train()
    finally:
        browsers[0].stop.set()
        browsers[0].join(10)
    assert equal(load_file(made.training.folder.model), plain)


def test_the_pause_button_holds_training(
    scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, torch.Tensor]
) -> None:
    made = trainer(scene_folder, monkeypatch, output_dir=tmp_path, vis="viewer")
    made.training_state = "paused"
    done, at_pause = threading.Thread(target=made.train, daemon=True), []
    done.start()
    log = made.training.folder.log
    while not log.exists() or not log.read_text():
        time.sleep(0.01)
    for _ in range(2):
        done.join(0.3)
        at_pause.append(log.read_text())
    assert at_pause[0] == at_pause[1]
    assert at_pause[0].count("\n") == 1
    made.training_state = "training"
    done.join(60)
    assert equal(load_file(made.training.folder.model), plain)


def test_ctrl_c_keeps_what_was_committed(
    scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, torch.Tensor]
) -> None:
    made, commits = trainer(scene_folder, monkeypatch, output_dir=tmp_path), []

    def committed(self: Trainer) -> None:
        commits.append(1)
        if len(commits) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_committed", committed)
        with pytest.raises(SystemExit, match="--resume True"):
            made.train()
    again = trainer(scene_folder, monkeypatch, output_dir=tmp_path, resume=True)
    assert again.config.timestamp == made.config.timestamp
    again.train()
    assert again.training.runtime.next_round == len(again.training.runtime.rounds)
    assert equal(load_file(again.training.folder.model), plain)


def test_another_setting_cannot_be_resumed(scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(scene_folder, monkeypatch, output_dir=tmp_path)._begin()
    with pytest.raises(SystemExit, match="was started with --lanes 2, not 1"):
        trainer(scene_folder, monkeypatch, output_dir=tmp_path, resume=True, lanes=1).train()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_memory": "1MB"}, "--max-memory 1MB is too small"),
        ({"test_list": Path("no.txt")}, "no.txt does not exist"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SystemExit, match=sentence):
        trainer(scene_folder, monkeypatch, output_dir=tmp_path, **fields)


def test_a_dry_run_plans_and_writes_nothing(
    scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    made = trainer(scene_folder, monkeypatch, dry_run=True)
    made.train()
    assert "rounds of" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_viewer_stays_when_asked_to(scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nerfstudio.viewer.viewer import Viewer

    made, updates = trainer(scene_folder, monkeypatch, output_dir=tmp_path, vis="viewer"), []
    made.config.viewer.quit_on_train_completion = False

    def update_scene(self: Viewer, step: int) -> None:
        updates.append(step)
        if len(updates) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Viewer, "update_scene", update_scene)
    made.train()
    assert made.training_state == "completed"
    assert updates == [16, 16, 16]
    assert made.onlookers[0].pipeline.model.scene is not None
