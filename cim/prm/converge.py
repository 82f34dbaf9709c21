"""From tagged photos to a response network solved on a frozen trunk, with what it tells of photos it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cim.config.schema import PRMConfig
from cim.core.errors import CimError
from cim.core.files import write_json
from cim.datasets.base import Dataset, Record
from cim.engine.checkpoints import check_same_run, load_checkpoint, save_checkpoint
from cim.evaluation.verdicts import Verdict, judge_response
from cim.prm.fit import HeldOut, cross_fit, fit_maps, pool_features
from cim.prm.network import ResponseNet
from cim.prm.photos import one_hot, photo_batches

logger = logging.getLogger(__name__)

HELD_OUT = "held_out.json"


def converge(
    net: ResponseNet, dataset: Dataset, prm: PRMConfig, run_dir: Path, device: torch.device, meta: dict[str, Any]
) -> Path:
    """Solve for the head of ``net``; ``final.pth`` and ``held_out.json`` in ``run_dir``, at once when they are there.

    Args:
        net: with its trunk's weights; left as it is.
        dataset: photos without tags are negatives of every class.
        meta: of the checkpoint; its "settings" must be those of a finished run.

    Returns:
        the checkpoint.

    Raises:
        CimError: the trunk is not frozen; unreadable photo; the folder holds a run with other settings.
    """
    if not prm.frozen_trunk:
        raise CimError("only the head of a frozen trunk can be solved for", fix="--set prm.frozen_trunk=true")
    final = run_dir / "final.pth"
    if is_solved(run_dir, meta):
        logger.info("already trained: %s", final)
        return final
    tags = torch.stack([one_hot(record, len(dataset.classes)) for record in dataset])
    pooled = pool_features(_features(net, dataset.records, prm, device), run_dir)
    seen = cross_fit(pooled.parts, tags)
    fit_maps(pooled.parts, tags, seen.decay).write_to(net.head, pooled.centre.to(device), pooled.spread.to(device))
    write_json(run_dir / HELD_OUT, describe_held_out(seen, tags, dataset.classes), indent=1)
    save_checkpoint(final, {"meta": meta, "model": net.state_dict()})
    known = seen.precision[~np.isnan(seen.precision)]
    if len(known):
        logger.info("tags of photos not seen: mean AP %.3f over %d classes", known.mean(), len(known))
    return final


def is_solved(run_dir: Path, meta: dict[str, Any]) -> bool:
    """Whether the network of this ``meta`` is there.

    Raises:
        CimError: the one that is there was made with other settings.
    """
    final = run_dir / "final.pth"
    if not final.is_file():
        return False
    check_same_run(load_checkpoint(final, lazy=True)["meta"].get("settings", {}), meta["settings"], run_dir)
    return True


def describe_held_out(seen: HeldOut, tags: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """JSON-able: how well the network tells the tags of photos it was not fitted to, and what chance would reach.

    ``average_precision`` and ``share_of_photos`` (what a network that knows nothing has) by class name; None where a
    class cannot be judged, for all photos have it.
    """
    precision = [None if np.isnan(value) else float(value) for value in seen.precision]
    known = [value for value in precision if value is not None]
    return {
        "photos": len(tags),
        "decay": seen.decay,
        "mean_average_precision": float(np.mean(known)) if known else None,
        "average_precision": dict(zip(classes, precision, strict=True)),
        "share_of_photos": dict(zip(classes, tags.mean(0).tolist(), strict=True)),
    }


def judge_held_out(told: dict[str, Any]) -> Verdict:
    """The verdict on what :func:`describe_held_out` describes."""
    classes = list(told["average_precision"])
    precision = [told["average_precision"][name] for name in classes]
    photos = [round(told["share_of_photos"][name] * told["photos"]) for name in classes]
    values = np.array([np.nan if value is None else value for value in precision])
    return judge_response(values, np.array(photos), told["photos"], classes)


@torch.inference_mode()
def _features(
    net: ResponseNet, records: Sequence[Record], prm: PRMConfig, device: torch.device, batch: int = 4
) -> Iterator[Tensor]:
    """Trunk features [B, D, h, w] of all photos in order."""
    net.to(device).eval()
    for _, images in photo_batches(records, prm.image_size, batch, prm.workers, "features"):
        yield net.trunk(images.to(device))
