"""Instance masks on any photo with a trained network: no annotations, no prepared files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask

from cim.config.build import proposer_options
from cim.config.device import resolve_device
from cim.config.schema import Config
from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.core.regions import RegionSet
from cim.core.run_lengths import mask_areas
from cim.core.types import Instances
from cim.engine.checkpoints import load_checkpoint
from cim.inference.detections import Selection
from cim.inference.scores import Trained, score_proposals, trained_model
from cim.inference.selection import select
from cim.proposals.stage import Proposer, open_proposer

Photo = str | Path | np.ndarray | Image.Image
# (photo uint8 [H, W, 3], proposals or None, classes 0..C-1 or None, score threshold) -> instances
Detector = Callable[[np.ndarray, RegionSet | None, Sequence[int] | None, float], Instances]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Instances found on one photo, best first.

    Attributes:
        image: uint8 [H, W, 3], the photo, upright.
        instances: masks as run lengths, boxes (float32 [n, 4], xyxy, exclusive, pixels), class indices, scores.
        classes: names of all classes of the network.
    """

    image: np.ndarray
    instances: Instances
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.instances)

    @cached_property
    def masks(self) -> np.ndarray:
        """bool [n, H, W]."""
        if not len(self):
            return np.zeros((0, *self.image.shape[:2]), bool)
        return np.moveaxis(coco_mask.decode(self.instances.rles), 2, 0).astype(bool)

    @property
    def boxes(self) -> np.ndarray:
        """float32 [n, 4], xyxy, exclusive, pixels."""
        return self.instances.boxes

    @property
    def labels(self) -> list[str]:
        """n class names."""
        return [self.classes[k] for k in self.instances.class_ids]

    @property
    def scores(self) -> np.ndarray:
        """float32 [n]."""
        return self.instances.score

    def to_coco(self, image_id: int | str = 1) -> list[dict[str, Any]]:
        """COCO annotations with ``score``; class c has category id c + 1."""
        found = self.instances
        areas = mask_areas(found.rles).tolist()
        return [
            {
                "image_id": image_id,
                "category_id": int(class_id) + 1,
                "segmentation": rle,
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "area": int(area),
                "iscrowd": 0,
                "score": float(score),
            }
            for class_id, rle, (x1, y1, x2, y2), area, score in zip(
                found.class_ids, found.rles, found.boxes, areas, found.score, strict=True
            )
        ]

    def overlay(self) -> np.ndarray:
        """The photo with masks, class names and scores painted on it, uint8 [H, W, 3]."""
        from cim.pictures.visualize import draw_instances

        found = self.instances
        return draw_instances(self.image, found.rles, self.labels, found.score.tolist(), found.class_ids.tolist())


@dataclass(frozen=True)
class Predictor:
    """A trained network with its classes; made by :func:`load_model`."""

    classes: tuple[str, ...]
    detector: Detector

    def predict(
        self,
        image: Photo,
        tags: Sequence[str | int] | None = None,
        regions: RegionSet | np.ndarray | None = None,
        score_threshold: float = 0.3,
    ) -> Prediction:
        """Instances of one photo.

        Args:
            image: a file, a PIL image, or uint8 [H, W, 3] RGB (also [H, W], grey).
            tags: only these classes (names or indices), when the user knows what is in the picture.
            regions: proposals to choose from: a RegionSet or masks [N, H, W]; None: the built-in ones.
            score_threshold: only instances that score more.

        Raises:
            CimError: unreadable photo, unknown class, or proposals of another size.
        """
        photo = as_photo(image)
        chosen = None if tags is None else class_indices(tags, self.classes)
        return Prediction(
            photo, self.detector(photo, _as_regions(regions, photo), chosen, score_threshold), self.classes
        )


