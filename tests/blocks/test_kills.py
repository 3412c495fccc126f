"""A slice of the campaign that kills random workers at random moments (benchmarks/kills.py)."""

import json
import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_random_workers_killed_at_random_moments_change_nothing_and_nobody_hangs(tmp_path):
    places = ["--place", str(tmp_path / "place"), "--results", str(tmp_path)]
    command = [sys.executable, str(CAMPAIGN), "--kills", "2", *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "kills_tiny.json").read_text())
    assert results["kills"] == 2 and results["equal_runs"] >= 1
