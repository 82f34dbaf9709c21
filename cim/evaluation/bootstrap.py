"""Intervals of differences between runs: photos, and seeds where there are several, drawn again and again.

Paired bootstrap (Efron and Tibshirani 1993): every draw of photos is the same for both runs, so what is hard in a
photo for both cancels. A run is matched with the annotations once; a draw then only counts its photos differently
(``cim.evaluation.ranked``). In a draw without any object of a class, that class is left out of the mean.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cim.evaluation.boxes import BoxRules, Guesses, Objects, box_fates, located_of_photos, rank_class
from cim.evaluation.coco_results import GroundTruth
from cim.evaluation.diagnosis import HEADLINE_FATES, fates_of_split
from cim.evaluation.metrics import ALL_AREAS, COCO_IOUS, MAX_DETECTIONS, VOC_IOUS, as_datasets, backend_of
from cim.evaluation.ranked import COCO_RECALLS, VOC2007_RECALLS, Ranked, draw_photos, every_photo_once

Draws = NDArray[np.int64]
Values = NDArray[np.float64]
MULTI = "several: "  # before the name of a metric: on the photos with two or more instances


@dataclass(frozen=True, eq=False)
class Means:
    """Average precisions whose mean is one metric.

    Attributes:
        ranked: one per class and IoU threshold.
        recalls: where precision is read.
        absent: classes without any object in the data set, which the published mean counts as 0.
        photos: bool [I], the photos that count.
    """

    ranked: list[Ranked]
    recalls: Values
    absent: float
    photos: NDArray[np.bool_]

    def of(self, draws: Draws) -> Values:
        """Percent [R]; 0 where no class has an object."""
        drawn = draws * self.photos
        return _mean_of([ranked.average_precision(drawn, self.recalls) for ranked in self.ranked], self.absent, draws)


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares whose mean is one metric: each ``part`` of ``whole``, both int64 [I] per photo."""

    shares: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    def of(self, draws: Draws) -> Values:
        """Percent [R]; 0 where there is nothing to have a share of."""
        with np.errstate(invalid="ignore"):
            return _mean_of([(draws @ part) / (draws @ whole) for part, whole in self.shares], 0.0, draws)


