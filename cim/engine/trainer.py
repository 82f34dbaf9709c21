"""The updates of a training run: read images, add up their gradients, check, step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cim.core.errors import CimError
from cim.engine import distributed
from cim.engine.checkpoints import FRESH_RUN, Checkpoints, check_same_run
from cim.engine.held_out import HeldOut
from cim.engine.loader import Source, share, step_seed, stream
from cim.engine.read_ahead import WorkerDied
from cim.engine.run_logger import RunLogger
from cim.engine.schedule import FitOptions, Schedule, learning_factor
from cim.engine.update_stats import UpdateStats

logger = logging.getLogger(__name__)

StepFn = Callable[[Any, list[Any], torch.Generator], tuple[dict[str, Tensor], dict[str, Any]]]
"""(the model as given, samples on the device, generator on the device) -> (losses, diagnostics).

The losses are weighted, and their sum is minimised. With ``reduction="sum"`` they are sums over the given samples, with
"mean" their means. Numbers and one-element tensors among the diagnostics are logged, everything else is left alone.
"""


class Trainer:
    """Everything that changes while training."""

    def __init__(
        self,
        model: nn.Module,
        step: StepFn,
        param_groups: list[dict[str, Any]],
        schedule: Schedule,
        options: FitOptions,
        device: torch.device,
        held_out: HeldOut | None = None,
    ) -> None:
        if distributed.world() > schedule.images_per_update:
            raise CimError(
                "more processes than images per update",
                expected=f"at most {schedule.images_per_update}",
                found=distributed.world(),
                fix="start fewer processes or raise images_per_update",
            )
        self.model, self.step, self.planned, self.options, self.device = model, step, schedule, options, device
        self.held_out = held_out
        model.to(device).train()
        distributed.share_norms(model, device)
        self.optimizer = _OPTIMIZERS[options.optimizer](param_groups, lr=0.0)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
        self.stand(0, 0, [])

    def stand(self, update: int, used: int, looks: list[list[float]]) -> None:
        """Stand after so many updates and used images, and these looks at the held-out ones; what follows from them."""
        self.update, self.used, self.looks = update, used, looks
        self.schedule, self.waiting = self.planned, False  # as far as known; whether held-out images are yet to speak
        if self.held_out is not None:
            self.schedule = self.held_out.patience.settle(self.planned, looks)
            self.waiting = self.held_out.patience.turn(looks) is None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides ``meta``."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "update": self.update,
            "used": self.used,
            **({} if self.held_out is None else {"looks": self.looks}),
        }

    def restore(self, state: dict[str, Any] | None, signature: dict[str, Any], where: Path) -> None:
        """Continue from a checkpoint; None starts anew.

        Raises:
            CimError: it belongs to a run with other settings or to another network.
        """
        if state is None:
            return
        check_same_run(state["meta"].get("signature", {}), signature, where)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CimError(
                "checkpoint of another network", path=where, found=" ".join(str(error).split())[:200], fix=FRESH_RUN
            ) from error
        self.scaler.load_state_dict(state["scaler"])
        self.stand(state["update"], state["used"], state.get("looks", []))
        logger.info("continuing after update %d of %d", self.update, self.schedule.updates)

    def train(
        self,
        source: Source,
        meta: dict[str, Any],
        run_dir: Path,
        checkpoints: Checkpoints,
        stopping: threading.Event,
        on_update: Callable[[int, nn.Module], None] | None,
    ) -> None:
        """All remaining updates.

        Raises:
            KeyboardInterrupt: a process was asked to stop; the state is saved.
        """
        items = self.images(source)
        main, last, kind = distributed.is_main(), self.schedule.updates, str(meta.get("kind", "train"))
        log = RunLogger(run_dir, self.update, last, self.options.log_every, self.device, kind) if main else None
        try:
            while self.update < last:
                rate = self.set_rate()
                try:
                    stats = self.accumulate(items)
                except (WorkerDied, RuntimeError):
                    if not stopping.is_set():
                        raise
                    if main:  # the workers were told to stop, too: the update at hand is given up
                        checkpoints.save(self.update, {"meta": meta, **self.state()})
                    raise KeyboardInterrupt from None
                norm, stop = self.apply(stats, stopping.is_set(), len(source))
                self.update += 1
                if self.waiting and self.look():
                    last, items = self.schedule.updates, self.images(source)
                    if log is not None:
                        log.expect(last)
                save = self.update < last and (stop or self.update % self.options.checkpoint_every == 0)
                if log is not None:
                    log.add(stats.means(self.options.reduction), stats)
                    if save or self.update % log.every == 0 or self.update == last:
                        seen = {"held_out": sum(self.looks[-1]) / len(self.looks[-1])} if self.looks else {}
                        log.flush(self.update, lr=rate, grad_norm=norm, **seen)
                    if on_update is not None:
                        on_update(self.update, self.model)
                        self.model.train()
                    if save:
                        checkpoints.save(self.update, {"meta": meta, **self.state()})
                if stop and self.update < last:
                    distributed.wait()
                    raise KeyboardInterrupt
        finally:
            if log is not None:
                log.close()

    def look(self) -> bool:
        """Look at the held-out images if it is time; whether the rate falls from here on."""
        if self.held_out is None or self.update % self.held_out.patience.every:
            return False
        self.model.eval()
        with torch.no_grad():
            latest = distributed.from_main(self.held_out.losses(self.model) if distributed.is_main() else [])
        self.model.train()
        self.stand(self.update, self.used, [*self.looks, latest])
        if self.waiting:
            return False
        if distributed.is_main():
            text = "held-out images gain no more: the learning rate falls after update %d, %d in all"
            logger.info(text, self.update, self.schedule.updates)
        return True

    def images(self, source: Source) -> Iterator[tuple[int, Any]]:
        """(position, sample) of this process's images, from where the run stands; none that are held out while they
        decide."""
        return stream(
            self.held_out.source if self.held_out is not None and self.waiting else source,
            images_per_update=self.schedule.images_per_update,
            start=self.update,
            stop=self.schedule.updates,
            seed=self.options.seed,
            workers=self.options.workers,
        )

    def set_rate(self) -> float:
        """Learning rates of this update, momentum shrunk at a step; the first group's rate."""
        factor = learning_factor(self.schedule, self.update)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        if self.options.rescale_momentum and self.update in self.schedule.steps:
            for state in self.optimizer.state.values():
                if state.get("momentum_buffer") is not None:
                    state["momentum_buffer"].mul_(self.schedule.gamma)
        return self.rates[0] * factor

    def accumulate(self, items: Iterator[tuple[int, Any]]) -> UpdateStats:
        """Read this process's images of the update and add up their gradients."""
        stats = UpdateStats()
        self.optimizer.zero_grad(set_to_none=True)
        waiting: list[tuple[int, Any]] = []
        for _ in share(self.update, self.schedule.images_per_update):
            began = time.perf_counter()
            position, item = next(items)
            stats.wait += time.perf_counter() - began
            if isinstance(item, CimError):
                raise item
            if item is None:
                stats.skipped += 1
                continue
            waiting.append((position, item))
            if len(waiting) == self.options.micro_batch:
                self.forward_backward(waiting, stats)
                waiting = []
        if waiting:
            self.forward_backward(waiting, stats)
        return stats

    def forward_backward(self, batch: list[tuple[int, Any]], stats: UpdateStats) -> None:
        """One pass over a few images; every random draw depends on the position of the first alone."""
        seed = step_seed(self.options.seed, batch[0][0])
        torch.manual_seed(seed)  # dropout and whatever else uses the global generator
        generator = torch.Generator(device=self.device).manual_seed(seed)
        samples = [_to_device(sample, self.device) for _, sample in batch]
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.options.precision)
        with torch.autocast(self.device.type, dtype=kind, enabled=kind is not None):
            losses, diagnostics = self.step(self.model, samples, generator)
        total = sum(losses.values())
        if isinstance(total, Tensor) and total.requires_grad:
            weight = 1 if self.options.reduction == "sum" else len(batch) / self.schedule.images_per_update
            self.scaler.scale(total * weight).backward()
        stats.ids += [_image_id(sample, position) for position, sample in batch]
        stats.table.append({name: value.detach() for name, value in losses.items()})
        stats.images.append(len(batch))
        stats.diagnostics.append(diagnostics)
        stats.used += len(batch)

    def apply(self, stats: UpdateStats, stop: bool, images: int) -> tuple[float, bool]:
        """Check the losses, sum the gradients over the processes, take the step.

        Args:
            stats: of this process.
            stop: whether this process was asked to stop.
            images: size of the data set.

        Returns:
            norm of all gradients together; whether any process was asked to stop.

        Raises:
            CimError: not finite, or a whole round through the data set without anything to learn from.
        """
        bad, used, stops = distributed.sum_numbers([not stats.finite(), stats.used, stop], self.device)
        if bad:
            raise self.not_finite("loss", stats)
        self.used += int(used)
        if not self.used and (self.update + 1) * self.schedule.images_per_update >= images:
            raise CimError(
                "no image has anything to learn from", expected="tags and proposals", found=f"{images} images"
            )
        distributed.sum_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:  # all images of the update were skipped: no decay, no momentum either
            return 0.0, bool(stops)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not self.scaler.is_enabled() and not bool(norm.isfinite()):
            raise self.not_finite("gradient", stats)
        if self.options.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.options.clip_grad, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(norm), bool(stops)

    def not_finite(self, what: str, stats: UpdateStats) -> CimError:
        """The error that names images and losses of the update at hand."""
        return CimError(
            f"{what} is not finite in update {self.update + 1}",
            found=stats.describe(),
            fix="look at these images, lower the learning rate or set clip_grad; the last checkpoint is intact",
        )


_OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _to_device(inner, device) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_to_device(inner, device) for inner in value)
    return value.to(device) if hasattr(value, "to") else value


def _image_id(sample: Any, position: int) -> Any:
    if isinstance(sample, dict):
        return sample.get("image_id", f"at position {position}")
    return getattr(sample, "image_id", f"at position {position}")
