"""Too little memory is told in one line that names the command and what to lower; other errors stay what they are."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_run import draw

from cim.cli.common import _LESS_MEMORY, run
from cim.cli.main import PACKAGES
from cim.config.schema import Config
from cim.core.errors import StorageError, cannot_write
from cim.engine.read_ahead import read_ahead

LIMITED = """
import re, resource, sys
import cim.proposals.stage, torch
held = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[1]), held + int(sys.argv[1])))
from cim.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


class Greedy(torch.utils.data.Dataset):
    """Wants more memory than there is, in a loader worker."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.empty(2**50)


def cuda_out_of_memory() -> None:
    """As PyTorch raises it on a card."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ...")


def fork() -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


SHORT = {
    "NumPy": (lambda: np.empty(2**60, np.uint8), "Unable to allocate"),
    "PyTorch": (lambda: torch.empty(2**50), "can't allocate memory|not enough memory"),
    "a loader worker": (lambda: list(read_ahead(Greedy(), 1, 1)), "can't allocate memory|not enough memory"),
    "CUDA": (cuda_out_of_memory, "CUDA out of memory"),
    "fork": (fork, "Cannot allocate memory"),
    "Python": (lambda: bytearray(2**62), "MemoryError"),
}


@pytest.mark.parametrize("who", SHORT)
def test_too_little_memory_is_one_line(who: str, capsys):
    ask, words = SHORT[who]
    assert run(ask, "train") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory for cim train; found ") and re.search(words, line)
    assert "train.sides" in line and "the same command continues" in line and len(line) < 500


def test_opencv_without_memory_is_one_line(capsys):
    error = cv2.error("(-4:Insufficient memory) Failed to allocate 3 bytes")
    error.code = cv2.Error.StsNoMem

    def ask() -> None:
        raise error

    assert run(ask, "proposals") == 2
    assert "not enough memory for cim proposals" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), cv2.error("(-215:Assertion failed)"), KeyError("a")])
def test_other_errors_are_not_taken_for_it(error: Exception):
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        run(fail, "train")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc: what a process holds cannot be read")
def test_a_command_under_a_limit_of_memory(tmp_path: Path):
    """Of its address space (ulimit -v), 20 MB beyond what the libraries take."""
    draw(tmp_path, 2)
    command = ["proposals", "--images", str(tmp_path / "photos"), "--no-deep-features", "--output", str(tmp_path / "a")]
    words = [sys.executable, "-c", LIMITED, str(2 * 10**7), *command, "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "error: not enough memory for cim proposals; found " in done.stderr, done.stderr


def test_what_to_lower_is_there_to_be_lowered():
    fields = {name: set(section.model_fields) for name, section in _sections().items()}
    for command, text in _LESS_MEMORY.items():
        assert command in PACKAGES
        for section, key in re.findall(r"\b([a-z]+)\.([a-z_]+)\b", text):
            assert key in fields[section], text


def _sections() -> dict:
    return {
        name: type(getattr(Config(), name))
        for name, f in Config.model_fields.items()
        if hasattr(f.annotation, "model_fields")
    }


def test_a_disk_that_went_past_all_writers_is_one_line(capsys):
    def fail() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/disk/file")

    assert run(fail, "report") == 2
    assert capsys.readouterr().err.startswith("error: cannot write: /disk/file; found Read-only file system; to fix: ")


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, True), (errno.EACCES, True), (errno.ENAMETOOLONG, False)])
def test_only_what_holds_for_all_files_ends_a_stage(number: int, kind: bool, tmp_path: Path):
    error = cannot_write(tmp_path / "a" / "b", OSError(number, os.strerror(number)))
    assert isinstance(error, StorageError) == kind
    assert (f"MB free in {tmp_path})" in str(error)) == (number == errno.ENOSPC)
