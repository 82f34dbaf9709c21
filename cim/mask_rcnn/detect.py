"""Instances with a trained Mask R-CNN: on single photos, on a data set, and their numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.core.run_lengths import as_text
from cim.core.types import Instances, Rle
from cim.datasets.base import Dataset
from cim.engine.checkpoints import load_checkpoint
from cim.evaluation.box_files import Given, has_masks
from cim.evaluation.boxes import box_row
from cim.evaluation.coco_results import load_ground_truth, to_coco
from cim.evaluation.diagnosis import diagnose
from cim.evaluation.metrics import read_results
from cim.evaluation.metrics_file import Metric, add_boxes, merge_entries, metric_row, path_from
from cim.inference.detections import write_results
from cim.mask_rcnn.pixels import as_tensor, mask_boxes, resized
from cim.models.backbones import RANDOM
from cim.models.mask_rcnn import build_mask_rcnn

ROW = "CIM + Mask R-CNN"  # in metrics.json
_LARGE = 1600  # pixels; longer photos are shrunk before detection, because a float mask per instance is pasted

_NARROWEST = 32  # long side over short side; still narrower photos are widened for the network


@dataclass(frozen=True, eq=False)
class MaskDetector:
    """A trained Mask R-CNN on photos; called like every detector of ``cim.prediction.predict``."""

    model: nn.Module
    classes: tuple[str, ...]
    device: torch.device

    @torch.inference_mode()
    def __call__(
        self,
        photo: np.ndarray,
        regions: RegionSet | None = None,
        tags: Sequence[int] | None = None,
        threshold: float = 0.0,
        image_id: int | str = "photo",
    ) -> Instances:
        """Instances of a photo uint8 [H, W, 3], best first, boxes those of the masks; ``regions`` are not looked at."""
        size = photo.shape[:2]
        shrink = min(1.0, _LARGE / max(size))
        least = math.ceil(max(size) * shrink / _NARROWEST)  # the network shrinks photos once more
        small = photo
        if shrink < 1 or min(size) < least:
            small = resized(photo, tuple(max(least, round(side * shrink)) for side in size), cv2.INTER_AREA)
        found = self.model([as_tensor(small).to(self.device)])[0]
        score, class_ids = found["scores"].float().cpu().numpy(), found["labels"].cpu().numpy() - 1
        keep = score > threshold
        if tags is not None:
            keep &= np.isin(class_ids, list(tags))
        kept: list[int] = []
        rles: list[Rle] = []
        boxes: list[np.ndarray] = []
        for n in np.flatnonzero(keep):
            soft = found["masks"][int(n), 0].float().cpu().numpy()
            mask = (resized(soft, size, cv2.INTER_LINEAR) >= 0.5).astype(np.uint8)
            box, good = mask_boxes(mask[None], smallest=1)
            if good[0]:
                rle = coco_mask.encode(np.asfortranarray(mask))
                rles.append({"size": [int(s) for s in size], "counts": as_text(rle["counts"])})
                kept.append(int(n))
                boxes.append(box[0])
        index = np.array(kept, np.int64)
        return Instances(
            image_id=image_id,
            size=(int(size[0]), int(size[1])),
            class_ids=class_ids[index].astype(np.int64),
            score=score[index].astype(np.float32),
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            rles=rles,
            proposal=np.full(len(index), -1, np.int64),
        )


def load_detector(state: dict[str, Any], path: str | Path, device: torch.device) -> MaskDetector:
    """The detector of a checkpoint; nothing is downloaded.

    Raises:
        CimError: not of this kind, or weights that do not fit its own settings.
    """
    meta = state["meta"]
    if meta.get("kind") != "mask_rcnn":
        raise CimError("not a Mask R-CNN", path=path, expected="kind mask_rcnn", found=f"kind {meta.get('kind')}")
    try:
        refine = Config(**meta["config"]).refine
        classes = tuple(str(name) for name in meta["classes"])
    except (KeyError, TypeError, ValueError) as error:
        found = str(error).replace("\n", " ")
        raise CimError("checkpoint without usable settings", path=path, found=found) from None
    model = build_mask_rcnn(refine.backbone, len(classes), RANDOM, refine.min_side, refine.max_side)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise CimError("weights do not fit the network", path=path, found=str(error).split("\n")[1].strip()) from None
    return MaskDetector(model.to(device).eval(), classes, device)


def open_detector(path: Path, device: str, classes: Sequence[str]) -> MaskDetector:
    """:func:`load_detector` of a file, for a data set with these classes.

    Raises:
        CimError: also when the classes differ.
    """
    if not path.is_file():
        raise CimError("no trained Mask R-CNN here", path=path, fix="cim refine CONFIG")
    detector = load_detector(load_checkpoint(path), path, resolve_device(device))
    if detector.classes != tuple(classes):
        raise CimError(
            "network and data set have different classes", path=path, expected=list(classes), found=detector.classes
        )
    return detector


def detect_dataset(
    detector: MaskDetector, dataset: Dataset, tagged_classes_only: bool = False
) -> Iterator[list[dict[str, Any]]]:
    """COCO results of one image after the other.

    Raises:
        CimError: an unreadable photo.
    """
    for record in dataset:
        tags = record.tags if tagged_classes_only else None
        yield to_coco(detector(read_photo(record.path), None, tags, image_id=record.image_id), dataset)


def evaluate_mask_rcnn(
    config: Config, checkpoint: Path, dataset: Dataset, split: str, name: str = ROW
) -> dict[str, Any]:
    """Detections of a split beside the checkpoint, and a row in the run's metrics.json; that row.

    Raises:
        CimError: a data set without masks or boxes, or of other classes.
    """
    if dataset.annotations is None:
        raise CimError("no masks to evaluate with", fix="set data.val_annotations")
    detector = open_detector(checkpoint, config.device, dataset.classes)
    path = checkpoint.parent / "detections" / split / "results.json"
    write_results(path, detect_dataset(detector, dataset), len(dataset))
    given = Given.read(dataset.annotations, path, dict(zip(dataset.category_ids, dataset.classes, strict=True)))
    paths = RunPaths(config)
    files = {
        "results": path_from(path, paths.metrics.parent),
        "annotations": str(dataset.annotations.resolve()),
        "classes": given.classes,
    }
    settings = {"split": split, "mask_rcnn": str(checkpoint), "files": files}
    row: dict[str, Any] = {}
    if has_masks(given.truth):
        truth = load_ground_truth(dataset.annotations)
        found = read_results(path, truth)
        metric: Metric = "coco" if config.data.dataset == "coco" else "voc"
        row = metric_row(truth, found, metric, with_corloc=split == config.data.train_split)
        merge_entries(paths.diagnosis, {"rows": {name: diagnose(truth, found)}})
    else:
        objects, guesses, _ = given.boxes()
        add_boxes(row, box_row(objects, guesses))
    merge_entries(paths.metrics, {"rows": {name: row}, "settings": {name: settings}})
    return row
