"""The wheel is whole: built, installed into an environment of its own, and put to work outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    *("prm.epochs=1", "train.updates=2", "train.step=[]", "train.warmup_updates=0", "proposals.max_proposals=20"),
    *("prm.workers=0", "train.workers=0", "device=cpu"),
]


@pytest.fixture(scope="module")
def cim(tmp_path_factory) -> Path:
    """The command ``cim`` of an environment that has the wheel and, by a path, this one's libraries."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True, capture_output=True, cwd=folder)
    (wheel,) = folder.glob("cim-*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(place, "libraries.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True, cwd=folder)
    return folder / "env" / "bin" / "cim"


def run(cim: Path, *words: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([cim, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_what_is_installed_is_the_wheel_and_finds_its_configs(cim, tmp_path):
    python = [cim.with_name("python"), "-c"]
    code = "import cim, cim.config.loading as l; print(cim.__file__); print(l.load_config('resnet50_voc').name)"
    done = subprocess.run([*python, code], cwd=tmp_path, capture_output=True, text=True, check=True)
    file, name = done.stdout.split()
    assert Path(file).is_relative_to(cim.parent.parent) and name == "resnet50_voc"
    assert (Path(file).parent / "py.typed").is_file()
    page = Path(file).parent / "review" / "page"
    assert sorted(path.name for path in page.iterdir()) == ["index.html", "review.css", "review.js"]
    assert sorted(path.name for path in (Path(file).parent / "configs").rglob("*.yaml")) == sorted(
        path.name for path in (ROOT / "configs").rglob("*.yaml")
    )


def test_the_demo_runs_in_an_empty_folder(cim, tmp_path):
    told = run(cim, "demo", "--output", "demo", "--train", "8", "--val", "3", "--set", *TINY, folder=tmp_path)
    assert "| CIM " in told
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
