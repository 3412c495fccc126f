"""Data flows one way: a room imports only from rooms to its left and from core."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "scene_distill"
RANKS = {
    "core": 0, "data": 1, "blocks": 2, "representations": 3, "nets": 3, "renderers": 4, "objectives": 5, "priors": 5,
    "training": 6, "methods": 7, "export": 8, "viewer": 8, "plugins": 8, "cli": 9,
}  # fmt: skip
ALLOWED_SIDEWAYS = {
    ("nets", "representations"),
    ("objectives", "priors"),
    ("cli", "export"),
    ("cli", "plugins"),
    ("plugins", "export"),
}


def imports_of(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "scene_distill" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms & set(RANKS)


@pytest.mark.parametrize("room", sorted(RANKS))
def test_room_imports_only_from_its_left(room: str) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).exists() else []:
        for other in imports_of(path) - {room, "core"}:
            allowed = RANKS[other] < RANKS[room] or (room, other) in ALLOWED_SIDEWAYS
            assert allowed, f"{path.relative_to(PACKAGE)} imports {other}, which is not to the left of {room}"


def test_type_checking_imports_do_not_hide_a_cycle() -> None:
    """Every room can be walked in rank order, so no room needs one to its right even for types."""
    edges = {(room, other) for room in RANKS for p in (PACKAGE / room).rglob("*.py") for other in imports_of(p)}
    assert not {(a, b) for a, b in edges if (b, a) in edges and a != b}
