"""Stages over many images: a bad one harms no other, locally and on a Dask cluster."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from test_prepare_tools import call, masks_of, save_json, save_mat

from cim.core.errors import CimError
from cim.core.parallel import StageReport, run_stage
from cim.storage.published import read_pickle


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


def test_nothing_to_do():
    report = run_stage(bug, [], workers=4)
    assert report == StageReport() and report.exit_code() == 0


def test_items_of_one_name_are_counted_one_by_one(tmp_path):
    report = run_stage(partial(touch, folder=tmp_path), [1, 4], names=["same.jpg", "same.jpg"])
    assert report.done == 0 and len(report.failed) == 2


def test_failures_are_listed_in_the_order_of_the_items(tmp_path):
    report = run_stage(partial(touch, folder=tmp_path), [1, 4, 7, 10], workers=2)
    assert list(report.failed) == ["1", "4", "7", "10"]


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line():
    with pytest.raises(CimError, match="a worker process was killed"):
        run_stage(die, [1, 2], workers=2)


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
