"""Options and fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # as training does: the cores belong to the native kernels, and to the other test process


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where the CUDA kernels run: emulated or real"
    )
    parser.addoption(
        "--all-architectures", action="store_true", help="compile the CUDA kernels for every architecture, not for two"
    )


@pytest.fixture(scope="session")
def device(request):
    """The device of --device; CUDA kernels are emulated on the CPU by default."""
    chosen = request.config.getoption("--device")
    if chosen == "cuda" and not torch.cuda.is_available():
        pytest.skip("--device cuda was asked for, but torch sees no CUDA device")
    return torch.device(chosen)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the real scenes: SCENE_DISTILL_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("SCENE_DISTILL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scenes: {folder} is missing; set SCENE_DISTILL_DATA")
    return folder
