"""A slice of the fuzz campaign: the same cases every time, and no failure among them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
READERS = 18


def test_damaged_files_are_read_or_refused_by_every_reader():
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_readers.py"), "--cases", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = re.findall(r"^(\S+): 20 files, (\d+) refused, (\d+) read, 0 failures", done.stdout, re.MULTILINE)
    assert len(rows) == READERS
    assert all(int(refused) >= 3 for _, refused, _ in rows) and sum(int(read) for _, _, read in rows) > 10
