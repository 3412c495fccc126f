"""A scene of nine noisy photos in a transforms.json, far from the origin, for the border with nerfstudio."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scene_distill.core.cameras import look_at

SIZE = (48, 36)
FAR = np.array([450_000.0, 5_000_000.0, 80.0])


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("scene") / "small.town", np.random.default_rng(2)
    (folder / "images").mkdir(parents=True)
    frames = []
    for index, angle in enumerate(np.linspace(0, 2 * np.pi, 9, endpoint=False)):
        name = f"images/photo_{index}.png"
        Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3)).astype(np.uint8)).save(folder / name)
        center = FAR + np.array([6 * np.cos(angle), 6 * np.sin(angle), 4])
        pose = np.linalg.inv(look_at(center, FAR, np.array([0.0, 0.0, 1.0]))) @ np.diag([1, -1, -1, 1])
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    points = FAR + rng.uniform(-1, 1, (200, 3))
    rows = [f"{x:.6f} {y:.6f} {z:.6f} 200 100 50" for x, y, z in points]
    header = "ply\nformat ascii 1.0\nelement vertex 200\nproperty double x\nproperty double y\nproperty double z\n"
    header += "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n"
    (folder / "points.ply").write_text(header + "\n".join(rows) + "\n")
    lens = {"w": SIZE[0], "h": SIZE[1], "fl_x": 40.0, "fl_y": 41.0, "cx": 23.0, "cy": 18.5, "camera_model": "PINHOLE"}
    content = lens | {"frames": frames, "ply_file_path": "points.ply"}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder
