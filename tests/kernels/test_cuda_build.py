"""nvcc compiles every kernel for every architecture; the hot kernels keep to their registers and never spill."""

import ctypes
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from cuda_emulator import HEADERS, ROOT

from scene_distill import renderers
from scene_distill.core.errors import UserError
from scene_distill.renderers import cuda, cuda_structures, ops

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TWO_ARCHITECTURES = (80, 90)
"""Compiled by the test itself; the others are in the installed library, or compiled with --all-architectures."""

# Registers a thread, and bytes of shared memory a block: what leaves the occupancy that docs/cuda.md counts on.
BUDGETS = {
    "project_kernel": (64, 0), "project_backward_kernel": (96, 128), "fill_pairs_kernel": (64, 0),
    "raster_kernel": (80, 20 << 10), "checkpoint_kernel": (80, 20 << 10), "splat_gradients_kernel": (168, 33 << 10),
    "l1_ssim_kernel": (48, 14 << 10), "ssim_gradient_kernel": (48, 13 << 10), "adam_kernel": (32, 0),
    "decode_kernel": (96, 37 << 10), "decode_backward_kernel": (255, 44 << 10), "consistency_kernel": (40, 128),
    "harmonics_kernel": (64, 13 << 10), "harmonics_backward_kernel": (96, 13 << 10), "clip_pixels_kernel": (40, 0),
    "contributions_kernel": (40, 4 << 10), "median_kernel": (48, 4 << 10), "absolute_gradients_kernel": (40, 4 << 10),
    "weight_sums_kernel": (16, 0),
}  # fmt: skip


def needs_nvcc():
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not on PATH")


@pytest.fixture(scope="module")
def architectures(request):
    return ARCHITECTURES if request.config.getoption("--all-architectures") else TWO_ARCHITECTURES


@pytest.fixture(scope="module")
def built(architectures):
    """Folder of a build of the current sources with its log; built once, in build/, and reused."""
    needs_nvcc()
    sources = sorted([*(ROOT / "cuda/gpu").glob("*.cu"), *HEADERS, ROOT / "cuda/gpu/CMakeLists.txt"])
    digest = hashlib.sha256(repr(architectures).encode() + b"".join(path.read_bytes() for path in sources))
    folder = ROOT / "build" / f"cuda-{digest.hexdigest()[:16]}"
    if not (folder / "kernels.log").exists():
        for old in (ROOT / "build").glob("cuda-*"):
            shutil.rmtree(old)
        cmake = shutil.which("cmake") or pytest.skip("cmake is not on PATH")
        chosen = f"-DSD_CUDA_ARCHITECTURES={';'.join(map(str, architectures))}"
        configure = [cmake, "-S", ROOT, "-B", folder, "-DSKBUILD=ON", "-DSD_CUDA_REPORT=ON", chosen]
        subprocess.run(configure, check=True, capture_output=True, timeout=60)
        command = [cmake, "--build", folder, "--target", "scene_distill_cuda", "--parallel", "2"]
        log = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280)
        (folder / "kernels.log").write_text(log.stdout + log.stderr)
    return folder


@pytest.fixture(scope="module")
def resources(built):
    """(kernel, architecture) -> list of (registers, shared, spilled and stack bytes), one entry a template instance."""
    found, key = defaultdict(list), None
    stack = spills = 0
    for line in (built / "kernels.log").read_text().splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", line):
            name = re.search(r"\d+(\w+?_kernel)", entry[1].replace("_GLOBAL__N__", ""))
            key = (name[1] if name else entry[1], int(entry[2]))
        elif memory := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(memory[1]), int(memory[2]) + int(memory[3])
        elif (used := re.search(r"Used (\d+) registers", line)) and key:
            shared = re.search(r"(\d+) bytes smem", line)
            found[key].append((int(used[1]), int(shared[1]) if shared else 0, spills, stack))
    return found


def test_every_kernel_for_every_architecture(resources, architectures):
    for kernel in BUDGETS:
        assert {arch for name, arch in resources if name.endswith(kernel)} == set(architectures), kernel


