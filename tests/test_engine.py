"""The training loop: schedule, image sequence, skipped images, bad losses, logs."""

from __future__ import annotations

import errno
import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from toys import Numbers, toy_fit, toy_model, toy_step

from cim.core.errors import CimError
from cim.core.files import append
from cim.engine.fit import FitOptions, Schedule, fit, learning_factor, load_checkpoint
from cim.engine.loader import ImageSequence
from cim.engine.run_logger import read_log


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(path)["model"].values()])


def test_published_schedule():
    schedule = Schedule(4, 45000, (30000,), 0.1, 500, 1 / 3)
    assert learning_factor(schedule, 0) == pytest.approx(1 / 3)
    assert learning_factor(schedule, 250) == pytest.approx(2 / 3)
    assert [learning_factor(schedule, u) for u in (500, 29999)] == [1, 1]
    assert [learning_factor(schedule, u) for u in (30000, 44999)] == pytest.approx([0.1, 0.1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 5))
def test_every_image_once_per_round(length: int, seed: int):
    sequence = ImageSequence(length, seed)
    rounds = [[sequence.index(p) for p in range(r * length, (r + 1) * length)] for r in range(3)]
    assert all(sorted(r) == list(range(length)) for r in rounds)
    assert ImageSequence(length, seed).index(2 * length) == rounds[2][0]  # nothing depends on what was asked before


