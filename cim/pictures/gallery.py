"""Which photos a report shows, and the pictures of them as data URIs within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.photo import read_photo
from cim.evaluation.diagnosis import diagnose_image
from cim.pictures.photo_set import ImageId, PhotoSet, draw_entries
from cim.pictures.visualize import shrink

_SIDE = 520  # long side of an inlined panel, pixels
_WEBP_QUALITY = 76
LETTERING = 1.6  # on the page the panels are about half as large


@dataclass
class Budget:
    """Bytes that pictures may still take."""

    left: int = 5_500_000

    def inline(self, image: np.ndarray, side: int = _SIDE) -> str | None:
        """A data URI of the picture (uint8 [H, W, 3]) as WebP; None when the budget is spent."""
        buffer = io.BytesIO()
        Image.fromarray(shrink(image, side)).save(buffer, format="WEBP", quality=_WEBP_QUALITY)
        uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        if len(uri) > self.left:
            return None
        self.left -= len(uri)
        return uri


@dataclass(frozen=True)
class Scored:
    """How well one photo is detected; ``found`` are its best detections, as many as it has instances."""

    image_id: ImageId
    quality: float
    found: list[dict[str, Any]] = field(repr=False)
    truth: list[dict[str, Any]] = field(repr=False)


def rank_photos(photo_set: PhotoSet, found: dict[ImageId, list[dict[str, Any]]]) -> list[Scored]:
    """Photos with instances, best first, by :func:`image_quality` of as many detections as there are instances."""
    ranked = []
    for image_id in tqdm(photo_set.photos, desc="report: compare photos", unit="image"):
        truth = [a for a in photo_set.truth.by_image.get(image_id, []) if not a["iscrowd"]]
        if truth:
            best = found.get(image_id, [])[: len(truth)]
            ranked.append(Scored(image_id, image_quality(best, truth), best, truth))
    return sorted(ranked, key=lambda scored: (-scored.quality, -len(scored.truth)))  # of equals the harder first


def image_quality(found: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]]) -> float:
    """Mean over the instances of the IoU with the detection of their class that takes them (0 if none), 0..1.

    Detections choose in their order, each the free instance it overlaps most.
    """
    if not found or not truth:
        return 0.0
    iou = coco_mask.iou([f["segmentation"] for f in found], [t["rle"] for t in truth], [0] * len(truth))
    same = np.array([f["category_id"] for f in found])[:, None] == np.array([t["category_id"] for t in truth])
    iou = np.where(same, iou, 0.0)
    total = 0.0
    for row in range(len(found)):
        column = int(iou[row].argmax())
        total += float(iou[row, column])
        iou[:, column] = 0.0
    return total / len(truth)


def choose(ranked: list[Scored], each: int, seed: int = 0) -> dict[str, list[Scored]]:
    """``each`` best, worst and random photos; no photo twice."""
    best, worst = ranked[:each], ranked[max(len(ranked) - each, each) :][::-1]
    rest = ranked[each : max(len(ranked) - each, each)]
    chosen = np.random.default_rng(seed).permutation(len(rest))[:each]
    return {"best": best, "worst": worst, "random": [rest[i] for i in chosen]}


def cards(
    photo_set: PhotoSet, chosen: dict[str, list[Scored]], budget: Budget
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """For every group the template's cards (truth, prediction, caption), and the messages of unreadable photos."""
    made: dict[str, list[dict[str, Any]]] = {}
    problems: list[str] = []
    bar = tqdm(total=sum(map(len, chosen.values())), desc="report: draw gallery", unit="image")
    for group, photos in chosen.items():
        made[group] = []
        for scored in photos:
            bar.update()
            try:
                card = _card(photo_set, scored, budget)
            except CimError as error:
                problems.append(str(error))
                continue
            if card is not None:
                made[group].append(card)
    bar.close()
    return made, problems


def _card(photo_set: PhotoSet, scored: Scored, budget: Budget) -> dict[str, Any] | None:
    photo = photo_set.photo(scored.image_id)
    panels = [
        budget.inline(draw_entries(photo, marks, photo_set.names, LETTERING)) for marks in (scored.truth, scored.found)
    ]
    if None in panels:
        return None
    kinds, fates, _ = diagnose_image(scored.found, scored.truth)
    counts = [f"{n} {kind}" for kind, n in Counter(kinds).items()]
    missed = fates.count("missed")
    return {
        "name": photo_set.photos[scored.image_id].name,
        "truth": panels[0],
        "found": panels[1],
        "quality": scored.quality,
        "kinds": ", ".join(counts + ([f"{missed} missed"] if missed else [])) or "nothing found",
    }


def inline_file(path: Path, budget: Budget, side: int) -> str | None:
    """A picture file as a data URI; errors as in ``read_photo``."""
    return budget.inline(read_photo(path), side)