def _mean_of(columns: Sequence[Values], absent: float, draws: Draws) -> Values:
    """Mean over the columns that are known, of which a share ``absent`` more counts 0."""
    if not columns:
        return np.zeros(len(draws))
    table = np.stack(columns)
    known = ~np.isnan(table)
    mean = np.where(known, table, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    return np.asarray(100.0 * mean * (1.0 - absent))


@dataclass(frozen=True, eq=False)
class Judged:
    """A run matched with the annotations: its metrics by name, each for any draw of the I photos."""

    image_ids: tuple[int | str, ...]
    metrics: dict[str, Means | Shares] = field(default_factory=dict)

    def values(self, draws: Draws) -> dict[str, Values]:
        """Every metric in percent for every draw [R, I], each [R]."""
        return {name: metric.of(draws) for name, metric in self.metrics.items()}

    def itself(self) -> dict[str, float]:
        """Every metric on the data set as it is."""
        return {name: float(v[0]) for name, v in self.values(every_photo_once(len(self.image_ids))).items()}


def judge_masks(
    truth: GroundTruth,
    found: list[dict[str, Any]],
    metric: Literal["voc", "coco"],
    score_threshold: float | None = None,
) -> Judged:
    """Mask metrics, of all photos and of those with several instances, and the fates of instances.

    Args:
        found: checked results (``read_results``).
        metric: names and thresholds of the average precisions; the sizes of COCO are left out.
        score_threshold: of the fates (``fates_of_split``).
    """
    ious = VOC_IOUS if metric == "voc" else COCO_IOUS
    matched = match_masks(truth, found, ious)  # [T][K]
    columns = {f"mAP@{iou:.2f}": [t] for t, iou in enumerate(ious)}
    if metric == "coco":
        columns = {"AP": list(range(len(ious))), "AP50": [0], "AP75": [ious.index(0.75)]}
    several = set(truth.images_with(2))
    photos = {"": np.ones(len(truth.sizes), bool), MULTI: np.array([i in several for i in truth.sizes], bool)}
    judged = Judged(tuple(truth.sizes))
    for prefix, counting in photos.items():
        for name, rows in columns.items():
            ranked = [matched[t][k] for t in rows for k in range(len(truth.categories))]
            empty = float(np.mean([not r.positives.any() for r in ranked])) if ranked else 0.0
            absent = empty if metric == "voc" and not prefix else 0.0
            judged.metrics[prefix + name] = Means(ranked, COCO_RECALLS, absent, counting)
    fates, row = (
        fates_of_split(truth, found, score_threshold=score_threshold),
        {image_id: k for k, image_id in enumerate(truth.sizes)},
    )
    of_photo = np.array([row[image_id] for image_id in fates.image_ids], np.int64)
    _add_fates(judged, "", fates.fate, of_photo)
    _add_fates(judged, "beside: ", fates.fate[fates.beside], of_photo[fates.beside])
    return judged


def judge_boxes(
    objects: Objects, guesses: Guesses, rules: BoxRules, fates: bool, score_threshold: float | None = None
) -> Judged:
    """Box mAP and CorLoc; ``fates``: and what became of the objects, judged on boxes (``box_fates``)."""
    count, classes = len(objects.image_ids), range(len(objects.classes))
    judged, every = Judged(objects.image_ids), np.ones(count, bool)
    ranked = [rank_class(objects, guesses, k, rules) for k in classes]
    judged.metrics["box_mAP"] = Means(ranked, VOC2007_RECALLS, 0.0, every)
    shows = [np.bincount(objects.photo[objects.class_ids == k], minlength=count).clip(max=1) for k in classes]
    located = [located_of_photos(objects, guesses, k, rules).astype(np.int64) * shows[k] for k in classes]
    judged.metrics["box_CorLoc"] = Shares(list(zip(located, shows, strict=True)))
    if fates:
        fate = box_fates(objects, guesses, rules, score_threshold)
        beside, counted = objects.beside_others(), ~objects.difficult
        _add_fates(judged, "", fate[counted], objects.photo[counted])
        _add_fates(judged, "beside: ", fate[beside], objects.photo[beside])
    return judged


def _add_fates(judged: Judged, prefix: str, fate: NDArray[np.str_], photo: NDArray[np.int64]) -> None:
    whole = np.bincount(photo, minlength=len(judged.image_ids))
    for name, kind in HEADLINE_FATES.items():
        part = np.bincount(photo[fate == kind], minlength=len(judged.image_ids))
        judged.metrics[prefix + name] = Shares([(part, whole)])


def match_masks(truth: GroundTruth, found: list[dict[str, Any]], ious: Sequence[float]) -> list[list[Ranked]]:
    """The COCO code's own matching (pycocotools), kept per detection: [T][K]."""
    image_ids, categories = list(truth.sizes), len(truth.categories)
    nothing = np.zeros(len(image_ids), np.int64)
    if not image_ids or not categories:
        return [[Ranked(nothing[:0], nothing[:0] > 0, nothing) for _ in range(categories)] for _ in ious]
    coco, evaluator = backend_of("pycocotools")
    truth_coco, found_coco = as_datasets(coco, truth, found, image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(truth_coco, found_coco, iouType="segm")
        evaluation.params.iouThrs = np.array(ious)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(ALL_AREAS)], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
    images = evaluation.evalImgs
    per_class = [images[k * len(image_ids) : (k + 1) * len(image_ids)] for k in range(categories)]
    columns = [_ranked(rows, len(ious)) for rows in per_class]
    return [[column[t] for column in columns] for t in range(len(ious))]


def _ranked(rows: Sequence[dict[str, Any] | None], thresholds: int) -> list[Ranked]:
    """Of one class: the COCO code's matches of every photo, in its order, at every threshold."""
    positives = np.array([0 if r is None else int((np.asarray(r["gtIgnore"]) == 0).sum()) for r in rows], np.int64)
    known = [(k, r) for k, r in enumerate(rows) if r is not None]
    score = np.concatenate([np.asarray(r["dtScores"], float) for _, r in known]) if known else np.zeros(0)
    photo = np.repeat([k for k, _ in known], [len(r["dtScores"]) for _, r in known]).astype(np.int64)
    shape = (thresholds, 0)
    hit = np.concatenate([np.asarray(r["dtMatches"]) > 0 for _, r in known], 1) if known else np.zeros(shape, bool)
    left = np.concatenate([np.asarray(r["dtIgnore"]) > 0 for _, r in known], 1) if known else np.zeros(shape, bool)
    order = np.argsort(-score, kind="mergesort")
    found = []
    for t in range(thresholds):
        kept = order[~left[t, order]]
        found.append(Ranked(photo[kept], hit[t, kept], positives))
    return found


@dataclass(frozen=True)
class Difference:
    """A metric of two methods: both values, second less first, and the interval of that (percent points)."""

    first: float
    second: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.second - self.first:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def differences(
    first: Sequence[Judged], second: Sequence[Judged], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Difference]:
    """Metrics that both methods have, with percentile intervals.

    Args:
        first, second: runs of one method each, one per seed, all on the same photos in the same order. With as many
            seeds on both sides, draws of seeds are the same for both, too.
        resamples: number of draws.
        seed: of the draws; the same seed, the same intervals.
        level: share of the draws that the interval holds.

    Raises:
        ValueError: runs on other photos, or none.
    """
    runs = [*first, *second]
    if not first or not second or any(run.image_ids != runs[0].image_ids for run in runs):
        raise ValueError("runs must be judged on the same photos")
    draws = draw_photos(len(runs[0].image_ids), resamples, seed)
    generator = np.random.default_rng([seed, 1])
    weights = [_seed_draws(len(group), resamples, generator) for group in (first, second)]
    if len(first) == len(second):
        weights[1] = weights[0]
    drawn = [_means(group, draws, w) for group, w in zip((first, second), weights, strict=True)]
    plain = [_plain(group) for group in (first, second)]
    edges = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
    found = {}
    for name in plain[0]:
        if name in plain[1]:
            low, high = np.percentile(drawn[1][name] - drawn[0][name], edges)
            found[name] = Difference(plain[0][name], plain[1][name], float(low), float(high))
    return found


def _seed_draws(seeds: int, resamples: int, generator: np.random.Generator) -> Values:
    """Weights of the runs in every draw, float64 [R, S], each row adding up to 1."""
    return np.asarray(generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds)


def _shared_names(metrics: Iterable[dict[str, Any]]) -> list[str]:
    first, *others = metrics
    return [name for name in first if all(name in other for other in others)]


def _means(group: Sequence[Judged], draws: Draws, weights: Values) -> dict[str, Values]:
    values = [run.values(draws) for run in group]
    return {n: (np.stack([v[n] for v in values], 1) * weights).sum(1) for n in _shared_names(values)}


def _plain(group: Sequence[Judged]) -> dict[str, float]:
    values = [run.itself() for run in group]
    return {name: float(np.mean([v[name] for v in values])) for name in _shared_names(values)}