def test_same_as_a_plain_loop(tmp_path: Path):
    """Sum of gradients, linear warm-up, steps, momentum rescaled: against the update written out by hand."""
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))

    class Rows:
        def __len__(self) -> int:
            return 8

        def sample(self, index: int, rng: np.random.Generator) -> torch.Tensor:
            return data[index]

    def step(model, samples, generator):
        return {"loss": sum(model(x).square().sum() for x in samples)}, {}

    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    weight, momentum, sequence = model.weight.detach().clone(), torch.zeros(1, 3), ImageSequence(8, 3)
    schedule = Schedule(4, 10, steps=(6,), gamma=0.1, warmup_updates=4, warmup_factor=0.5)
    fit(
        model,
        Rows(),
        step,
        param_groups=[{"params": [model.weight], "lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}],
        schedule=schedule,
        options=FitOptions(workers=0, seed=3),
        run_dir=tmp_path,
        device="cpu",
        meta={"kind": "toy", "classes": []},
    )
    for update in range(10):
        rate = 0.01 * ([0.5, 0.625, 0.75, 0.875][update] if update < 4 else 1.0 if update < 6 else 0.1)
        if update == 6:
            momentum *= 0.1
        x = data[[sequence.index(update * 4 + j) for j in range(4)]]
        gradient = 2 * (x @ weight.T).T @ x + 0.01 * weight
        momentum = gradient if update == 0 else 0.9 * momentum + gradient
        weight = weight - rate * momentum
    torch.testing.assert_close(model.weight.detach(), weight)


def test_workers_and_order_of_reading_change_nothing(tmp_path: Path):
    one = toy_fit(tmp_path / "here", workers=0)
    two = toy_fit(tmp_path / "workers", workers=2)
    assert torch.equal(weights(one), weights(two))
    other = toy_fit(tmp_path / "seed", seed=1)
    assert not torch.equal(weights(one), weights(other))


def test_sum_of_four_is_four_times_the_mean(tmp_path: Path):
    """One update from the same weights: reduction="sum" moves four times as far."""
    start = torch.cat([p.detach().flatten() for p in toy_model().state_dict().values()])

    class AllUsed(Numbers):
        def sample(self, index, rng):
            return super().sample(index * 7, rng)

    def plain(model, samples, generator):
        losses, _ = toy_step(model.eval(), samples, generator)
        return {"fit": losses["fit"]}, {}

    moved = {}
    for reduction in ("sum", "mean"):
        path = toy_fit(
            tmp_path / reduction, source=AllUsed(), step=plain, schedule=Schedule(4, 1), reduction=reduction, seed=2
        )
        moved[reduction] = weights(path) - start
    decay = 0.002 * 1e-3 * start  # weight decay does not scale
    torch.testing.assert_close(moved["sum"] + decay, 4 * (moved["mean"] + decay), rtol=1e-3, atol=1e-6)


def test_files_of_a_run(tmp_path: Path):
    seen = []
    path = toy_fit(tmp_path, on_update=lambda update, model: seen.append(update))
    assert seen == list(range(1, 25))
    assert load_checkpoint(path)["meta"]["classes"] == ["a"]
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "update_00000015.pth",
        "update_00000020.pth",
    ]
    log = read_log(tmp_path / "log.jsonl")
    assert log[-1]["update"] == 24 and {line["update"] for line in log} >= {3, 5, 6, 10}
    assert set(log[0]["losses"]) == {"fit", "noise"} and log[0]["diagnostics"] == {"seeds": 1.0}
    assert log[-1]["lr"] == pytest.approx(0.002 * 0.01)
    assert sum(line["skipped"] for line in log) > 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"lr": 0.002}
    assert json.loads((tmp_path / "environment.json").read_text())["versions"]["torch"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"][0].startswith("losses/") and "run/lr" in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("run/loss")] == [line["update"] for line in log]


def test_complete_run_is_not_trained_again(tmp_path: Path):
    path = toy_fit(tmp_path)
    before = path.stat().st_mtime_ns
    seen = []
    assert toy_fit(tmp_path, on_update=lambda *a: seen.append(a)) == path
    assert not seen and path.stat().st_mtime_ns == before


def test_other_settings_are_refused(tmp_path: Path):
    toy_fit(tmp_path)
    with pytest.raises(CimError, match="schedule"):
        toy_fit(tmp_path, schedule=Schedule(4, 30))
    (tmp_path / "final.pth").unlink()
    with pytest.raises(CimError, match="seed"):
        toy_fit(tmp_path, seed=9)
    with pytest.raises(CimError, match="classes"):
        toy_fit(tmp_path, meta={"kind": "toy", "classes": ["a", "b"]})


def test_checkpoint_of_another_network(tmp_path: Path):
    toy_fit(tmp_path)
    (tmp_path / "final.pth").unlink()
    path = tmp_path / "checkpoints" / "update_00000020.pth"
    state = load_checkpoint(path)
    state["model"]["head.weight"] = state["model"].pop("sometimes")
    torch.save(state, path)
    with pytest.raises(CimError, match=r"checkpoint of another network.*head\.weight.*work_dir"):
        toy_fit(tmp_path)


def test_loss_that_is_not_finite(tmp_path: Path):
    def step(model, samples, generator):
        losses, _ = toy_step(model, samples, generator)
        bad = samples[0]["image_id"] == "img5"
        return {**losses, "broken": losses["fit"] * (float("nan") if bad else 1)}, {}

    with pytest.raises(CimError, match=r"loss is not finite in update \d+.*img5.*broken=nan"):
        toy_fit(tmp_path, step=step)


def test_gradient_that_is_not_finite(tmp_path: Path):
    def step(model, samples, generator):
        zero = sum(p.sum() for p in model.parameters()) * 0
        return {"root": zero.sqrt().mul(0)}, {}  # 0 * infinity behind a finite loss

    with pytest.raises(CimError, match="gradient is not finite in update 1"):
        toy_fit(tmp_path, step=step)


def test_nothing_to_learn_from(tmp_path: Path):
    class Empty(Numbers):
        def sample(self, index, rng):
            return None

    with pytest.raises(CimError, match="no image has anything to learn from"):
        toy_fit(tmp_path, source=Empty())
    with pytest.raises(CimError, match="no images"):
        toy_fit(tmp_path / "none", source=Numbers(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_one_line(tmp_path: Path, workers: int):
    class Broken(Numbers):
        def sample(self, index, rng):
            raise CimError("damaged photo", path=f"{index}.jpg")

    with pytest.raises(CimError, match=r"^damaged photo: \d+\.jpg$"):
        toy_fit(tmp_path, source=Broken(), workers=workers)


def test_clip_grad_and_precisions_run(tmp_path: Path):
    for precision in ("bf16", "fp16"):
        path = toy_fit(tmp_path / precision, precision=precision, clip_grad=0.5, micro_batch=3)
        assert weights(path).isfinite().all()
        assert not torch.equal(weights(path), weights(toy_fit(tmp_path / f"{precision}1", clip_grad=0.5)))


def test_clip_grad_bounds_the_step(tmp_path: Path):
    start = torch.cat([p.detach().flatten() for p in toy_model().state_dict().values()])
    path = toy_fit(tmp_path, clip_grad=1e-3, schedule=Schedule(4, 1))
    assert (weights(path) - start).norm() < 0.002 * 1.1 * (1e-3 + 1e-3 * start.norm())


def test_a_full_disk_does_not_stop_training(tmp_path: Path, monkeypatch, caplog):
    save, calls = torch.save, []

    def full(state, file):
        calls.append(file)
        if len(calls) in (2, 3):
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    seen = []

    def look(update, model):
        seen.append([p.name for p in sorted((tmp_path / "checkpoints").glob("*"))])

    with caplog.at_level(logging.WARNING):
        path = toy_fit(tmp_path, on_update=look)
    assert seen[15] == ["update_00000005.pth"]  # saves after 10 and 15 failed: the old one is still there, alone
    assert "checkpoint not saved" in caplog.text and "No space left" in caplog.text
    assert (tmp_path / "checkpoints" / "update_00000020.pth").is_file()
    monkeypatch.undo()
    assert torch.equal(weights(path), weights(toy_fit(tmp_path / "other")))


def test_a_log_that_cannot_be_written_does_not_stop_training(tmp_path: Path, monkeypatch, caplog):
    """Told once; once there is room it goes on. Of TensorBoard's file nothing is lost but what came in between."""
    calls = itertools.count()

    def full(path, content):
        if 6 <= next(calls) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, content)

    monkeypatch.setattr("cim.engine.run_logger.append", full)
    monkeypatch.setattr("cim.engine.event_file.append", full)
    path = toy_fit(tmp_path)
    assert caplog.text.count("training goes on") == 1 and "No space left on device" in caplog.text
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [line["update"] for line in read_log(tmp_path / "log.jsonl")]
    assert logged[0] == 3 and logged[-1] == 24 and len(logged) == 7  # of 11
    assert [event.step for event in events.Scalars("run/loss")] == logged
    monkeypatch.undo()
    assert torch.equal(weights(path), weights(toy_fit(tmp_path / "other")))


def test_foreign_checkpoint(tmp_path: Path):
    (tmp_path / "a.pth").write_bytes(b"not a checkpoint")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "b.pth")
    for name, message in (("a", "damaged or foreign"), ("b", "not a checkpoint of this project"), ("c", "no check")):
        with pytest.raises(CimError, match=message):
            load_checkpoint(tmp_path / f"{name}.pth")
