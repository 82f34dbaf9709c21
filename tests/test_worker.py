"""Commands in processes forked from a warm server: exit codes, signals, surroundings; stages beside each other; and a
job that is killed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cim.cli.flow import run_stages, stage
from cim.cli.worker import run_apart
from cim.core.errors import CimError

TINY = [
    *("--train", "8", "--val", "3", "--set", "prm.epochs=1", "train.updates=6", "train.step=[]", "device=cpu"),
    *("train.warmup_updates=0", "proposals.max_proposals=20", "prm.workers=0", "train.workers=0"),
    *("train.checkpoint_every=2", "train.picture_every=0"),
]


def leave(words) -> None:
    sys.exit(int(words[0]))


def die(words) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(words) -> None:
    raise ValueError("a bug")


def look_around(words) -> None:
    Path(words[0]).write_text(f"{Path.cwd()} {os.environ['CIM_TEST']} {'torch' in sys.modules} {os.getpid()}")


def wait(words) -> None:
    Path(words[0]).write_text(str(os.getpid()))
    time.sleep(300)  # longer than anybody waits for its end


@pytest.mark.parametrize(
    ("start", "words", "code"), [(leave, [0], 0), (leave, [2], 2), (die, [], -signal.SIGKILL), (fail, [], 1)]
)
def test_exit_codes(start, words, code):
    assert run_apart(words, start) == code


def test_a_command_finds_this_folder_this_environment_and_its_libraries_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pids = []
    for value in ("1", "2"):
        monkeypatch.setenv("CIM_TEST", value)
        assert run_apart([str(tmp_path / "seen")], look_around) == 0
        folder, found, loaded, pid = (tmp_path / "seen").read_text().split()
        assert (folder, found, loaded) == (str(tmp_path), value, "True")
        pids.append(pid)
    assert len({*pids, str(os.getpid())}) == 3


def test_a_command_ends_with_the_process_that_waits_for_it(tmp_path):
    code = (
        "import sys; from test_worker import run_apart, wait\nif __name__ == '__main__': run_apart(sys.argv[1:], wait)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pid")], env=environment)
    pid = int(patiently(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()))
    process.kill()
    process.wait()
    patiently(lambda: not Path("/proc", str(pid)).exists() or "Z" in Path("/proc", str(pid), "stat").read_text())


def patiently(what, seconds: float = 90):
    """The first true value of ``what()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.02)
    raise AssertionError("nothing happened in time")


# ---------------------------------------------------------------------- stages beside each other


def meet(words) -> None:
    """Say so, come, and end well once all others have come."""
    folder, name, *others = words
    print(f"{name} is here", flush=True)
    (Path(folder) / name).write_text(str(os.getpid()))
    patiently(lambda: all((Path(folder) / other).is_file() for other in others), 30)
    print(f"{name} goes", flush=True)


def refuse(words) -> None:
    """What stage "a" does when "b" has come: it fails. "b" itself waits."""
    folder, name = words
    if name == "b":
        wait([str(Path(folder) / name)])
    patiently(lambda: (Path(folder) / "b").is_file(), 30)
    sys.exit(2)


def test_stages_run_beside_each_other_and_are_shown_in_order(tmp_path, capfd, caplog):
    run, caplog.handler.stream = tmp_path / "run", sys.stderr
    run.mkdir()
    caplog.set_level(logging.INFO)
    stages = [
        stage("first", tmp_path, "a", "b"),  # would wait in vain for a "b" that comes after it
        stage("between", tmp_path, "c"),
        stage("last", tmp_path, "b", "c", beside="first"),
    ]
    run_stages(stages, run, "settings", meet)
    err = capfd.readouterr().err
    shown = [err.index(text) for text in ("[2/3] between: ", "[3/3] last", "b is here", "b goes", "[3/3] last: ")]
    assert shown == sorted(shown) and err.count("b goes") == 1  # kept until its turn
    assert sorted(json.loads((run / "stages.json").read_text())) == ["between", "first", "last"]
    assert sorted(json.loads((run / "timings.json").read_text())) == ["between", "first", "last"]
    assert sorted(path.name for path in run.iterdir()) == ["stages.json", "timings.json"]
    caplog.clear()
    run_stages(stages, run, "settings", fail)  # which nothing calls
    assert [record.getMessage() for record in caplog.records] == [
        f"[{number}/3] {title}: done" for number, title in enumerate(("first", "between", "last"), 1)
    ]


def test_a_stage_whose_companion_is_done_runs_alone(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    stages = [stage("first", tmp_path, "a"), stage("second", tmp_path, "b", beside="first")]
    run_stages(stages[:1], run, "settings", meet)
    run_stages(stages, run, "settings", meet)
    assert (tmp_path / "b").is_file()
    assert sorted(json.loads((run / "stages.json").read_text())) == ["first", "second"]


def test_a_failed_stage_stops_the_one_beside_it(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    stages = [stage("first", tmp_path, "a"), stage("second", tmp_path, "b", beside="first")]
    with pytest.raises(CimError, match="stage 1"):
        run_stages(stages, run, "settings", refuse)
    pid = (tmp_path / "b").read_text()
    assert not Path("/proc", pid).exists() or "Z" in Path("/proc", pid, "stat").read_text()
    assert not list(run.iterdir())


def test_a_stage_that_failed_beside_another_is_told_when_its_turn_comes(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    stages = [stage("first", tmp_path, "a"), stage("second", tmp_path / "nowhere", "b", beside="first")]
    with pytest.raises(CimError, match="stage 2"):
        run_stages(stages, run, "settings", meet)
    assert list(json.loads((run / "stages.json").read_text())) == ["first"]
    assert sorted(path.name for path in run.iterdir()) == ["stages.json", "timings.json"]


# ---------------------------------------------------------------------- killed jobs


def demo(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cim", "demo", "--output", str(folder), *TINY]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stages(folder: Path) -> int:
    path = folder / "stages.json"
    return len(json.loads(path.read_text())) if path.is_file() else 0


def test_a_killed_job_ends_with_the_same_bits(tmp_path):
    """SIGKILL after the first stages, in the middle of CIM's training, and later; then the same command once more."""
    whole, broken = tmp_path / "a" / "demo", tmp_path / "b" / "demo"
    assert demo(whole).wait(600) == 0
    for moment in (
        lambda: stages(broken) >= 2,
        lambda: any((broken / "train").glob("checkpoint*")),
        lambda: stages(broken) >= 8,
    ):
        process = demo(broken)
        patiently(lambda: moment() or process.poll() is not None, 300)  # noqa: B023
        process.kill()
        process.wait()
    assert demo(broken).wait(600) == 0
    for name in ("detections/val/results.json", "mist/detections/val/results.json", "prm_instances/val/results.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    rows = [json.loads((folder / "metrics.json").read_text())["rows"] for folder in (whole, broken)]
    assert rows[0] == rows[1] and len(rows[0]) >= 5
