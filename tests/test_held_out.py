"""Held-out images decide how long to train: the rule and the loop."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Numbers, toy_fit

from cim.core.errors import CimError
from cim.engine.fit import Schedule, load_checkpoint
from cim.engine.held_out import HeldOut, Patience, gained
from cim.engine.run_logger import read_log

PLANNED = Schedule(4, 24, steps=(12, 18), warmup_updates=6)
RULE = Patience(every=2, looks=2, least=2, most=10)


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(path)["model"].values()])


# ---------------------------------------------------------------------- the rule


def slow_turn(rule: Patience, losses: list[list[float]]) -> int | None:
    """Look by look, as a person would."""
    kept: list[float] = []
    waited = 0
    for n in range(1, len(losses) + 1):
        last = losses[max(n - 3, 0) : n]
        now = [sum(look[image] for look in last) / len(last) for image in range(len(last[0]))]
        falls = [one - other for one, other in zip(kept or now, now, strict=True)]
        error = statistics.stdev(falls) / len(falls) ** 0.5 if len(falls) > 1 else 0
        better = statistics.mean(falls) > error
        waited = 0 if better or not kept else waited + 1
        kept = now if better or not kept else kept
        if n >= rule.least and (n >= rule.most or waited >= rule.looks):
            return n * rule.every
    return None


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_the_turn_is_that_of_the_slow_rule_and_stays(seed: int, count: int, images: int, waited: int, least: int):
    rng = np.random.default_rng(seed)
    losses = (rng.random((count, images)) + np.linspace(rng.random(), 0, count)[:, None]).tolist()
    rule = Patience(3, waited, least, least + int(rng.integers(1, 10)))
    turn = rule.turn(losses)
    assert turn == slow_turn(rule, losses)
    if turn is not None:
        assert rule.least <= turn // 3 <= rule.most
        assert rule.turn(losses[: turn // 3]) == turn and rule.turn(losses[: turn // 3 - 1]) is None


def looks(*values: float) -> list[list[float]]:
    """Two images that agree."""
    return [[value, value] for value in values]


def falling(count: int) -> list[list[float]]:
    return looks(*np.linspace(1, 0, count).tolist())


def test_falling_losses_go_on_to_the_limit_and_rising_ones_stop_at_the_other():
    assert RULE.turn(falling(9)) is None
    assert RULE.turn(falling(10)) == 20
    assert RULE.turn(looks(1)) is None
    assert RULE.turn(looks(1, 2, 3)) == 6


def test_a_gain_that_images_do_not_agree_on_is_none():
    assert not gained(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.0, 1.2, 0.9, 1.2]))
    assert gained(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.8, 0.9, 0.8, 0.9]))
    assert not gained(np.ones(1), np.ones(1))


def test_what_comes_after_the_turn_keeps_its_proportion():
    assert RULE.settle(PLANNED, []) == Schedule(4, 40, steps=(20, 30), warmup_updates=6)  # the latest turn
    assert RULE.settle(PLANNED, falling(30)[:9]) == RULE.settle(PLANNED, [])
    assert RULE.settle(PLANNED, looks(1, 2, 3)) == Schedule(4, 12, steps=(6, 9), warmup_updates=6)
    assert Patience(4, 2, 3, 3).settle(PLANNED, falling(30)) == PLANNED


# ---------------------------------------------------------------------- the loop


@dataclass
class Recorded(Numbers):
    """Numbers that write down which images were read, in this process."""

    length: int = 20
    delay: float = 0.0
    read: list[int] = field(default_factory=list)

    def sample(self, index: int, rng: np.random.Generator) -> dict | None:
        self.read.append(index)
        return super().sample(index, rng)


def held_out(losses: list[list[float]], source: Numbers | None = None, seen: list[bool] | None = None) -> HeldOut:
    """As if the held-out images had these losses, the last one again and again."""
    left = list(losses)

    def look(model: nn.Module) -> list[float]:
        if seen is not None:
            seen.append(model.training or torch.is_grad_enabled())
        return left.pop(0) if len(left) > 1 else left[0]

    return HeldOut(RULE, source or Numbers(17), look)


def test_the_rate_falls_when_the_loss_says_so_and_then_all_images_are_read(tmp_path: Path):
    some, everything, seen = Recorded(15), Recorded(20), list[bool]()
    toy_fit(tmp_path, source=everything, schedule=PLANNED, log_every=1, held_out=held_out(looks(1, 2, 3), some, seen))
    assert seen == [False] * 3  # in eval mode, without gradients, not any more once the rate has fallen
    assert len(some.read) == 6 * 4 and set(some.read) <= set(range(15))
    assert len(everything.read) == 6 * 4 and max(everything.read) >= 15
    log = read_log(tmp_path / "log.jsonl")
    assert [line["update"] for line in log] == list(range(1, 13))
    assert [round(line["lr"] / 0.002, 6) for line in log[5:]] == [pytest.approx(8 / 9), 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    assert [line.get("held_out") for line in log] == [None, 1, 1, 2, 2, *[3] * 7]


def test_a_loss_that_falls_stretches_training(tmp_path: Path):
    toy_fit(tmp_path, schedule=PLANNED, log_every=1, held_out=held_out(falling(10)))
    assert read_log(tmp_path / "log.jsonl")[-1]["update"] == 40


@pytest.mark.parametrize("last", [3, 5, 6, 7, 11])
@pytest.mark.parametrize("workers", [0, 1])
def test_stopped_and_continued_is_the_same(tmp_path: Path, last: int, workers: int):
    """Before a look, at a checkpoint, at the turn, after it. Here the loss is that of the network, not a list."""

    def rule() -> HeldOut:
        return HeldOut(RULE, Numbers(17), lambda model: model(torch.ones(6), extra=True).square().tolist())

    unbroken = toy_fit(tmp_path / "unbroken", schedule=PLANNED, held_out=rule(), workers=workers)

    def stop(update: int, model: nn.Module) -> None:
        if update == last:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        toy_fit(tmp_path / "b", schedule=PLANNED, held_out=rule(), workers=workers, on_update=stop, checkpoint_every=1)
    toy_fit(tmp_path / "b", schedule=PLANNED, held_out=rule(), workers=workers, checkpoint_every=1)
    assert torch.equal(weights(unbroken), weights(tmp_path / "b" / "final.pth"))


def test_another_rule_is_another_run(tmp_path: Path):
    toy_fit(tmp_path, schedule=PLANNED, held_out=held_out(looks(1)))
    toy_fit(tmp_path, schedule=PLANNED, held_out=held_out(looks(1)))
    with pytest.raises(CimError, match="held_out"):
        toy_fit(tmp_path, schedule=PLANNED)
    with pytest.raises(CimError, match="held_out"):
        toy_fit(tmp_path, schedule=PLANNED, held_out=HeldOut(Patience(2, 2, 2, 11), Numbers(17), lambda _: [1.0]))
