"""The house: rooms import only rooms before them, stay small, and the root holds only what a user imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CIM = Path(__file__).resolve().parent.parent / "cim"
ROOMS = [
    *("core", "datasets", "storage", "models", "proposals", "mining", "engine", "evaluation", "config"),
    *("pictures", "prm", "training", "inference", "labels", "mask_rcnn", "prediction", "report", "review", "cli"),
]
MODULES = sorted(path for path in CIM.rglob("*.py") if path.parent != CIM)


def rooms_imported(source: str) -> set[str]:
    """Rooms that a module imports from, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("cim.")}


def too_high(room: str, source: str) -> set[str]:
    """Rooms that a module of ``room`` must not import."""
    return rooms_imported(source) - {*ROOMS[: ROOMS.index(room) + 1], "__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(CIM).as_posix())
def test_a_room_imports_only_rooms_before_it(path):
    assert too_high(path.relative_to(CIM).parts[0], path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("core", "from cim.storage.store import Store", {"storage"}),
        ("prm", "def f():\n    import cim.training.samples", {"training"}),
        ("prm", "from cim import training", {"training"}),
        ("training", "from cim.training import samples\nfrom cim.prm.peaks import x", set()),
    ],
)
def test_the_check_above_would_notice(room, source, found):
    assert too_high(room, source) == found


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_flows_and_what_it_may_import(room):
    says = ast.get_docstring(ast.parse((CIM / room / "__init__.py").read_text(encoding="utf-8")))
    assert "In" in says and "Out: " in says
    before = ROOMS[: ROOMS.index(room)]
    wanted = "no other room" if not before else "core" if len(before) == 1 else f"the rooms from core to {before[-1]}"
    assert says.endswith(f"May import: {wanted}.")


def test_every_folder_is_a_room_of_the_list():
    assert {path.name for path in CIM.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)


def test_rooms_stay_small_and_the_root_holds_only_what_users_import():
    assert {path.name for path in CIM.glob("*.py")} == {"__init__.py", "__main__.py"}
    for folder in {path.parent for path in MODULES}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12, folder.name
