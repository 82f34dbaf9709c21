"""Training Mask R-CNN on pseudo labels; ``cim.mask_rcnn.detect`` then finds instances without any proposals."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from cim.config.device import resolve_device
from cim.config.run_paths import RunPaths
from cim.config.schema import Config, RefineConfig
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.types import Rle
from cim.engine.fit import FitOptions, Schedule, fit
from cim.labels.label_files import read_labels
from cim.mask_rcnn.pixels import as_tensor, mask_boxes, resized, target_size
from cim.models.mask_rcnn import build_mask_rcnn
from cim.training.lengths import Length

logger = logging.getLogger(__name__)

STEP = 0.8  # share of the updates after which the rate falls, where a rule sets their number


@dataclass(frozen=True)
class LabelledPhoto:
    """One photo with its instances.

    Attributes:
        rles: compressed run lengths; labels: 1..C; weights: 0..1.
    """

    image_id: int | str
    path: Path
    rles: tuple[Rle, ...]
    labels: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class LabelSource:
    """Photos of a label file, resized, half of them mirrored.

    Attributes:
        weighted: give instances their weights.
    """

    photos: tuple[LabelledPhoto, ...]
    min_side: int
    max_side: int
    flip: bool = True
    weighted: bool = False

    def __len__(self) -> int:
        return len(self.photos)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any] | None:
        """``image_id``, ``image`` float32 [3, h, w] 0..1, ``target`` as torchvision wants it; None when no instance
        is left after resizing.

        Raises:
            CimError: the photo is missing or damaged, or not of the size that the labels say.
        """
        photo = self.photos[index]
        pixels = read_photo(photo.path)
        if list(pixels.shape[:2]) != list(photo.rles[0]["size"]):
            raise CimError(
                "photo of another size than its labels",
                path=photo.path,
                expected=photo.rles[0]["size"],
                found=list(pixels.shape[:2]),
            )
        flip = self.flip and bool(rng.random() < 0.5)
        size = target_size(pixels.shape[:2], self.min_side, self.max_side)
        masks = np.stack([resized(coco_mask.decode(rle), size, cv2.INTER_NEAREST) for rle in photo.rles])
        pixels = resized(pixels, size, cv2.INTER_AREA if size[0] < pixels.shape[0] else cv2.INTER_LINEAR)
        if flip:
            pixels, masks = pixels[:, ::-1], masks[:, :, ::-1]
        boxes, good = mask_boxes(masks)
        if not good.any():
            return None
        target = {
            "boxes": torch.from_numpy(boxes[good]),
            "labels": torch.tensor(photo.labels)[torch.from_numpy(good)],
            "masks": torch.from_numpy(np.ascontiguousarray(masks[good])),
        }
        if self.weighted:
            target["weights"] = torch.tensor(photo.weights, dtype=torch.float32)[torch.from_numpy(good)]
        return {"image_id": photo.image_id, "image": as_tensor(pixels), "target": target}


def open_labels(
    path: str | Path, images: str | Path | None = None
) -> tuple[tuple[LabelledPhoto, ...], tuple[str, ...]]:
    """Photos that have instances, and the class names, from COCO json.

    Crowds and instances without pixels are left out, and so are photos without instances: that nothing was found
    there does not say that nothing is. ``weight``, else ``score`` (else 1) becomes the weight.

    Args:
        images: folder of the photos; None: what the file says (``info.image_root``), else the file's own folder.

    Raises:
        CimError: damaged file, no usable instance, photos that are not there (how many, and the first).
    """
    content = read_labels(path)
    root = Path(images) if images else Path(content.get("info", {}).get("image_root") or Path(path).parent)
    classes = sorted(content["categories"], key=lambda c: c["id"])
    number = {c["id"]: k for k, c in enumerate(classes, 1)}
    members: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    left_out: Counter[str] = Counter()
    for line in content["annotations"]:
        if line["iscrowd"]:
            left_out["crowds"] += 1
        elif not coco_mask.area(line["segmentation"]):
            left_out["without pixels"] += 1
        else:
            members[line["image_id"]].append(line)
    photos = tuple(
        LabelledPhoto(
            image["id"],
            root / image["file_name"],
            tuple(a["segmentation"] for a in members[image["id"]]),
            tuple(number[a["category_id"]] for a in members[image["id"]]),
            tuple(float(min(max(a.get("weight", a["score"]), 0.0), 1.0)) for a in members[image["id"]]),
        )
        for image in content["images"]
        if members[image["id"]]
    )
    _check_photos(photos, path, root)
    _tell(photos, [c["name"] for c in classes], len(content["images"]), left_out)
    return photos, tuple(str(c["name"]) for c in classes)


def _check_photos(photos: Sequence[LabelledPhoto], path: str | Path, root: Path) -> None:
    if not photos:
        raise CimError("no usable instance in these labels", path=path, expected="masks with pixels that are no crowds")
    missing = [photo.path for photo in photos if not photo.path.is_file()]
    if missing:
        raise CimError(
            f"{len(missing)} of {len(photos)} labelled photos are missing, the first",
            path=missing[0],
            expected=f"photos under {root}",
            fix="--images FOLDER",
        )


def _tell(photos: Sequence[LabelledPhoto], classes: Sequence[str], images: int, left_out: Counter[str]) -> None:
    counts = Counter(label for photo in photos for label in photo.labels)
    logger.info("%d instances on %d of %d photos", sum(counts.values()), len(photos), images)
    for what, count in left_out.items():
        logger.warning("%d annotations left out: %s", count, what)
    without = [name for k, name in enumerate(classes, 1) if not counts[k]]
    if without:
        logger.warning("classes without any label, which will never be found: %s", ", ".join(without))


def refine_step(
    model: nn.Module, samples: list[dict[str, Any]], generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Torchvision's five losses; it draws its regions with the global generator, which the engine seeds."""
    losses = model([sample["image"] for sample in samples], [sample["target"] for sample in samples])
    return losses, {"instances": sum(len(sample["target"]["labels"]) for sample in samples)}


