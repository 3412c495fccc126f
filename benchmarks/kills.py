"""kill -9 at random moments, then --resume, until the run is done: the weights must equal an undisturbed run's,
byte for byte.

    python benchmarks/kills.py [--kills 50]

A small procedural city; figures go to benchmarks/results/kills.json after every kill.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from campaign import ROOT, Campaign

from scene_distill.data.procedural_city import load_recipe, make_city

FLAGS = ["--blocks", "4", "--lanes", "2", "--iterations", "60", "--image-width", "160"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    city = make_city(load_recipe("city_test"), ROOT / "outputs" / "kills" / "city")
    campaign = Campaign(ROOT / "benchmarks" / "results" / "kills.json")
    whole = ROOT / "outputs" / "kills" / "whole"
    seconds = finish(city, whole)
    done, equal = campaign.results.get("kills", 0), campaign.results.get("equal_runs", 0)
    draw = random.Random(done)
    while done < options.kills:
        folder = ROOT / "outputs" / "kills" / f"killed-{done}"
        for _ in range(5):
            done += kill_after(city, folder, draw.uniform(0.3, 1.1) * seconds)
        finish(city, folder)
        same = digest(folder) == digest(whole)
        equal += same
        campaign.keep("kills", done)
        campaign.keep("equal_runs", equal)
        print(f"{done} kills so far; weights equal the undisturbed run's: {same}")
        if not same:
            sys.exit(f"{folder} differs from {whole}")


def command(city: Path, folder: Path) -> list[str]:
    resume = ["--resume"] if (folder / "config.yaml").exists() else []
    return [sys.executable, "-m", "scene_distill", "train", "momentum-gs", "--data", str(city),
            "--output-dir", str(folder), *FLAGS, *resume]  # fmt: skip


def finish(city: Path, folder: Path) -> float:
    started = time.time()
    subprocess.run(command(city, folder), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.time() - started


def kill_after(city: Path, folder: Path, seconds: float) -> int:
    """1 when the process was killed, 0 when it had already ended."""
    process = subprocess.Popen(command(city, folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return int(process.wait() == -signal.SIGKILL)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