def load_model(path: str | Path, device: str = "auto", weights: str | Path | None = None) -> Predictor:
    """A network from a checkpoint of ``cim train`` or ``cim refine``.

    Args:
        path: the file, or the folder of a run.
        device: "auto" (CUDA when present), "cpu", "cuda", ...
        weights: where the ImageNet weights of the proposals' trunk are now (CIM networks; default: where they were).

    Raises:
        CimError: no such file, not a checkpoint, or of a kind that does not detect.
    """
    path = Path(path)
    if path.is_dir():
        path = next((p for p in (path / "final.pth", path / "train" / "final.pth") if p.is_file()), path / "final.pth")
    state = load_checkpoint(path)
    kind = state["meta"].get("kind")
    if kind not in _DETECTORS:
        raise CimError("not a network that finds instances", path=path, expected=" or ".join(_DETECTORS), found=kind)
    if weights is not None:
        state["meta"]["config"]["proposals"]["weights"] = str(weights)
    classes = tuple(str(name) for name in state["meta"].get("classes", ()))
    return Predictor(classes, _DETECTORS[kind](state, path, resolve_device(device)))


def as_photo(image: Photo) -> np.ndarray:
    """uint8 [H, W, 3] RGB of whatever a photo comes as.

    Raises:
        CimError: unreadable file, or an array of another shape or type.
    """
    if isinstance(image, str | Path):
        return read_photo(image)
    if isinstance(image, Image.Image):
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    array = np.asarray(image)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise CimError("not a photo", expected="uint8 [H, W, 3]", found=f"{array.dtype} {list(array.shape)}")
    return np.ascontiguousarray(array)


def class_indices(tags: Sequence[str | int], classes: Sequence[str]) -> list[int]:
    """Indices 0..C-1 of class names or indices.

    Raises:
        CimError: unknown class.
    """
    indices = []
    for tag in [tags] if isinstance(tags, str) else tags:
        index = classes.index(tag) if tag in classes else tag
        if not isinstance(index, int | np.integer) or not 0 <= index < len(classes):
            raise CimError("unknown class", expected=f"one of {', '.join(classes)}", found=tag)
        indices.append(int(index))
    return sorted(set(indices))


def make_proposer(config: Config, device: torch.device) -> Proposer:
    """The built-in proposals with the settings that the network was trained with.

    Raises:
        CimError: the network was trained on proposals that this project cannot make by itself.
    """
    settings = config.proposals
    if settings.method != "grouping":
        raise CimError(
            f"this network was trained on {settings.method} proposals", fix="pass regions= to predict, or retrain"
        )
    return open_proposer(proposer_options(settings), str(device))


def _as_regions(regions: RegionSet | np.ndarray | None, photo: np.ndarray) -> RegionSet | None:
    if regions is None:
        return None
    if not isinstance(regions, RegionSet):
        if np.ndim(regions) != 3:
            raise CimError("not proposals", expected="RegionSet or masks [N, H, W]", found=list(np.shape(regions)))
        regions = RegionSet.from_masks(np.asarray(regions))
    if regions.size != photo.shape[:2]:
        raise CimError(
            "proposals of another size than the photo", expected=list(photo.shape[:2]), found=list(regions.size)
        )
    return regions


@dataclass(frozen=True, eq=False)
class _CimDetector:
    trained: Trained
    device: torch.device

    @cached_property
    def propose(self) -> Proposer:
        return make_proposer(self.trained.config, self.device)

    def __call__(
        self, photo: np.ndarray, regions: RegionSet | None, tags: Sequence[int] | None, threshold: float
    ) -> Instances:
        config = self.trained.config
        regions = self.propose(photo) if regions is None else regions
        scores = score_proposals(
            self.trained.model,
            photo,
            regions,
            num_classes=len(self.trained.classes),
            sides=config.infer.sides,
            flip=config.infer.flip,
            device=self.device,
            max_proposals=config.infer.max_proposals,
        )
        settings = vars(Selection.of(config.infer)) | {"score_threshold": threshold}
        return select(regions, scores, "photo", **settings, tags=tags)


def _cim(state: dict[str, Any], path: Path, device: torch.device) -> Detector:
    return _CimDetector(trained_model(state, path, device), device)


def _mask_rcnn(state: dict[str, Any], path: Path, device: torch.device) -> Detector:
    from cim.mask_rcnn.detect import load_detector  # needed for these checkpoints only

    return load_detector(state, path, device)


_DETECTORS: dict[str, Callable[[dict[str, Any], Path, torch.device], Detector]] = {"cim": _cim, "mask_rcnn": _mask_rcnn}