def train_mask_rcnn(config: Config, labels: Path, images: Path | None = None, run_dir: Path | None = None) -> Path:
    """Train on a label file, or continue; the finished checkpoint.

    Raises:
        CimError: see :func:`open_labels` and :func:`cim.engine.fit.fit`.
    """
    refine = config.refine
    photos, classes = open_labels(labels, images)
    source = LabelSource(photos, refine.min_side, refine.max_side, refine.flip, refine.score_weighted)
    torch.manual_seed(refine.seed)
    model = build_mask_rcnn(refine.backbone, len(classes), refine.weights, refine.min_side, refine.max_side)
    same = ("backbone", "min_side", "max_side", "flip", "score_weighted")
    return fit(
        model,
        source,
        refine_step,
        param_groups=_param_groups(model, refine),
        schedule=schedule_of(refine, [sorted(set(photo.labels)) for photo in photos]),
        options=FitOptions(
            precision=refine.precision,
            workers=refine.workers,
            seed=refine.seed,
            checkpoint_every=refine.checkpoint_every,
            clip_grad=refine.clip_grad,
            micro_batch=refine.micro_batch,
            rescale_momentum=False,
            reduction="mean",
            optimizer=refine.optimizer,
        ),
        run_dir=run_dir or RunPaths(config).refine_dir,
        device=resolve_device(config.device),
        meta={
            "kind": "mask_rcnn",
            "classes": list(classes),
            "config": config.model_dump(mode="json"),
            "settings": {name: getattr(refine, name) for name in same},
        },
    )


def schedule_of(refine: RefineConfig, labels: Sequence[Sequence[int]] = ()) -> Schedule:
    """The engine's schedule of a config; with ``refine.epochs``, for photos with labels of these classes."""
    updates, steps = refine.updates, refine.step
    if refine.epochs is not None:
        length = Length(refine.epochs, step=STEP, stretch=refine.stretch)
        updates = length.updates(labels, refine.images_per_update)
        steps = length.steps(updates)
        logger.info("Mask R-CNN: %d updates of %d photos", updates, refine.images_per_update)
    return Schedule(refine.images_per_update, updates, steps, 0.1, refine.warmup_updates, warmup_factor=1e-3)


def _param_groups(model: nn.Module, refine: RefineConfig) -> list[dict[str, Any]]:
    momentum = {"momentum": refine.momentum} if refine.optimizer == "sgd" else {}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trunk = [p for name, p in trained if name.startswith("backbone.trunk.")]
    rest = [p for name, p in trained if not name.startswith("backbone.trunk.")]
    rates = ((trunk, refine.lr * refine.trunk_lr_factor), (rest, refine.lr))
    return [{"params": p, "lr": rate, "weight_decay": refine.weight_decay, **momentum} for p, rate in rates if p]
