"""kill -9 of random workers at random moments, then --resume on another number of workers, until the run is done: the
weights must equal an undisturbed run's, byte for byte, and no worker may hang.

    python benchmarks/kills.py [--setting tiny|city] [--kills 50]

tiny: the method of tests/blocks/tiny_method.py, seconds a run; city: Momentum-GS on a small procedural city. Figures go
to benchmarks/results/kills_<setting>.json after every run, and a campaign that was stopped continues there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from campaign import ROOT, Campaign

UNITS, LANES, MOST_WORKERS = 5, 3, 4
END_S = 120.0
"""A run of which a worker was killed must end within this time, or it hangs."""


@dataclass(frozen=True)
class Setting:
    """How a run is started, where its checkpoint is, and what of it is compared."""

    name: str
    place: Path

    def command(self, folder: Path, workers: int) -> list[str]:
        if self.name == "tiny":
            return [sys.executable, str(ROOT / "tests" / "blocks" / "tiny_method.py"), str(folder),
                    "--settings", f"{UNITS}x{LANES}", "--iterations", "60", "--visits", "6", "--step-ms", "5",
                    "--workers", str(workers)]  # fmt: skip
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        return [sys.executable, "-m", "scene_distill", "train", "momentum-gs", "--data", str(self.place / "city"),
                "--output-dir", str(folder), "--blocks", str(UNITS), "--lanes", str(LANES), "--iterations", "60",
                "--image-width", "160", "--workers", str(workers), *resume]  # fmt: skip

    def checkpoint(self, folder: Path) -> Path:
        return folder / (f"{UNITS}x{LANES}" if self.name == "tiny" else "checkpoint")

    def digest(self, folder: Path) -> str:
        """All bytes of the last two commits' states."""
        total = hashlib.sha256()
        for path in sorted((self.checkpoint(folder) / "units").iterdir()):
            total.update(path.name.encode() + path.read_bytes())
        return total.hexdigest()

    def committed_rounds(self, folder: Path) -> int:
        path = self.checkpoint(folder) / "checkpoint.json"
        return json.loads(path.read_text())["next_round"] if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--setting", choices=("tiny", "city"), default="tiny")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "kills")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    setting = Setting(options.setting, options.place / options.setting)
    if options.setting == "city":
        from scene_distill.data.procedural_city import load_recipe, make_city

        make_city(load_recipe("city_test"), setting.place / "city")
    campaign = Campaign(options.results / f"kills_{options.setting}.json")
    expected = setting.digest(undisturbed(setting))
    done, runs = campaign.results.get("kills", 0), campaign.results.get("equal_runs", 0)
    while done < options.kills:
        draw = random.Random(f"{options.setting} {runs}")
        folder = setting.place / f"killed-{runs}"
        shutil.rmtree(folder, ignore_errors=True)
        killed = torment(setting, folder, draw, options.kills - done)
        if setting.digest(folder) != expected:
            sys.exit(f"{folder} differs from {setting.place / 'whole'}")
        shutil.rmtree(folder)
        done, runs = done + sum(killed.values()), runs + 1
        by_rank = campaign.results.get("kills_by_rank", {})
        campaign.keep("kills_by_rank", {r: by_rank.get(r, 0) + killed.get(r, 0) for r in sorted({*by_rank, *killed})})
        campaign.keep("kills", done)
        campaign.keep("equal_runs", runs)
        print(f"{done} kills in {runs} runs, all equal to the undisturbed run", flush=True)


def undisturbed(setting: Setting) -> Path:
    """The folder of a run on one worker that nobody disturbs."""
    folder = setting.place / "whole"
    if not (setting.place / "whole.done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(setting.command(folder, 1), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        (setting.place / "whole.done").touch()
    return folder


def torment(setting: Setting, folder: Path, draw: random.Random, most: int) -> dict[str, int]:
    """Run to the end, killing a random worker now and then, at most ``most``; kills by the worker's rank."""
    killed: dict[str, int] = {}
    while True:
        workers = draw.randint(1, MOST_WORKERS)
        target = setting.committed_rounds(folder) + draw.randint(0, 3)
        process = subprocess.Popen(
            setting.command(folder, workers), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if sum(killed.values()) < most:
            while process.poll() is None and setting.committed_rounds(folder) < target:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.4))
        rank = draw.randrange(workers)
        victim = [process.pid, *children(process.pid)][rank:][:1]
        if sum(killed.values()) < most and victim and process.poll() is None:
            os.kill(victim[0], signal.SIGKILL)
            killed[str(rank)] = killed.get(str(rank), 0) + 1
        family = [process.pid, *children(process.pid)]
        told = ended(process, family)
        if process.returncode == 0:
            return killed
        if process.returncode != -signal.SIGKILL and not ("error:" in told and "Traceback" not in told):
            sys.exit(f"a run ended without its sentence: {told[-2000:]}")


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are alive, oldest first."""
    try:
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def ended(process: subprocess.Popen, family: list[int]) -> str:
    """What a run had to say on standard error; exits when one of its processes hangs."""
    try:
        _, told = process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        sys.exit(f"worker 0 hangs (process {process.pid})")
    until = time.monotonic() + END_S
    while any(alive(pid) for pid in family):
        if time.monotonic() > until:
            sys.exit(f"a worker hangs ({[pid for pid in family if alive(pid)]})")
        time.sleep(0.02)
    return told


def alive(pid: int) -> bool:
    """Whether a process still runs (the dead whom nobody has waited for do not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    main()
