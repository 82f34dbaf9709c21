"""Instances with a trained Mask R-CNN: on single photos, on a data set, and their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.types import Instances
from cim.datasets.base import Dataset
from cim.engine.checkpoints import load_checkpoint
from cim.evaluation.box_files import Given, has_masks
from cim.evaluation.boxes import box_row
from cim.evaluation.coco_results import load_ground_truth, to_coco
from cim.evaluation.diagnosis import diagnose
from cim.evaluation.metrics import read_results
from cim.evaluation.metrics_file import Metric, add_boxes, merge_entries, metric_row, path_from
from cim.inference.detections import write_results
from cim.mask_rcnn.pixels import as_tensor, for_network, found_instances, target_size
from cim.models.backbones import RANDOM
from cim.models.mask_rcnn import build_mask_rcnn

ROW = "CIM + Mask R-CNN"  # in metrics.json


@dataclass(frozen=True, eq=False)
class MaskDetector:
    """A trained Mask R-CNN on photos."""

    model: GeneralizedRCNN
    classes: tuple[str, ...]
    device: torch.device

    def __call__(
        self,
        photo: np.ndarray,
        tags: Sequence[int] | None = None,
        threshold: float = 0.0,
        image_id: int | str = "photo",
    ) -> Instances:
        """Instances of a photo uint8 [H, W, 3], best first, boxes those of the masks."""
        (found,) = self.detect([photo], [tags], threshold)
        return replace(found, image_id=image_id)

    @torch.inference_mode()
    def detect(
        self, photos: Sequence[np.ndarray], tags: Sequence[Sequence[int] | None], threshold: float
    ) -> list[Instances]:
        """The same for several photos. Those go through the network together that it pads to the same size anyhow: were
        others padded more than alone, what is found on a photo would depend on its neighbours."""
        seen = [for_network(photo) for photo in photos]
        alike: dict[tuple[int, int], list[int]] = {}
        for number, photo in enumerate(seen):
            alike.setdefault(self._padded(photo), []).append(number)
        results: dict[int, Instances] = {}
        for numbers in alike.values():
            outputs = self.model([as_tensor(seen[number]).to(self.device) for number in numbers])
            for number, output in zip(numbers, outputs, strict=True):
                boxes, labels, scores, masks = (
                    output[name].float().cpu().numpy() for name in ("boxes", "labels", "scores", "masks")
                )
                sizes = seen[number].shape[:2], photos[number].shape[:2]
                results[number] = found_instances(
                    boxes, labels - 1, scores, masks[:, 0], *sizes, tags[number], threshold
                )
        return [results[number] for number in range(len(photos))]

    def _padded(self, photo: np.ndarray) -> tuple[int, int]:
        resize = self.model.transform
        height, width = target_size(photo.shape[:2], resize.min_size[-1], resize.max_size)
        step = resize.size_divisible
        return -(-height // step) * step, -(-width // step) * step


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
        yield to_coco(detector(read_photo(record.path), tags, image_id=record.image_id), dataset)


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
