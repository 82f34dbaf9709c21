"""A run killed at any moment and started again ends with the same weights, bit for bit."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toys import toy_fit

from cim.core.errors import CimError
from cim.core.files import atomic
from cim.engine.fit import load_checkpoint
from cim.engine.run_logger import read_log


def same(one: Path, two: Path) -> bool:
    a, b = load_checkpoint(one)["model"], load_checkpoint(two)["model"]
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    return toy_fit(tmp_path_factory.mktemp("unbroken"))


class Killed(Exception):
    pass


def run_until(run_dir: Path, last: int, **options) -> None:
    def stop(update: int, model) -> None:
        if update == last:
            raise Killed

    with pytest.raises(Killed):
        toy_fit(run_dir, on_update=stop, **options)


def test_killed_with_sigkill(tmp_path: Path, unbroken: Path):
    """A program of its own, killed twice at points drawn anew every time, workers and all."""
    command = [sys.executable, str(Path(__file__).parent / "toys.py"), str(tmp_path), "0.02", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for expected in ("update_00000005.pth", "update_00000010.pth"):
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (tmp_path / "checkpoints" / expected).exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
    assert not (tmp_path / "final.pth").exists()
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    assert same(tmp_path / "final.pth", unbroken), done.stderr


@pytest.mark.parametrize("last", [1, 5, 6, 12, 13, 23])
def test_stopped_between_updates(tmp_path: Path, unbroken: Path, last: int):
    """Before the first checkpoint, beside checkpoints, at learning rate steps, before the end."""
    run_until(tmp_path, last)
    assert same(toy_fit(tmp_path), unbroken)
    numbers = [line["update"] for line in read_log(tmp_path / "log.jsonl")]
    assert numbers == [line["update"] for line in read_log(unbroken.parent / "log.jsonl")]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, unbroken: Path, damage: str, caplog):
    run_until(tmp_path, 13)
    newest = tmp_path / "checkpoints" / "update_00000010.pth"
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[data.index(load_checkpoint(newest)["model"]["body.0.weight"].numpy().tobytes()) + 9] ^= 0x40
    elif damage == "empty":
        data = bytearray()
    else:
        data = bytearray(b"GIF89a")
    newest.write_bytes(bytes(data))
    with caplog.at_level(logging.INFO):
        final = toy_fit(tmp_path)
    assert same(final, unbroken)
    assert "damaged or foreign checkpoint" in caplog.text and "after update 5 of" in caplog.text


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path, unbroken: Path):
    """With SIGKILL in the middle of writing; a writer of the same name that lives is not disturbed."""
    run_until(tmp_path, 7)
    path = tmp_path / "checkpoints" / "update_00000010.pth"
    code = "import os, sys; from cim.core.files import atomic\n"
    code += "with atomic(sys.argv[1]) as half: half.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", code, str(path)], env=env).returncode == -signal.SIGKILL
    (leftover,) = path.parent.glob(".update_*")
    with atomic(path) as living:
        assert same(toy_fit(tmp_path), unbroken)
        assert living.exists() and not leftover.exists()


def test_asked_to_stop_together_with_its_workers(tmp_path: Path, unbroken: Path):
    """SIGTERM to the whole group, as a cluster or `timeout` sends it: the workers leave it to their parent."""
    command = [sys.executable, str(Path(__file__).parent / "toys.py"), str(tmp_path), "0.02", "1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "checkpoints" / "update_00000005.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    told = process.communicate(timeout=60)[1].decode()
    assert "KeyboardInterrupt" in told and "DataLoader" not in told
    subprocess.run(command, env=env, capture_output=True, check=True)
    assert same(tmp_path / "final.pth", unbroken)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def run_and_kill_a_child(command: list[str], checkpoint: Path, which: int) -> str:
    """Start a run, kill one of its processes once the checkpoint is there; what it said, ending within a minute."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(children(process.pid)[which], signal.SIGKILL)
    told = process.communicate(timeout=60)[0].decode()
    assert process.returncode not in (0, None), "it ended before its process was killed"
    return told


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc: processes cannot be found here")
def test_a_killed_loader_worker_ends_the_run_in_one_line_and_the_same_command_continues(tmp_path: Path, unbroken: Path):
    command = [sys.executable, str(Path(__file__).parent / "toys.py"), str(tmp_path), "0.05", "1"]
    told = run_and_kill_a_child(command, tmp_path / "checkpoints" / "update_00000005.pth", 0)
    assert "a loader worker died" in told and "the same command continues" in told
    assert same(toy_fit(tmp_path), unbroken)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc: processes cannot be found here")
def test_a_killed_rank_of_torchrun_ends_the_run_and_the_same_command_continues(tmp_path: Path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    toys = str(Path(__file__).parent / "toys.py")
    run_and_kill_a_child(
        [*launch, toys, str(tmp_path / "a"), "0.05", "0"], tmp_path / "a/checkpoints/update_00000005.pth", -1
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for name in ("a", "b"):  # b was never killed
        subprocess.run(
            [*launch, toys, str(tmp_path / name), "0", "0"], env=env, capture_output=True, check=True, timeout=120
        )
    assert same(tmp_path / "a" / "final.pth", tmp_path / "b" / "final.pth")


def test_a_damaged_result_names_the_way_out(tmp_path: Path):
    final = toy_fit(tmp_path)
    final.write_bytes(final.read_bytes()[:500])
    with pytest.raises(CimError, match="delete it; the same command makes it again"):
        toy_fit(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(tmp_path: Path, unbroken: Path, number: signal.Signals):
    """SIGTERM and Ctrl-C save first; the handlers of before are back afterwards."""
    before = signal.getsignal(number)

    def ask(update: int, model) -> None:
        if update == 7:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        toy_fit(tmp_path, on_update=ask)
    assert signal.getsignal(number) == before
    assert (tmp_path / "checkpoints" / "update_00000008.pth").is_file()
    assert same(toy_fit(tmp_path), unbroken)
