"""The types reach whoever uses the package: checked with mypy on a user's few lines, against ``cim`` as installed."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed: pip install -r requirements.txt")

ROOT = Path(__file__).resolve().parent.parent
USER = """\
import cim

model = cim.load_model("runs/mine")
found = model.predict("photo.jpg", tags=["cat"])
reveal_type(found.masks)
reveal_type(found.labels)
reveal_type(cim.RegionSet.from_masks(found.masks).size)
"""
MISTAKES = """\
import cim

cim.lode_model("runs/mine")
cim.load_model(3)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment that finds ``cim`` where installed packages lie: only there must a package say it is typed."""
    folder = tmp_path_factory.mktemp("user") / "env"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "paths.pth").write_text("\n".join([str(ROOT), *libraries, ""]), encoding="utf-8")
    return folder / "bin" / "python"


def checked(source: str, python: Path, folder: Path) -> list[str]:
    """What mypy says about a user's module, line by line."""
    (folder / "user.py").write_text(source, encoding="utf-8")
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(  # with the settings of scripts/test.sh, whose cache holds the libraries: 1 s instead of 30
        [sys.executable, "-m", "mypy", *config, "--python-executable", str(python), "user.py"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "MYPYPATH"},
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_types_reach_the_user(python, tmp_path):
    masks, labels, size, verdict = checked(USER, python, tmp_path)
    assert 'Revealed type is "numpy.ndarray[' in masks
    assert 'Revealed type is "list[str]"' in labels.replace("builtins.", "")
    assert 'Revealed type is "tuple[int, int]"' in size.replace("builtins.", "")
    assert verdict.startswith("Success")


def test_a_users_mistakes_are_told(python, tmp_path):
    name, argument, _ = checked(MISTAKES, python, tmp_path)
    assert "user.py:3: error: Module has no attribute" in name and "load_model" in name
    assert 'user.py:4: error: Argument 1 to "load_model" has incompatible type "int"' in argument
