"""What killed writers leave is removed, what living ones are about to finish never, and nothing else ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cim.core import leftovers
from cim.core.files import atomic, write_text
from cim.core.leftovers import SUFFIX, machine, prefix, sweep, sweep_run
from cim.core.locks import hold
from cim.datasets.drawn import make_demo
from cim.storage.store import Store


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(path: Path, pid: int, where: str = "", age: float = 0) -> Path:
    """What a writer of ``path`` leaves when it is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{os.getpid()}-{machine()}."
    name = prefix(path).replace(own, f".{pid}-{where or machine()}.")
    left = path.with_name(f"{name}abcd_012{SUFFIX}{path.suffix}")
    left.write_text("half")
    os.utime(left, (time.time() - age,) * 2)
    return left


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_killed_writer_s_file_goes_and_a_living_one_s_stays(tmp_path, dead):
    code = "import os, sys; from cim.core.files import atomic\nwith atomic(sys.argv[1]): os.kill(os.getpid(), 9)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], env=environment)
    assert len(names(tmp_path)) == 1
    leave(tmp_path / "b", dead)
    with atomic(tmp_path / "a.json") as living:
        assert sweep(tmp_path) == 2 and names(tmp_path) == {living.name}
        living.write_text("whole")
    assert names(tmp_path) == {"a.json"}


@pytest.mark.parametrize(("age", "gone"), [(0, False), (23 * 3600, False), (25 * 3600, True)])
def test_what_another_machine_writes_goes_when_it_is_a_day_old(tmp_path, dead, age, gone):
    left = leave(tmp_path / "a.npz", dead, "0123abcd", age)
    old = tmp_path / ".b.npz.abcdefgh.tmp.npz"  # as version 0.1 wrote, without a process
    old.touch()
    os.utime(old, (time.time() - age,) * 2)
    assert sweep(tmp_path) == 2 * gone and left.exists() == old.exists() == (not gone)


def test_nothing_else_goes(tmp_path, dead):
    others = [".hidden", ".x.tmp", ".x.tmp.json", "x.12-0123abcd.abcd_012.tmp", ".cim.lock", "a.npz", ".a.cim-tags.npz"]
    for name in [*others, f".x.{dead}-{machine()}.abcd_012.tmp.a.b", f".x.{dead}-{machine()}.abcd_012.old"]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    before = names(tmp_path)
    assert sweep(tmp_path) == 0 and names(tmp_path) == before
    assert sweep(tmp_path / "none") == 0


def test_whoever_begins_to_work_in_a_folder_sweeps_it(tmp_path, dead):
    places = [tmp_path / part / "x.pth" for part in ("run", "run/train/checkpoints", "run/mist/train/checkpoints")]
    left = [leave(path, dead) for path in places]
    in_store = leave(tmp_path / "run" / "regions" / "1.npz", dead)
    Store.create(tmp_path / "other", "regions", {})
    (tmp_path / "other" / "manifest.json").rename(tmp_path / "run" / "regions" / "manifest.json")
    with hold(tmp_path / "run"):
        assert not any(path.exists() for path in left) and in_store.exists()  # a store may hold a file per photo
    store = Store.create(tmp_path / "run" / "regions", "regions", {})
    assert not in_store.exists()
    store.save("1", a=np.zeros(1))
    assert names(store.root) == {"manifest.json", "1.npz"}


def test_a_folder_that_was_being_drawn_goes_whole(tmp_path, dead):
    left = tmp_path / f".set.{dead}-{machine()}.abcd_012{SUFFIX}"
    (left / "images").mkdir(parents=True)
    (left / "images" / "a.jpg").touch()
    make_demo(tmp_path / "set", train=1, val=0)
    assert names(tmp_path) == {"set"}


def test_a_symbolic_link_is_not_followed(tmp_path, dead):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f".a.{dead}-{machine()}.abcd_012.tmp").symlink_to(tmp_path / "kept")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "kept")
    leave(tmp_path / "kept" / "y", dead)
    assert sweep_run(tmp_path / "run") == 1
    assert len(names(tmp_path / "kept")) == 2 and names(tmp_path / "run") == {"link"}


def test_long_names_leave_room_for_what_is_added(tmp_path):
    for name in ("x" * 250, "ß" * 120, "雪" * 80):
        write_text(tmp_path / name, "whole")
    assert len(names(tmp_path)) == 3


def test_processes():
    assert leftovers.alive(os.getpid()) and leftovers.alive(1) and leftovers.alive(2**80)
    assert len(machine()) == 8
