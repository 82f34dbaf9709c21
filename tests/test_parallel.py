"""Stages over many images: a bad one harms no other, locally and on a Dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from dying import die, threads, write_then_die_once
from small_run import draw
from test_prepare_tools import call, masks_of, save_json, save_mat

from cim.cli.main import main
from cim.cli.prepare import proposals
from cim.core import parallel
from cim.core.errors import CimError
from cim.core.parallel import StageReport, map_in_order, run_stage
from cim.datasets.base import Record
from cim.proposals.stage import ProposalStage
from cim.storage.published import read_pickle
from cim.storage.store import Store


def touch(number: int, folder: Path) -> None:
    """A file named after the number, holding the process; every third number fails."""
    if number % 3 == 1:
        raise CimError("bad image", path=f"{number}.jpg")
    (folder / str(number)).write_text(str(os.getpid()))


def bug(number: int) -> None:
    raise ZeroDivisionError(number)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_item_harms_no_other(tmp_path, workers, caplog):
    names = [f"photo {n}" for n in range(8)]
    report = run_stage(partial(touch, folder=tmp_path), range(8), names=names, description="d", workers=workers)
    assert {int(p.name) for p in tmp_path.iterdir()} == {0, 2, 3, 5, 6}
    assert report.done == 5 and set(report.failed) == {"photo 1", "photo 4", "photo 7"}
    assert report.failed["photo 4"] == "bad image: 4.jpg"
    assert report.exit_code() == 2
    assert "failed: photo 4: bad image: 4.jpg" in caplog.messages
    assert caplog.messages[-1] == "3 of 8 failed, the others are done"
    processes = {int(p.read_text()) for p in tmp_path.iterdir()}
    assert (os.getpid() in processes) == (workers == 1)


def half(number: int) -> float:
    time.sleep(0.05 if number == 0 else 0)  # the first is done last
    return number / 2


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items_and_few_are_read_ahead(workers):
    taken = []

    def items():
        for number in range(200):
            taken.append(number)
            yield number

    results = map_in_order(half, items(), workers)
    assert [next(results) for _ in range(3)] == [0, 0.5, 1]
    assert len(taken) < 20
    assert list(results) == [number / 2 for number in range(3, 200)] and len(taken) == 200


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_however_workers_start_each_computes_in_one_thread(monkeypatch, method):
    monkeypatch.setattr(parallel, "_context", lambda: multiprocessing.get_context(method))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        torch.conv2d(torch.rand(4, 8, 64, 64), torch.rand(8, 8, 3, 3))  # so that the parent has threads when it forks
        first, second = map_in_order(threads, [0, 1], 2)
    finally:
        torch.set_num_threads(before)
    assert len(first) > 1 and set(first) == set(second) == {1}


def test_workers_are_not_forked_once_cuda_is_in_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert parallel._context().get_start_method() == ("fork" if sys.platform == "linux" else "spawn")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert parallel._context().get_start_method() == "spawn"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, method):
    code = f"""
