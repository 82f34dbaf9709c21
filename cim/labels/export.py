"""Pseudo labels: detections on training photos as COCO json that any mask detector trains on (METHOD section 8).

The file is ordinary COCO with ``score`` on every annotation. Areas are mask pixels, boxes are the masks' own
(xywh, whole pixels), as published. Images are written first and annotations stream after them, so that memory stays
flat. What the labels were made with stands under ``info``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from cim.config.run_paths import RunPaths
from cim.config.schema import Config, DataConfig, ExportConfig
from cim.core.errors import CimError
from cim.core.files import atomic
from cim.core.run_lengths import as_rle
from cim.core.types import RawRle, Rle
from cim.datasets.base import Dataset

RleKind = Literal["compressed", "uncompressed"]
NAME = "msrcnn_pseudo_label"


def label_path(config: Config, split: str, round_two: bool = False) -> Path:
    """Where the labels of a split go before thresholding; those of another split than training's in a folder."""
    folder = RunPaths(config).pseudo_labels
    folder = folder if split == config.data.train_split else folder / split
    return folder / f"{NAME}{'_round2' if round_two else ''}.json"


def chosen_path(labels: Path, options: ExportConfig) -> Path:
    """Name of the thresholded copy: ..._0.3.json, or ..._q0.3.json for a quantile."""
    mark = "q" if options.threshold_kind == "quantile" else ""
    return labels.with_name(f"{labels.stem}_{mark}{options.threshold:g}.json")


def image_root(data: DataConfig, dataset: Dataset) -> Path:
    """Folder that ``file_name`` in the labels is relative to.

    Raises:
        CimError: no photos.
    """
    if not len(dataset):
        raise CimError("no photos to label", found=f"an empty data set ({dataset.name})")
    return Path(data.images) if data.dataset == "folder" and data.images else dataset[0].path.parent


def of_the_tags(images: Iterable[list[dict[str, Any]]], dataset: Dataset) -> Iterator[list[dict[str, Any]]]:
    """Results of the classes that each image is said to show, out of those of all classes.

    The published order: an image's detections of all classes compete for its 100 places first.
    """
    allowed = {record.image_id: {dataset.category_ids[k] for k in record.tags} for record in dataset}
    for results in images:
        yield [result for result in results if result["category_id"] in allowed[result["image_id"]]]


def write_labels(
    path: str | Path,
    dataset: Dataset,
    images: Iterable[list[dict[str, Any]]],
    root: Path,
    *,
    rle: RleKind = "compressed",
    info: dict[str, Any] | None = None,
) -> int:
    """Labels of a data set from its detections, image after image; how many there are.

    Images whose ids are no integers (file names) are numbered from 1, because other programs expect numbers; the
    original is kept as ``source_id``.

    Args:
        images: COCO results of one image after the other (``cim.inference.detections.select_dataset``).
        root: see :func:`image_root`.
        rle: uncompressed is the published form; compressed is several times smaller.

    Raises:
        CimError: the file cannot be written.
    """
    records = {record.image_id: record for record in dataset}
    plain = all(isinstance(image_id, int) for image_id in records)
    number = {image_id: image_id if plain else n for n, image_id in enumerate(records, 1)}
    listed = []
    for image_id, record in records.items():
        entry = {"id": number[image_id], "file_name": _relative(record.path, root)}
        entry |= {"height": int(record.size[0]), "width": int(record.size[1])}
        listed.append(entry if plain else {**entry, "source_id": image_id})
    categories = _categories(dataset)
    head = {"info": {"description": "CIM pseudo labels", "image_root": str(root.resolve()), **(info or {})}}
    written = 0
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        opening = json.dumps({**head, "categories": categories, "images": listed})
        file.write(opening[:-1] + ', "annotations": [')
        for results in tqdm(images, total=len(dataset), desc="pseudo labels", unit="image"):
            for result in results:
                written += 1
                size = records[result["image_id"]].size
                line = annotation(result, written, number[result["image_id"]], size, rle)
                file.write((",\n" if written > 1 else "\n") + json.dumps(line))
        file.write("\n]}\n")
    return written


def annotation(
    result: dict[str, Any], number: int, image_id: int | str, size: tuple[int, int], rle: RleKind
) -> dict[str, Any]:
    """One detection as the published program writes it.

    Args:
        number: id of the annotation, from 1.
        size: (H, W) of the photo.

    Raises:
        CimError: a mask of another size.
    """
    mask = result["segmentation"]
    if tuple(mask["size"]) != tuple(size):
        raise CimError(
            f"detections of image {image_id} on another size of the photo", expected=size, found=mask["size"]
        )
    return {
        "id": number,
        "image_id": image_id,
        "category_id": result["category_id"],
        "iscrowd": 0,
        "area": int(coco_mask.area(mask)),
        "bbox": [int(side) for side in coco_mask.toBbox(mask)],
        "segmentation": mask if rle == "compressed" else uncompressed(mask),
        "width": int(size[1]),
        "height": int(size[0]),
        "score": result["score"],
        **({"known": True} if result.get("known") else {}),
        **{key: result[key] for key in ("members", "certain") if key in result},
    }


