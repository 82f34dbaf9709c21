"""One training loop for every network here (CIM, PRM, Mask R-CNN): plain PyTorch, exactly resumable.

The images come as one endless, numbered sequence: position p of it and the seed decide which image is read,
how it is augmented and what every random draw of its step gives. Nothing depends on workers, on processes or
on when the run was last killed, so that there is no generator state to keep.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cim.core.errors import CimError
from cim.engine import distributed
from cim.engine.checkpoints import Checkpoints, check_same_run, load_checkpoint, save_checkpoint
from cim.engine.held_out import HeldOut, Patience
from cim.engine.interrupts import polite_stop
from cim.engine.loader import Source
from cim.engine.run_logger import describe_run
from cim.engine.schedule import FitOptions, Schedule, learning_factor
from cim.engine.trainer import StepFn, Trainer

__all__ = ["FitOptions", "Schedule", "Source", "StepFn", "fit", "learning_factor", "load_checkpoint", "signature_of"]

logger = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    source: Source,
    step: StepFn,
    *,
    param_groups: list[dict[str, Any]],
    schedule: Schedule,
    options: FitOptions,
    run_dir: Path,
    device: str | torch.device,
    meta: dict[str, Any],
    on_update: Callable[[int, nn.Module], None] | None = None,
    held_out: HeldOut | None = None,
) -> Path:
    """Train; continue where a killed run stopped; return at once when the run is complete.

    A complete run leaves ``model`` as it was given: take the weights from the returned file.

    Args:
        model: put into train mode; parts that stay frozen must see to that themselves.
        param_groups: groups with ``params``, ``lr``, ``momentum``, ``weight_decay``.
        run_dir: gets checkpoints/, final.pth (``meta`` and ``model``), log.jsonl, tensorboard/, config.yaml,
            environment.json.
        meta: JSON-able; "kind", "classes", "config"; "settings", if given, are compared when a run continues.
        on_update: called after every update with its number from 1, on the main process only.
        held_out: images that decide when the rate falls; ``schedule`` then says what is planned, for the warm-up and
            the proportions of its parts. Looked at by the main process.

    Returns:
        run_dir / "final.pth".

    Raises:
        CimError: the run was made with other settings or another network; a loss or gradient is not finite
            (image ids and losses are named); no image has anything to learn from; the disk cannot be written
            at the start or at the very end.
        KeyboardInterrupt: after SIGTERM or Ctrl-C; the state is saved first.
    """
    run_dir = Path(run_dir)
    if not len(source):
        raise CimError("no images to train on", found="an empty data set")
    with distributed.session(device) as device, polite_stop() as stopping:
        patience = None if held_out is None else held_out.patience
        signature = signature_of(param_groups, len(source), schedule, options, meta, patience)
        if distributed.from_main(distributed.is_main() and is_finished(run_dir, signature)):
            logger.info("already trained: %s", run_dir / "final.pth")
            return run_dir / "final.pth"
        meta = {**meta, "signature": signature}
        run = Trainer(model, step, param_groups, schedule, options, device, held_out)
        checkpoints = Checkpoints(run_dir / "checkpoints", options.keep_checkpoints)
        if distributed.is_main():
            run.restore(checkpoints.latest(), signature, checkpoints.folder)
            describe_run(run_dir, meta, device)
        run.stand(*distributed.from_main((run.update, run.used, run.looks)))
        distributed.share_state(model, run.optimizer, run.scaler)
        run.train(source, meta, run_dir, checkpoints, stopping, on_update)
        if distributed.is_main():
            save_checkpoint(run_dir / "final.pth", {"meta": meta, "model": model.state_dict()})
        distributed.wait()
    return run_dir / "final.pth"


def signature_of(
    param_groups: list[dict[str, Any]],
    images: int,
    schedule: Schedule,
    options: FitOptions,
    meta: dict[str, Any],
    patience: Patience | None = None,
) -> dict[str, Any]:
    """What must be equal for a run to be continued or taken as done; arguments as of :func:`fit`."""
    groups = [
        {k: v for k, v in group.items() if k != "params"} | {"tensors": len(group["params"])} for group in param_groups
    ]
    keep = ("precision", "seed", "optimizer", "clip_grad", "micro_batch", "rescale_momentum", "reduction")
    return {
        "kind": meta.get("kind"),
        "classes": list(meta.get("classes", [])),
        "images": images,
        "groups": groups,
        "schedule": {**asdict(schedule), "steps": list(schedule.steps)},
        **{name: getattr(options, name) for name in keep},
        **({"settings": meta["settings"]} if "settings" in meta else {}),
        **({} if patience is None else {"held_out": asdict(patience)}),
    }


def is_finished(run_dir: Path, signature: dict[str, Any]) -> bool:
    """Whether training of this :func:`signature_of` is complete there.

    Raises:
        CimError: what is complete there had another one, or is damaged.
    """
    final = run_dir / "final.pth"
    if not final.is_file():
        return False
    try:
        state = load_checkpoint(final, lazy=True)
    except CimError as error:
        fix = "delete it; the same command makes it again from the last checkpoint"
        raise CimError(error.message, path=final, fix=fix) from error
    check_same_run(state["meta"].get("signature", {}), signature, run_dir)
    return True
