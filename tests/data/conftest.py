import os
from pathlib import Path

import pytest


@pytest.fixture
def aerial_set() -> Path:
    """The shared aerial photographs: SCENE_DISTILL_DATA, else shared/data beside the repository."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SCENE_DISTILL_DATA", default)) / "aerial_sheffield"
    if not folder.is_dir():
        pytest.skip(f"needs the shared aerial set; {folder} is not there (set SCENE_DISTILL_DATA)")
    return folder
