"""Loader workers where shared memory is short or missing: the same run, with workers or without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resume import same
from toys import toy_fit

from cim.engine.read_ahead import read_ahead

HERE = Path(__file__).parent
APART = ["unshare", "--map-root-user", "--mount"]
SHARED = {  # of /dev/shm, and what is said of it
    "as docker gives it": ("-o size=64m", "loader workers hand photos over in pipes"),
    "64 kB": ("-o size=64k", "loader workers hand photos over in pipes"),
    "full": ("-o size=4k", "/dev/shm cannot be used (No space left on device): photos are read without worker"),
    "read-only": ("-o ro", "/dev/shm cannot be used (Read-only file system): photos are read without worker"),
}
"""Options of a disk in memory that is mounted there."""


@pytest.mark.parametrize("shared", SHARED)
def test_training_goes_on_with_little_shared_memory(tmp_path: Path, shared: str):
    if not shutil.which("unshare") or subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here (unshare --mount)")
    options, said = SHARED[shared]
    fill = "cat /dev/zero > /dev/shm/filler;" if shared == "full" else ""
    toys = f'{sys.executable} -c "import logging, runpy, sys; logging.basicConfig(level=20); '
    toys += f"sys.argv[:] = ['toys', '{tmp_path / 'run'}', '0', '2']; "
    toys += f"runpy.run_path('{HERE / 'toys.py'}', run_name='__main__')\""
    script = f"mount -t tmpfs {options} tmpfs /dev/shm; {fill} {toys}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    done = subprocess.run([*APART, "sh", "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and said in done.stderr, done.stderr[-3000:]
    assert same(tmp_path / "run" / "final.pth", toy_fit(tmp_path / "other"))


def test_items_come_alike_through_pipes(monkeypatch):
    items = [torch.arange(3.0), {"a": torch.ones(2, dtype=torch.uint8), "b": None}, "text"]
    monkeypatch.setattr("cim.engine.read_ahead._SHARED_MB", 10**9)
    first, second, third = read_ahead(items, 1, 2)
    assert torch.equal(first, items[0]) and torch.equal(second["a"], items[1]["a"])
    assert second["b"] is None and third == "text"
