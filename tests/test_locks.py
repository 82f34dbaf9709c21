"""Two commands on one folder: the second is refused and told of the first; a family shares; death releases."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_run

from cim.cli.main import main
from cim.cli.worker import run_apart
from cim.core import locks
from cim.core.errors import CimError
from cim.core.locks import LOCK, hold

HOLD = (  # a command at work in a folder; it says so, and ends once its input does
    "import sys; from cim.core.locks import hold\nwith hold(sys.argv[1]): print('in', flush=True); sys.stdin.read()"
)


def other(folder: Path, code: str = HOLD) -> subprocess.Popen[str]:
    """A process that holds the folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, **pipes)
    assert process.stdout is not None and process.stdout.readline().strip()
    return process


def test_a_second_command_is_refused_and_told_of_the_first(tmp_path):
    with other(tmp_path / "run") as first:
        with (
            pytest.raises(CimError, match="another command is at work") as caught,
            hold(tmp_path / "run"),
        ):
            pass
        told = str(caught.value)
        assert f"process {first.pid} on " in told and str(tmp_path / "run") in told and f"kill {first.pid})" in told
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", told) and "\n" not in told
        with hold(tmp_path / "other"):  # which is nobody's
            pass
        first.communicate()
    with hold(tmp_path / "run"):
        pass


def test_the_lock_goes_with_its_process_however_that_ends(tmp_path):
    with other(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / LOCK).is_file()
        began = time.monotonic()
        with hold(tmp_path):
            pass
        assert time.monotonic() - began < 5 and not (tmp_path / LOCK).exists()


