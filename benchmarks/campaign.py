"""A campaign: named commands, each run once, a JSON written after every run, so that a stopped campaign continues.

Every run is a process of its own: what it leaks or caches does not reach the next, and its peak memory is its own.
Several processes may share one campaign's file, each with runs of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OF_ITS_MACHINE = ("per_view", "held_out", "provenance", "trained")
"""Parts of metrics.json that are long or name folders of the machine; a campaign leaves them in the run's folder."""

ROOT = Path(__file__).resolve().parents[1]


def shared_data() -> Path:
    """SCENE_DISTILL_DATA, or shared/data beside the repository; exits with a sentence when neither exists."""
    path = Path(os.environ.get("SCENE_DISTILL_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        sys.exit(f"no real data at {path}; set SCENE_DISTILL_DATA to the folder that holds aerial_sheffield/")
    return path


class Campaign:
    """Runs that are done are kept in one JSON file by name."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def run(self, name: str, arguments: list[str], folder: Path) -> dict[str, Any]:
        """`scene-distill train ...` into ``folder`` unless ``name`` is done (a run that was cut off resumes); its
        metrics.json with wall seconds beside it."""
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        command = [sys.executable, "-m", "scene_distill", "train", *arguments, "--output-dir", str(folder), *resume]
        return self._measured(name, command, folder)

    def run_nerfstudio(self, name: str, arguments: list[str], root: Path) -> dict[str, Any]:
        """The same through `ns-train`, whose run folder is root/NAME/METHOD/run."""
        folder = root / name / arguments[0] / "run"
        resume = ["--resume", "True"] if (folder / "config.yaml").exists() else []
        where = ["--output-dir", str(root), "--experiment-name", name, "--timestamp", "run"]
        command = [str(Path(sys.executable).with_name("ns-train")), *arguments, *where, *resume]
        return self._measured(name, command, folder)

    def _measured(self, name: str, command: list[str], folder: Path) -> dict[str, Any]:
        if name not in self.results:
            started = time.time()
            subprocess.run(command, check=True, cwd=ROOT)
            metrics = json.loads((folder / "metrics.json").read_text())
            report = {key: value for key, value in metrics.items() if key not in OF_ITS_MACHINE}
            self.keep(name, report | {"wall_seconds": time.time() - started})
        return self.results[name]

    def keep(self, name: str, value: Any) -> None:
        """Store a result and write the file, with what other processes stored in the meantime."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stored = json.loads(self.file.read_text()) if self.file.exists() else {}
            self.results = stored | {name: value}
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.results, indent=1) + "\n")
            temporary.replace(self.file)
