"""Photos together with their annotated and detected instances: what pictures and the report are made from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cim.core.errors import CimError
from cim.core.files import read_json
from cim.core.photo import read_photo
from cim.datasets.base import Dataset
from cim.evaluation.box_files import has_masks
from cim.evaluation.coco_results import GroundTruth, as_results, load_ground_truth, read_results
from cim.pictures.visualize import draw_instances, save_picture, side_by_side

ImageId = int | str


@dataclass(frozen=True, eq=False)
class PhotoSet:
    """Photos of a split and, when known, their annotated instances.

    Attributes:
        photos: image id -> photo.
        truth: sizes, categories and annotations; its annotations are empty when the split has no masks.
        annotated: whether the split has masks.
    """

    photos: dict[ImageId, Path]
    truth: GroundTruth
    annotated: bool

    @classmethod
    def read(cls, annotations: str | Path, images: str | Path) -> PhotoSet:
        """From a COCO json (its ``annotations`` may be missing) and the folder of its photos.

        Raises:
            CimError: not a COCO annotation file, or one that contradicts itself.
        """
        content = read_json(annotations)
        if not isinstance(content, dict):
            raise CimError("not COCO instance annotations", path=annotations, found=type(content).__name__)
        truth = replace(load_ground_truth({"annotations": [], **content}), name=str(annotations))
        try:
            photos = {image["id"]: Path(images) / image["file_name"] for image in content["images"]}
        except (KeyError, TypeError) as error:
            raise CimError("an image without a file name", path=annotations, found=repr(error)) from None
        for photo in photos.values():
            if not photo.is_relative_to(images) or ".." in photo.relative_to(images).parts:
                raise CimError(
                    "photo outside the images folder", path=annotations, found=photo, expected=f"below {images}"
                )
        return cls(photos, truth, "annotations" in content)

    @classmethod
    def of(cls, dataset: Dataset) -> PhotoSet:
        """From a data set; its annotation file is opened when it has one with masks.

        Raises:
            CimError: a damaged annotation file.
        """
        photos = {record.image_id: record.path for record in dataset}
        if dataset.annotations is not None and has_masks(read_json(dataset.annotations)):
            return cls(photos, load_ground_truth(dataset.annotations), True)
        sizes = {record.image_id: record.size for record in dataset}
        categories = dict(zip(dataset.category_ids, dataset.classes, strict=True))
        return cls(photos, GroundTruth(dataset.name, sizes, categories, []), False)

    @cached_property
    def names(self) -> dict[int, tuple[int, str]]:
        """Category id -> (class index 0..C-1, name)."""
        return {category: (k, name) for k, (category, name) in enumerate(self.truth.categories.items())}

    @cached_property
    def stems(self) -> dict[ImageId, str]:
        """See :func:`file_stems`."""
        return file_stems(self.photos)

    def results(self, path: str | Path) -> dict[ImageId, list[dict[str, Any]]]:
        """Checked detections of a COCO result file (or of annotations with scores) by image, best first.

        Raises:
            CimError: see :func:`cim.evaluation.coco_results.read_results`.
        """
        content = read_json(path, fix="cim score CONFIG")
        try:
            if isinstance(content, dict) and isinstance(content.get("annotations"), list):
                content = as_results(content)  # pseudo labels
            if not isinstance(content, list):
                raise CimError("neither results nor pseudo labels", found=type(content).__name__)
            found = read_results(content, self.truth)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CimError("not pseudo labels", path=path, found=repr(error)) from None
        except CimError as error:
            raise CimError(
                error.message, path=path, expected=error.expected, found=error.found, fix=error.fix
            ) from None
        grouped: dict[ImageId, list[dict[str, Any]]] = defaultdict(list)
        for result in found:
            grouped[result["image_id"]].append(result)
        return {image_id: sorted(marks, key=lambda mark: -mark["score"]) for image_id, marks in grouped.items()}

    def photo(self, image_id: ImageId) -> np.ndarray:
        """The photo, uint8 [H, W, 3]; errors as in :func:`read_annotated`."""
        return read_annotated(self.photos[image_id], self.truth.sizes[image_id])


def file_stems(photos: Mapping[ImageId, Path]) -> dict[ImageId, str]:
    """A distinct file name without ending for every image: the photo's own, with the id where photos share it."""
    shared = Counter(path.stem for path in photos.values())
    return {
        image_id: path.stem if shared[path.stem] == 1 else f"{path.stem}-{image_id}".replace("/", "_")
        for image_id, path in photos.items()
    }


@dataclass(frozen=True)
class Picture:
    """One picture to make: photo, its annotated (H, W), where to write, and instances as in COCO files."""

    photo: Path
    size: tuple[int, int]
    output: Path
    truth: list[dict[str, Any]] = field(default_factory=list)
    found: list[dict[str, Any]] = field(default_factory=list)


def make_picture(picture: Picture, names: dict[int, tuple[int, str]], mode: str) -> None:
    """Write one picture.

    Args:
        names: category id -> (class index, name).
        mode: "predictions", "truth", or "both" side by side.

    Raises:
        CimError: the photo cannot be read, or has another size than the annotations say.
    """
    photo = read_annotated(picture.photo, picture.size)
    panels = {"truth": picture.truth, "predictions": picture.found}
    drawn = {name: draw_entries(photo, marks, names) for name, marks in panels.items() if mode in (name, "both")}
    if mode == "both":
        save_picture(picture.output, side_by_side(drawn["truth"], drawn["predictions"], ("Ground truth", "Prediction")))
    else:
        save_picture(picture.output, drawn[mode])


def read_annotated(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The photo, uint8 [H, W, 3].

    Raises:
        CimError: unreadable, or of another size (H, W) than annotated.
    """
    photo = read_photo(path)
    if photo.shape[:2] != tuple(size):
        raise CimError("photo of another size than annotated", path=path, expected=size, found=photo.shape[:2])
    return photo


def draw_entries(
    photo: np.ndarray, entries: Sequence[dict[str, Any]], names: dict[int, tuple[int, str]], lettering: float = 1.0
) -> np.ndarray:
    """:func:`draw_instances` of what annotation and result files hold.

    Args:
        photo: uint8 [H, W, 3].
        entries: dicts with ``category_id``, ``rle`` or ``segmentation`` and, for detections, ``score``.
        names: category id -> (class index, name).
    """
    scored = bool(entries) and all("score" in entry for entry in entries)
    return draw_instances(
        photo,
        [entry["rle"] if "rle" in entry else entry["segmentation"] for entry in entries],
        labels=[names[entry["category_id"]][1] for entry in entries],
        scores=[entry["score"] for entry in entries] if scored else None,
        class_ids=[names[entry["category_id"]][0] for entry in entries],
        lettering=lettering,
    )
