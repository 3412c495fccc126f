"""The viewer imports only rooms to its left, knows no method, and its client nothing but its own port."""

import ast
import re
from pathlib import Path

VIEWER = Path(__file__).parents[2] / "viewer"
LEFT = {
    "core", "data", "blocks", "representations", "nets", "renderers", "objectives", "priors", "training", "methods",
    "export", "viewer",
}  # fmt: skip


def test_the_viewer_imports_only_from_its_left_and_names_no_method():
    for path in VIEWER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for parts in (name.split(".") for name in names if name.startswith("scene_distill.")):
                assert parts[1] in LEFT, f"{path.name} imports {'.'.join(parts)}"
                assert parts[1] != "methods" or len(parts) == 2, f"{path.name} imports a method: {'.'.join(parts)}"


def test_every_file_of_the_client_is_reached_and_imports_what_is_there():
    client = VIEWER / "client"
    shared = VIEWER.parent / "scene_distill" / "export" / "web"
    modules = {path.name for path in client.glob("*.js")} | {"splats.js"}
    reached, waiting = set(), {"main.js"}
    while waiting:
        name = waiting.pop()
        reached.add(name)
        text = ((shared if name == "splats.js" else client) / name).read_text()
        found = set(re.findall(r'from "\./([^"]+)"', text))
        assert found <= modules
        waiting |= found - reached
    assert reached == modules
    assert set(re.findall(r"/client/([\w.]+)", (client / "index.html").read_text())) == {
        "icon.svg",
        "style.css",
        "main.js",
    }