import multiprocessing, sys
from functools import partial
from pathlib import Path
from cim.core import parallel
from dying import wait_long
if __name__ == "__main__":
    parallel._context = lambda: multiprocessing.get_context({method!r})
    parallel.run_stage(partial(wait_long, folder=Path(sys.argv[1])), range(9), workers=2)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    try:
        patiently(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        process.kill()
        process.wait()
    for pid in [path.name for path in tmp_path.iterdir()]:
        patiently(lambda: gone(pid))  # noqa: B023


def gone(pid: str) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return ") Z" in Path("/proc", pid, "stat").read_text()
    except OSError:
        return True


def patiently(what, seconds: float = 90) -> None:
    """Until ``what()`` is true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.05)


def test_nothing_to_do():
    report = run_stage(bug, [], workers=4)
    assert report == StageReport() and report.exit_code() == 0


def test_items_of_one_name_are_counted_one_by_one(tmp_path):
    report = run_stage(partial(touch, folder=tmp_path), [1, 4], names=["same.jpg", "same.jpg"])
    assert report.done == 0 and len(report.failed) == 2


def test_failures_are_listed_in_the_order_of_the_items(tmp_path):
    report = run_stage(partial(touch, folder=tmp_path), [1, 4, 7, 10], workers=2)
    assert list(report.failed) == ["1", "4", "7", "10"]


def test_a_killed_worker_is_one_line():
    with pytest.raises(CimError, match="a worker process was killed"):
        run_stage(die, [1, 2], workers=2)


def written(folder: Path) -> dict[int, str]:
    return {int(path.name): path.read_text() for path in folder.iterdir() if path.name.isdigit()}


WHOLE = {number: f"content {number}" for number in range(40)}


def test_after_a_killed_worker_the_same_call_completes(tmp_path):
    with pytest.raises(CimError, match="a worker process was killed"):
        run_stage(partial(write_then_die_once, folder=tmp_path), range(40), workers=2)
    there = written(tmp_path)
    assert 5 not in there and there.items() < WHOLE.items()  # none is half written
    run_stage(partial(write_then_die_once, folder=tmp_path), [n for n in range(40) if n not in there], workers=2)
    assert written(tmp_path) == WHOLE


@dataclass(frozen=True)
class DiesOnce:
    """A stage of which one worker is killed at the first photo that it comes to."""

    stage: ProposalStage
    marker: Path

    def __call__(self, record: Record) -> None:
        if not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.stage(record)


def test_a_killed_worker_of_the_proposal_stage(tmp_path, monkeypatch, capsys):
    """One line and exit code 2; the same command makes what an unbroken one makes."""
    draw(tmp_path, 6)
    words = ["proposals", "--images", str(tmp_path / "photos"), "--no-deep-features", "--workers", "2"]
    command = [*words, "--output", str(tmp_path / "killed")]
    with monkeypatch.context() as patch:
        patch.setattr(
            proposals, "run_stage", lambda stage, *a, **k: run_stage(DiesOnce(stage, tmp_path / "died"), *a, **k)
        )
        assert main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "a worker process was killed" in line and "the same command continues" in line
    assert main(command) == 0
    assert main([*words, "--output", str(tmp_path / "unbroken")]) == 0
    one, other = Store.open(tmp_path / "killed", "regions"), Store.open(tmp_path / "unbroken", "regions")
    assert one.entries.names() == other.entries.names() and len(other.entries.names()) == 6
    for name in other.entries.names():
        assert one.entries.read(name) == other.entries.read(name)


@pytest.mark.parametrize("workers", [1, 2])
def test_bugs_are_not_hidden(workers):
    with pytest.raises(ZeroDivisionError):
        run_stage(bug, [1, 2], workers=workers)


def test_a_local_cluster_of_two_workers(tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask is not installed: the cluster is not tested")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        report = run_stage(partial(touch, folder=tmp_path), range(30), scheduler=cluster.scheduler_address)
        assert report.done == 20 and list(report.failed) == [str(n) for n in range(30) if n % 3 == 1]
        assert {int(p.name) for p in tmp_path.iterdir()} == {n for n in range(30) if n % 3 != 1}
        processes = {int(p.read_text()) for p in tmp_path.iterdir()}
        assert os.getpid() not in processes and 1 <= len(processes) <= 2
        with pytest.raises(ZeroDivisionError):
            run_stage(bug, [1], scheduler=cluster.scheduler_address)
        save_mat(tmp_path / "VOC2012" / "COB_SBD_val" / "2007_000001.mat", masks_of("x"))
        save_json(tmp_path / "VOC2012" / "annotations" / "voc_2012_val.json", {1: "2007_000001.jpg", 2: "none.jpg"})
        args = ["--dataset", "voc", "--split", "val", "--data-root", tmp_path, "--scheduler", cluster.scheduler_address]
        assert call("create_cob_iou", *args) == 2  # one image is missing
        assert read_pickle(tmp_path / "cob_iou" / "VOC2012" / "2007_000001.pkl").shape == (6, 6)


def test_a_killed_worker_of_a_cluster_is_replaced(tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask is not installed: the cluster is not tested")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        stage = partial(write_then_die_once, folder=tmp_path)
        report = run_stage(stage, range(40), scheduler=cluster.scheduler_address)
    assert (tmp_path / "died").exists() and report == StageReport(done=40) and written(tmp_path) == WHOLE


def test_an_item_that_kills_every_worker_ends_the_stage():
    distributed = pytest.importorskip("distributed", reason="dask is not installed: the cluster is not tested")
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        pytest.raises(CimError, match="several Dask workers died of one image"),
    ):
        run_stage(die, [1], scheduler=cluster.scheduler_address)


SCHEDULER = """
import asyncio, sys
from distributed import Scheduler
async def serve():
    async with Scheduler(host="127.0.0.1", port=int(sys.argv[1]), dashboard=False) as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()
asyncio.run(serve())
"""


def test_a_scheduler_killed_and_started_again(tmp_path, monkeypatch):
    """The command ends in one line, and the workers end. With all of it started again, the same command completes."""
    pytest.importorskip("distributed", reason="dask is not installed: the cluster is not tested")
    monkeypatch.setattr("cim.core.parallel.CONNECT_SECONDS", 40)  # workers are slow to start on a busy machine
    (tmp_path / "died").touch()  # no worker dies here
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])}
    with contextlib.ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen:
            process = subprocess.Popen(
                [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        def start_cluster(port: str) -> tuple[subprocess.Popen, str]:
            scheduler = start("-c", SCHEDULER, port)
            address = scheduler.stdout.readline().strip()
            for _ in range(2):
                start("-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
            return scheduler, address

        scheduler, address = start_cluster("0")

        def kill() -> None:
            wait_until(lambda: len(written(tmp_path)) > 3)
            scheduler.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(CimError, match=r"the Dask scheduler stopped or was restarted.*the same command continues"):
            run_stage(partial(write_then_die_once, folder=tmp_path), range(400), scheduler=address)
        killer.join()
        there = written(tmp_path)
        assert 3 < len(there) < 400
        assert start_cluster(address.rpartition(":")[2])[1] == address
        left = [n for n in range(40) if n not in there]
        run_stage(partial(write_then_die_once, folder=tmp_path), left, scheduler=address)
    assert written(tmp_path) == there | WHOLE


def wait_until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_cluster_without_workers(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="dask is not installed: the cluster is not tested")
    monkeypatch.setattr("cim.core.parallel.CONNECT_SECONDS", 2)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster,
        pytest.raises(CimError, match="the Dask scheduler has no workers"),
    ):
        run_stage(bug, [1], scheduler=cluster.scheduler_address)


def test_a_scheduler_that_is_not_there(monkeypatch):
    pytest.importorskip("distributed", reason="dask is not installed: the cluster is not tested")
    monkeypatch.setattr("cim.core.parallel.CONNECT_SECONDS", 1)
    with pytest.raises(CimError, match="cannot reach the Dask scheduler: tcp://127"):
        run_stage(bug, [1], scheduler="tcp://127.0.0.1:9")
    with pytest.raises(CimError, match="cannot reach the Dask scheduler"):
        run_stage(bug, [1], scheduler="nonsense://x")


def test_dask_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dask.distributed", None)
    with pytest.raises(CimError, match=r"--scheduler needs Dask; to fix: pip install 'cim\[cluster\]'"):
        run_stage(bug, [1], scheduler="tcp://127.0.0.1:9")