def test_nothing_is_left_behind(tmp_path):
    with hold(tmp_path / "runs" / "a"):
        assert (tmp_path / "runs" / "a" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == [] and locks._FAMILY not in os.environ
    (tmp_path / "b").mkdir()
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "b"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["b"]


def work(words) -> None:
    """Stands for a stage: works in the folder of its command, which is its own to work in."""
    with hold(words[0]):
        Path(words[0], "done").touch()


def outlive(words) -> None:
    """A stage that its killed command leaves behind: it saves for two seconds."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with hold(words[0]):
        Path(words[0], "pid").write_text("x")
        time.sleep(2)
        Path(words[0], "saved").touch()


def test_stages_share_the_lock_of_their_command(tmp_path):
    with hold(tmp_path):
        assert run_apart([str(tmp_path)], work) == 0
        with hold(tmp_path):  # a command that another one calls in its own process
            pass
        assert (tmp_path / LOCK).is_file()  # neither took it away
    assert (tmp_path / "done").exists()


def test_a_stage_that_outlives_its_command_keeps_others_out_until_it_ends(tmp_path):
    code = (
        "import sys, time; from cim.core.locks import hold; from test_locks import outlive, run_apart\n"
        "if __name__ == '__main__':\n"
        "    with hold(sys.argv[1]): print('in', flush=True); run_apart(sys.argv[1:], outlive)"
    )
    with other(tmp_path, code) as first:
        while not (tmp_path / "pid").exists():
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert not (tmp_path / "saved").exists()
        with hold(tmp_path):
            assert (tmp_path / "saved").exists()


def test_of_processes_that_torchrun_started_the_first_asks_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with other(tmp_path), hold(tmp_path):
        pass
    monkeypatch.setenv("RANK", "0")
    with other(tmp_path), pytest.raises(CimError, match="another command"), hold(tmp_path):
        pass


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", fail)
    with hold(tmp_path):
        assert run_apart([str(tmp_path)], work) == 0
    assert caplog.text.count("no file locks here: No locks available") == 1 and str(tmp_path) in caplog.text


def test_where_nothing_can_be_written_there_is_nothing_to_lock(tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    with hold(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "x" and not caplog.text


def test_a_lock_file_of_somebody_else_s_making(tmp_path, monkeypatch):
    """It may say anything; held by nobody it is no obstacle, held by somebody silent it still is one."""
    for content in ("", "[]", '{"pid": "x"}', '{"pid": 1}', "\0"):
        (tmp_path / LOCK).write_text(content)
        with hold(tmp_path):
            pass
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    with other(tmp_path):
        (tmp_path / LOCK).write_text("{}")
        with pytest.raises(CimError, match="to fix: wait until it ends"), hold(tmp_path):
            pass


def commands(folder: Path) -> dict[str, list[str]]:
    """A command of every kind that writes into the run folder of ``folder``/small.yaml."""
    config, run, photos = (str(folder / name) for name in ("small.yaml", "run", "photos"))
    return {
        "run": ["run", "--images", photos, "--tags", str(folder / "truth.json"), "--output", run],
        "demo": ["demo", "--output", run],
        "proposals": ["proposals", config, "--workers", "1"],
        "import": ["import", "--config", config, "--from", "mat", "--input", photos, "--split", "val"],
        "prm": ["prm", config],
        "labels": ["labels", config],
        "train": ["train", config, "--prepare"],
        "scenes": ["scenes", config],
        "refine": ["refine", config, "--labels", str(folder / "truth.json")],
        "score": ["score", config, "--workers", "1"],
        "evaluate": ["evaluate", config],
        "export": ["export", config, "--split", "val"],
        "threshold": ["threshold", config, "--input", str(folder / "labels.json"), "--threshold", "0.1"],
        "predict": ["predict", photos, "--checkpoint", run, "--output", run],
        "average": ["average", config, "--runs", run, run, "--output", run],
    }


def scored(folder: Path) -> None:
    """A run folder with detections, and a label file beside it."""
    config = str(small_run.small_config(folder))
    assert main(["score", config, "--workers", "1"]) == 0
    export = ["export", config, "--split", "val", "--workers", "1", "--output", str(folder / "labels.json")]
    assert main(export) == 0


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_command_that_writes_into_a_run_folder_is_refused_and_readers_are_not(tmp_path, capsys):
    scored(tmp_path)
    with other(tmp_path / "run") as first:
        before = everything(tmp_path / "run")
        for name, words in commands(tmp_path).items():
            capsys.readouterr()
            assert main(words) == 2, name
            told = capsys.readouterr().err
            assert "another command is at work" in told and f"process {first.pid} " in told, (name, told)
        config = str(tmp_path / "small.yaml")
        assert everything(tmp_path / "run") == before
        for words in (
            ["check", config, "--for", "evaluation"],
            ["train", config, "--missing"],
            [*commands(tmp_path)["predict"][:-1], str(tmp_path / "elsewhere"), "--device", "cpu"],
        ):
            assert main(words) == 0, words
        assert everything(tmp_path / "run") == before


def test_pictures_may_be_painted_beside_a_run_but_not_twice_at_once(tmp_path, capsys):
    scored(tmp_path)
    words = ["visualize", str(tmp_path / "small.yaml"), "--workers", "1", "--output", str(tmp_path / "painted")]
    with other(tmp_path / "run"):
        assert main(words) == 0
    with other(tmp_path / "painted"):
        assert main([*words, "--overwrite"]) == 2
        assert "another command" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0 and not (tmp_path / "painted" / LOCK).exists()


def test_the_same_job_started_twice(tmp_path, capsys):
    command = ["demo", "--output", str(tmp_path / "demo"), "--train", "8", "--val", "3"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen([sys.executable, "-m", "cim", *command], cwd=Path(__file__).parent.parent, **quiet)
    try:
        while not (tmp_path / "demo" / "stages.json").exists():
            assert first.poll() is None
            time.sleep(0.05)
        assert main(command) == 2
        told = capsys.readouterr().err.strip()
        assert "\n" not in told and f"found cim demo --output {tmp_path / 'demo'} --train 8 --val 3 (process" in told
        assert first.poll() is None
    finally:
        first.terminate()
        first.wait(timeout=90)
    with hold(tmp_path / "demo"):
        pass
