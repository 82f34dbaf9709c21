"""Two processes give the updates of one."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from toys import Numbers, toy_fit, toy_model, toy_step

from cim.core.errors import CimError
from cim.engine.fit import FitOptions, Schedule, distributed, load_checkpoint
from cim.engine.held_out import HeldOut, Patience
from cim.engine.trainer import Trainer

SCHEDULE = Schedule(4, 24, steps=(12,))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def held_out() -> HeldOut:
    return HeldOut(Patience(3, 2, 2, 6), Numbers(17), lambda net: net(torch.ones(6), extra=True).square().tolist())


def worker(rank: int, world: int, ports: tuple[int, int], run_dir: str, optimizer: str, watched: bool) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", WORLD_SIZE=str(world), RANK=str(rank), LOCAL_RANK=str(rank))

    def train(port: int, stop_after: int) -> None:
        os.environ["MASTER_PORT"] = str(port)

        def stop(update: int, model) -> None:
            if update == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        model = toy_model()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(rank)  # only the main process's weights may count
        images = held_out() if watched else None
        toy_fit(Path(run_dir), model=model, schedule=SCHEDULE, on_update=stop, optimizer=optimizer, held_out=images)
        torch.save(model.state_dict(), Path(run_dir, f"weights{rank}.pt"))

    try:
        train(ports[0], stop_after=13)  # the main process alone is told to stop: all stop together
    except KeyboardInterrupt:
        Path(run_dir, f"stopped{rank}").touch()
    train(ports[1], stop_after=-1)  # a new port: the old meeting point may still be closing


@pytest.mark.parametrize(("optimizer", "watched"), [("sgd", False), ("adamw", False), ("sgd", True)])
def test_two_processes_equal_one(tmp_path: Path, optimizer: str, watched: bool):
    """Different weights at first, stopped half-way, continued: the same updates as one process's, on both."""
    alone = toy_fit(tmp_path / "one", schedule=SCHEDULE, optimizer=optimizer, held_out=held_out() if watched else None)
    one = load_checkpoint(alone)["model"]
    two = tmp_path / "two"
    two.mkdir()
    ports = (free_port(), free_port())
    arguments = (2, ports, str(two), optimizer, watched)
    processes = mp.start_processes(worker, arguments, nprocs=2, start_method="spawn", join=False)
    deadline = time.monotonic() + 120
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail("the two processes wait for each other")
    assert (two / "stopped0").exists() and (two / "stopped1").exists()
    result = load_checkpoint(two / "final.pth")["model"]
    other = torch.load(two / "weights1.pt", weights_only=True)
    for name, value in one.items():
        torch.testing.assert_close(result[name], value, rtol=1e-5, atol=1e-6)
        assert torch.equal(result[name], other[name])


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)


def test_norms_that_learn_are_shared_and_others_stay(two_processes):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4))).train()
    net[2][0].eval()
    weight, keys = net[1].weight, list(net.state_dict())
    with pytest.raises(CimError, match="need CUDA"):
        distributed.share_norms(net, torch.device("cpu"))
    distributed.share_norms(net, torch.device("cuda"))
    assert isinstance(net[1], nn.SyncBatchNorm) and net[1].weight is weight and net[1].training
    assert type(net[2][0]) is nn.BatchNorm2d and list(net.state_dict()) == keys


def test_more_processes_than_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 8)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    with pytest.raises(CimError, match="more processes than images per update"):
        Trainer(toy_model(), toy_step, [{"params": [], "lr": 1}], SCHEDULE, FitOptions(), torch.device("cpu"))


def test_one_process_needs_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert toy_fit(tmp_path, source=Numbers(5)).is_file()


@pytest.mark.parametrize("main", [True, False])
def test_the_main_process_opens_first(monkeypatch, main):
    told = []
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    monkeypatch.setattr(distributed, "from_main", lambda error: told.append(("told", error)))
    assert distributed.main_first(lambda: told.append("opened") or 5) == 5
    assert told == (["opened", ("told", None)] if main else [("told", None), "opened"])


@pytest.mark.parametrize("main", [True, False])
def test_all_processes_raise_what_the_main_one_met(monkeypatch, main):
    def fail() -> None:
        raise CimError("no data")

    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    monkeypatch.setattr(distributed, "from_main", lambda error: error if main else CimError("no data"))
    with pytest.raises(CimError, match="no data"):
        distributed.main_first(fail if main else lambda: 5)
