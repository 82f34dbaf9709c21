"""Nothing half-written remains, and nothing existing is lost."""

from __future__ import annotations

import json
import resource
import stat
from pathlib import Path

import numpy as np
import pytest

from cim.core.errors import CimError
from cim.core.files import append, atomic, read_json, write_json, write_npz, write_text


def test_written_in_new_folders(tmp_path):
    path = tmp_path / "a" / "b" / "x.json"
    write_json(path, {"n": np.int64(3), "m": np.arange(2), "p": Path("q"), "t": "é"})
    assert read_json(path) == {"n": 3, "m": [0, 1], "p": "q", "t": "é"}
    write_text(path.with_suffix(".txt"), "ü\n")
    assert path.with_suffix(".txt").read_text(encoding="utf-8") == "ü\n"
    write_npz(path.with_suffix(".npz"), a=np.eye(2))
    np.testing.assert_array_equal(np.load(path.with_suffix(".npz"))["a"], np.eye(2))
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.json", "x.npz", "x.txt"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044  # readable for others, unlike mkstemp's files


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_stopped_writer_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(error), atomic(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_value_that_json_cannot_hold(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError, match="object does not fit"):
        write_json(tmp_path / "x.json", [1, object()])
    assert read_json(tmp_path / "x.json") == 1 and len(list(tmp_path.iterdir())) == 1


def test_append_is_whole_or_not_at_all(tmp_path):
    """A limit on the size of files plays the full disk."""
    path = tmp_path / "log"
    append(path, b"one\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))
    try:
        with pytest.raises(OSError, match=r"No space left|too large"):
            append(path, b"two\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"one\n"
    append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_full_disk(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(CimError, match=r"cannot write.*No space left.*free space"), atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(CimError, match="cannot write"):
        write_text(tmp_path / "f" / "x.txt", "new")
    assert (tmp_path / "f").read_text() == "x"


def test_reading_json(tmp_path):
    with pytest.raises(CimError, match=r"missing file: .*x\.json; to fix: make it"):
        read_json(tmp_path / "x.json", fix="make it")
    for content in (b"{", b"", b"\xff\xfe", json.dumps([1])[:-1].encode()):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(CimError, match="not a json file") as caught:
            read_json(tmp_path / "x.json")
        assert "\n" not in str(caught.value)
    with pytest.raises(CimError, match="cannot read"):
        read_json(tmp_path)
