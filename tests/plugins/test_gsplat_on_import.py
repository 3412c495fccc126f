"""SCENE_DISTILL_GSPLAT=1 in front of any program: a script of gsplat's users trains on the CPU, and only with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gsplat")

ROOT = Path(__file__).parents[2]
PTH = ROOT / "scene_distill" / "plugins" / "scene_distill_gsplat.pth"
START = "import runpy, site, sys; site.addsitedir(sys.argv[1]); runpy.run_path(sys.argv[2], run_name='__main__')"
"""What Python does with a folder of packages when it starts, then the script."""

TRAIN = """
import torch
from gsplat import DefaultStrategy, rasterization

torch.manual_seed(0)
W, H, N = 64, 48, 300
y, x = torch.meshgrid(torch.linspace(0, 1, H), torch.linspace(0, 1, W), indexing="ij")
target = torch.stack([x, y, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1).float()], dim=-1)
sh = torch.zeros(N, 16, 3)
sh[:, 0] = torch.rand(N, 3) - 0.5
params = torch.nn.ParameterDict({
    "means": torch.rand(N, 3) * torch.tensor([4.0, 3.0, 1.0]) + torch.tensor([-2.0, -1.5, 3.0]),
    "scales": torch.full((N, 3), -2.0), "quats": torch.randn(N, 4), "opacities": torch.zeros(N),
    "sh0": sh[:, :1].clone(), "shN": sh[:, 1:].clone(),
})
rates = {"means": 1e-2, "scales": 1e-2, "quats": 1e-2, "opacities": 5e-2, "sh0": 3e-2, "shN": 1e-3}
optimizers = {name: torch.optim.Adam([value], lr=rates[name]) for name, value in params.items()}
strategy = DefaultStrategy(refine_start_iter=10, refine_every=20, refine_stop_iter=50, grow_grad2d=1e-6, verbose=False)
strategy.check_sanity(params, optimizers)
state = strategy.initialize_state(scene_scale=1.0)
viewmats, Ks = torch.eye(4)[None], torch.tensor([[[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]])
for step in range(70):
    images, alphas, info = rasterization(
        params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(),
        torch.cat([params["sh0"], params["shN"]], 1), viewmats, Ks, W, H, sh_degree=min(step // 20, 3), packed=step % 2,
    )
    strategy.step_pre_backward(params, optimizers, state, step, info)
    loss = (images[0] - target).square().mean()
    if step in (0, 69):
        print(f"PSNR {-10 * loss.log10().item():.2f} with {len(params['means'])} Gaussians")
    loss.backward()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()
    strategy.step_post_backward(params, optimizers, state, step, info, packed=step % 2)
"""

LOOK = """
import sys
import gsplat
import gsplat.rendering as rendering
print(type(gsplat.rasterization).__name__, rendering.rasterization is gsplat.rasterization,
      type(gsplat.__spec__.loader).__name__, any(name.split(".")[0] == "scene_distill" for name in sys.modules))
"""


def start(tmp_path: Path, value: str | None, script: str, *before: str) -> subprocess.CompletedProcess:
    """The script in a new Python that has found our .pth file, with SCENE_DISTILL_GSPLAT set to ``value``."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / PTH.name).write_bytes(PTH.read_bytes())
    (tmp_path / "script.py").write_text(script)
    kept = {name: text for name, text in os.environ.items() if name not in ("SCENE_DISTILL_GSPLAT", "CUDA_HOME")}
    kept |= {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", "PATH": str(tmp_path)}  # no nvcc to build with
    kept |= {} if value is None else {"SCENE_DISTILL_GSPLAT": value}
    return subprocess.run(
        [sys.executable, *before, "-c", START, str(site), str(tmp_path / "script.py")], cwd=tmp_path, env=kept,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_a_training_script_runs_on_the_cpu_with_the_variable(tmp_path: Path) -> None:
    done = start(tmp_path, "1", TRAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("PSNR")]
    assert float(rows[1][1]) > float(rows[0][1]) + 6
    assert int(rows[1][3]) > int(rows[0][3]), "DefaultStrategy grew the splats"


@pytest.mark.parametrize("value", [None, "0"])
def test_without_it_the_script_fails_in_gsplat_s_own_way(tmp_path: Path, value: str | None) -> None:
    done = start(tmp_path, value, TRAIN)
    assert done.returncode != 0 and "PSNR" not in done.stdout
    assert "gsplat/cuda/_wrapper.py" in done.stderr and "scene_distill" not in done.stderr


def test_names_are_replaced_on_import_and_gsplat_keeps_its_loader(tmp_path: Path) -> None:
    assert start(tmp_path, "1", LOOK).stdout.split() == ["StandIn", "True", "SourceFileLoader", "True"]
    assert start(tmp_path, None, LOOK).stdout.split() == ["function", "True", "SourceFileLoader", "False"]


def test_nothing_of_ours_and_no_torch_is_imported_at_start(tmp_path: Path) -> None:
    script = "import sys; print([name for name in sys.modules if name.partition('.')[0] in ('scene_distill', 'torch')])"
    assert start(tmp_path, None, script).stdout.strip() == "[]"
    assert "torch" not in start(tmp_path, "1", script).stdout


def test_a_missing_gsplat_and_an_old_one_leave_the_program_alone(tmp_path: Path) -> None:
    missing = "import sys\nsys.path = [p for p in sys.path if 'site-packages' not in p]\ntry:\n    import gsplat\n"
    missing += "except ModuleNotFoundError as error:\n    print(error)\n"
    done = start(tmp_path, "1", missing)
    assert done.stdout.strip() == "No module named 'gsplat'" and done.returncode == 0
    (tmp_path / "gsplat.py").write_text("__version__ = 'unreadable'\nimport json as rendering\n")
    old = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport gsplat\nprint(gsplat.__version__)\n"
    done = start(tmp_path, "1", old)
    assert done.stdout.strip() == "unreadable" and done.returncode == 0
