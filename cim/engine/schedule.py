"""What decides a training run apart from network and data: its schedule and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """When the learning rate changes, counted in updates of ``images_per_update`` images (METHOD section 7).

    Attributes:
        images_per_update: images whose gradients make one update, over all processes.
        updates: how many in all.
        steps: updates at which the rate is multiplied by ``gamma``.
        warmup_updates, warmup_factor: the rate rises linearly from that fraction during the first updates.
    """

    images_per_update: int
    updates: int
    steps: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_updates: int = 0
    warmup_factor: float = 1 / 3


@dataclass(frozen=True)
class FitOptions:
    """How to train; see ``cim.config.schema.TrainConfig``.

    Attributes:
        precision: fp32, bf16 or fp16 (autocast; fp16 with gradient scaling).
        workers: processes that read images; 0 reads in this one.
        checkpoint_every, keep_checkpoints: in updates; how many are kept.
        clip_grad: largest norm of all gradients together; None: no limit.
        micro_batch: images per forward and backward pass.
        rescale_momentum: at a step the momentum buffers shrink with the rate (published, METHOD section 7).
        reduction: whether an update follows the sum or the mean of its images' gradients.
        optimizer: sgd (published); adamw reads no momentum from the groups.
        log_every: updates averaged into one line of log.jsonl.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    workers: int = 2
    seed: int = 0
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    clip_grad: float | None = None
    micro_batch: int = 1
    rescale_momentum: bool = True
    reduction: Literal["sum", "mean"] = "sum"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    log_every: int = 10


def learning_factor(schedule: Schedule, update: int) -> float:
    """What the learning rates are multiplied by in ``update`` (from 0)."""
    factor = schedule.gamma ** sum(at <= update for at in schedule.steps)
    if update < schedule.warmup_updates:
        done = update / schedule.warmup_updates
        factor *= schedule.warmup_factor * (1 - done) + done
    return factor