def uncompressed(rle: Rle) -> RawRle:
    """COCO run lengths as a list: of background and mask pixels in turn, column by column."""
    flat = coco_mask.decode(rle).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return {"size": [int(n) for n in rle["size"]], "counts": runs.tolist()}


def choose(content: dict[str, Any], options: ExportConfig) -> dict[str, Any]:
    """The labels worth training on, annotation ids counted anew from 1.

    In this order: areas below ``min_area`` pixels go; mask NMS per image and class; the threshold (a score, or per
    class the share of instances to leave out); with ``keep_best_per_tag`` every class of an image keeps its best.
    With ``doubtful``, what might be an instance as well stays as a crowd, an area where nothing is known: instances
    below the threshold with that share of the best score of their class in their image, and chosen ones inside
    which two separate regions score that share of theirs (they may be several, ``members``).
    Instances of classes of which is known how many there are (``known``) stay whatever their size, overlap and score.
    ``scores``: keep them; "weight" adds ``weight``, the score divided by the best of its class; "drop" removes them.

    Args:
        content: as :func:`write_labels` wrote it (``cim.labels.label_files.read_labels``); not changed.
    """
    told = [a for a in content["annotations"] if a.get("known")]
    found = [a for a in content["annotations"] if a["area"] >= max(options.min_area, 1) and not a.get("known")]
    if options.mask_nms is not None:
        found = _mask_nms(found, options.mask_nms)
    limits = _limits(found, options)
    kept = {id(a) for a in found if a["score"] >= limits[a["category_id"]]}
    if options.keep_best_per_tag:
        kept |= {id(max(group, key=lambda a: a["score"])) for group in _groups(found).values()}
    kept |= {id(a) for a in told}
    if options.doubtful is None:
        chosen = [dict(a) for a in content["annotations"] if id(a) in kept]
    else:
        chosen = _with_doubtful([a for a in content["annotations"] if a["area"]], kept, options.doubtful)
    _rescore(chosen, options.scores)
    for number, line in enumerate(chosen, 1):
        line["id"] = number
    images = content["images"]
    if options.empty_images == "drop":
        shown = {a["image_id"] for a in chosen}
        images = [image for image in images if image["id"] in shown]
    info = {**content.get("info", {}), "export": options.model_dump()}
    return {**content, "info": info, "images": images, "annotations": chosen}


def _with_doubtful(found: list[dict[str, Any]], kept: set[int], share: float) -> list[dict[str, Any]]:
    best = {key: max(a["score"] for a in group) for key, group in _groups(found).items()}
    chosen = []
    for line in found:
        doubtful = line["score"] >= share * best[line["image_id"], line["category_id"]]
        if id(line) in kept:
            chosen.append({**line, "iscrowd": int(line.get("members", 0) >= share and not line.get("known"))})
        elif doubtful:
            chosen.append({**line, "iscrowd": 1})
    return chosen


def _limits(found: Sequence[dict[str, Any]], options: ExportConfig) -> dict[int, float]:
    """Smallest score to keep, by category."""
    scores = defaultdict(list)
    for line in found:
        scores[line["category_id"]].append(line["score"])
    if options.threshold_kind == "quantile":
        return {c: float(np.quantile(values, options.threshold)) for c, values in scores.items()}
    return dict.fromkeys(scores, options.threshold)


def _mask_nms(found: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Without those that overlap a better one of their image and class by more than ``limit`` (mask IoU)."""
    kept: set[int] = set()
    for group in _groups(found).values():
        group = sorted(group, key=lambda a: -a["score"])
        rles = [as_rle(a["segmentation"], (a["height"], a["width"])) for a in group]
        iou = np.asarray(coco_mask.iou(rles, rles, [0] * len(rles)))
        alive: list[int] = []
        for k in range(len(group)):
            if not len(alive) or iou[k, alive].max() <= limit:
                alive.append(k)
        kept |= {id(group[k]) for k in alive}
    return [a for a in found if id(a) in kept]


def _rescore(lines: list[dict[str, Any]], kind: str) -> None:
    if kind == "weight":
        best: dict[int, float] = defaultdict(float)
        for line in lines:
            best[line["category_id"]] = max(best[line["category_id"]], line["score"])
        for line in lines:
            line["weight"] = line["score"] / best[line["category_id"]] if best[line["category_id"]] else 0.0
    elif kind == "drop":
        for line in lines:
            line.pop("score", None)


def _groups(lines: Iterable[dict[str, Any]]) -> dict[tuple[int | str, int], list[dict[str, Any]]]:
    """By image and class."""
    groups: dict[tuple[int | str, int], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["image_id"], line["category_id"]].append(line)
    return groups


def _categories(dataset: Dataset) -> list[dict[str, Any]]:
    pairs = zip(dataset.category_ids, dataset.classes, strict=True)
    return [{"id": int(number), "name": name, "supercategory": "none"} for number, name in pairs]


def _relative(path: Path, root: Path) -> str:
    """With forward slashes; a photo outside the folder keeps its whole path. Links keep their own names: two may lead
    to one file."""
    folder, base = path.parent.resolve(), root.resolve()
    whole = folder / path.name
    return whole.relative_to(base).as_posix() if whole.is_relative_to(base) else str(whole)