@pytest.mark.parametrize("kernel", BUDGETS)
def test_registers_shared_memory_and_spills(resources, kernel):
    most_registers, most_shared = BUDGETS[kernel]
    for (name, architecture), instances in resources.items():
        if not name.endswith(kernel):
            continue
        for registers, shared, spills, stack in instances:
            assert (spills, stack) == (0, 0), f"{name} on sm_{architecture} keeps {stack} bytes in local memory"
            assert registers <= most_registers, f"{name} on sm_{architecture} uses {registers} registers"
            assert shared <= most_shared, f"{name} on sm_{architecture} uses {shared} bytes of shared memory"


def machine_code(library):
    """How many pieces of machine code for each architecture a library holds: the headers of its fat binaries."""
    found, magic, at = defaultdict(int), struct.pack("<I", 0xBA55ED50), -1
    while (at := library.find(magic, at + 1)) >= 0:
        header, size = struct.unpack_from("<HQ", library, at + 6)
        entry, end = at + header, at + header + size
        while entry < end <= len(library):
            kind, entry_header, payload = struct.unpack_from("<HxxIQ", library, entry)
            found[struct.unpack_from("<I", library, entry + 28)[0]] += kind == 2
            entry += entry_header + payload
    return found


def test_the_installed_library_runs_on_every_architecture():
    """The install compiles all of them, each source for each."""
    try:
        found = machine_code(cuda.library_path().read_bytes())
    except UserError as error:
        pytest.skip(str(error))
    needs_nvcc()
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True, timeout=20).stdout
    expected = [arch for arch in ARCHITECTURES if f"sm_{arch}" in known.split()]
    assert expected and len({found[arch] for arch in expected}) == 1 and found[expected[0]] >= 10


def test_library_loads_without_a_gpu(built):
    library = ctypes.CDLL(str(built / "lib/_scene_distill_cuda.so"))
    assert library.sd_cuda_decoder_size() == 7086
    assert cuda.CudaKernels(built / "lib/_scene_distill_cuda.so")


def test_launchers_are_bound_completely():
    """Every launcher that the header declares is called from Python, and the structs have the same members in order."""
    header = (ROOT / "cuda/gpu/launchers.h").read_text()
    binding = Path(cuda.__file__).read_text()
    for name in re.findall(r"sd_cuda_(\w+)\(", re.sub(r"//.*", "", header)):
        assert f'"{name}"' in binding or f"sd_cuda_{name}" in binding, name
    for name, body in re.findall(r"struct Sd(\w+) \{(.*?)\n\};", header, re.DOTALL):
        mirror = getattr(cuda_structures, {"SlotGradients": "Slots", "DecodedGradients": "Decoded"}.get(name, name))
        members = re.findall(r"[\s*](\w+)(?:\[12\])?(?=[,;])", re.sub(r"//.*", "", body))
        fields = [field for field, _ in mirror._fields_]
        assert [m.replace("eps2d_px2", "eps2d") for m in members] == fields, name


def test_every_op_has_a_cuda_kernel():
    prefix = f"{ops.LIBRARY.ns}::"
    schemas = {schema.name.removeprefix(prefix) for schema in torch._C._jit_get_all_schemas()
               if schema.name.startswith(prefix)}  # fmt: skip
    registered = {n for n in schemas if torch._C._dispatch_has_kernel_for_dispatch_key(prefix + n, "CUDA")}
    assert registered == schemas == set(cuda.OPS)


def test_registration_needs_no_gpu_and_no_library():
    """Importing the ops neither starts CUDA nor opens the compiled kernels: machines without either draw on the CPU."""
    program = """
import time, torch
start = time.perf_counter()
from scene_distill.renderers import cuda, cuda_structures, ops
assert time.perf_counter() - start < 5, "the import took longer than five seconds"
assert not torch.cuda.is_initialized() and cuda.load.cache_info().currsize == 0
assert "_scene_distill_cuda" not in open("/proc/self/maps").read()
assert torch._C._dispatch_has_kernel_for_dispatch_key("scene_distill::raster", "CUDA")
black = torch.zeros(8, 9, 3)
assert ops.l1_ssim(black, black)[0] == 0
"""
    command, environment = [sys.executable, "-c", program], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_missing_library_is_one_clear_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(renderers, "__path__", [str(tmp_path)])
    with pytest.raises(UserError, match="CUDA kernels are missing; reinstall"):
        cuda.library_path()
