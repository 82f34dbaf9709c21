"""Recall, composition and oracle mAP of a region store against annotated masks, as tables, json and a plot."""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cim.core.errors import CimError
from cim.core.files import atomic, write_json
from cim.core.regions import RegionSet
from cim.evaluation.coco_results import GroundTruth, load_ground_truth
from cim.evaluation.metrics import evaluate_voc
from cim.inference.oracle import oracle_results
from cim.proposals.quality import IOUS, KINDS, ImageQuality, decode_masks, measure, summarise
from cim.storage.store import Store

MAKE = "cim proposals CONFIG"


def main(args: argparse.Namespace) -> int:
    """Prints the tables."""
    if min(args.counts) < 1:
        raise CimError("numbers of proposals start at 1", found=min(args.counts), fix="--counts 10 100")
    counts = tuple(sorted(set(args.counts)))
    store = Store.open(args.proposals, "regions", fix=MAKE)
    truth = _present(load_ground_truth(args.annotations), store, args.allow_missing)
    measured = [_measure(store, truth, image_id, counts) for image_id in tqdm(truth.sizes, unit="image")]
    summary: dict[str, Any] = {"proposals": store.provenance, **summarise(measured, truth.categories)}
    if not args.no_oracle:
        for count in tqdm(counts, desc="oracle", unit="count"):
            summary["counts"][count] |= _oracle(store, truth, count)
    output = args.output or args.proposals
    write_json(output / "recall.json", summary, indent=1)
    plot(summary, output / "recall.png")
    print(tables(summary))
    print(output / "recall.json")
    return 0


def _present(truth: GroundTruth, store: Store, allow_missing: bool) -> GroundTruth:
    """The annotated photos that have proposals."""
    there = store.seen()
    missing = [image_id for image_id in truth.sizes if not there(image_id)]
    if missing and (not allow_missing or len(missing) == len(truth.sizes)):
        raise CimError(
            f"no proposals for {len(missing)} of {len(truth.sizes)} annotated photos",
            path=store.root,
            found=f"nothing for image {missing[0]}",
            fix=f"{MAKE}, or --allow-missing to leave some out",
        )
    gone = set(missing)
    return GroundTruth(
        truth.name,
        {image_id: size for image_id, size in truth.sizes.items() if image_id not in gone},
        truth.categories,
        [annotation for annotation in truth.annotations if annotation["image_id"] not in gone],
    )


def _measure(store: Store, truth: GroundTruth, image_id: int | str, counts: tuple[int, ...]) -> ImageQuality:
    regions = store.load_regions(image_id)
    if regions.size != truth.sizes[image_id]:
        raise CimError(
            f"proposals of image {image_id} have another size than its masks",
            path=store.path(image_id),
            expected=truth.sizes[image_id],
            found=regions.size,
        )
    objects = [a for a in truth.by_image[image_id] if not a["iscrowd"]]
    masks = decode_masks([a["rle"] for a in objects], regions.size)
    return measure(regions, masks, [a["category_id"] for a in objects], counts)


def _oracle(store: Store, truth: GroundTruth, count: int) -> dict[str, float]:
    """mAP in percent of the best of the first ``count`` proposals, ranked by their true IoU."""

    @lru_cache(maxsize=1)
    def first(image_id: int | str) -> RegionSet:
        regions = store.load_regions(image_id)
        return regions.select(np.argsort(-regions.scores, kind="stable")[:count])

    metrics = evaluate_voc(truth, oracle_results(truth, first, "iou"), ious=IOUS)
    return {f"oracle@{iou:.2f}": metrics[f"mAP_present@{iou:.2f}"] for iou in IOUS}


def tables(summary: dict[str, Any]) -> str:
    """Markdown: recall, composition, classes and sizes."""
    rows = summary["counts"]
    recall = ["abo", *(f"recall@{iou:.2f}" for iou in IOUS)]
    recall += [f"oracle@{iou:.2f}" for iou in IOUS if f"oracle@{iou:.2f}" in next(iter(rows.values()))]
    parts = [
        f"{summary['images']} photos, {summary['objects']} objects",
        _table(
            "proposals",
            ["found", *recall],
            {n: [row["proposals"], *(row[k] for k in recall)] for n, row in rows.items()},
        ),
        _table("first", KINDS, {n: [row[kind] for kind in KINDS] for n, row in rows.items()}),
    ]
    last = max(rows)
    for group in ("per_class", "per_size"):
        columns = ["abo", *(f"recall@{iou:.2f}" for iou in IOUS)]
        values = {
            name: [found["objects"], *(found["counts"][last][k] for k in columns)]
            for name, found in summary[group].items()
            if found["objects"]
        }
        parts.append(_table(f"{group.replace('_', ' ')}, {last} proposals", ["objects", *columns], values))
    return "\n\n".join(parts)


def _table(corner: str, columns: Any, rows: dict[Any, list[Any]]) -> str:
    lines = [[corner, *columns], ["---"] * (len(columns) + 1)]
    lines += [[str(name), *(_text(value) for value in row)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: float | None) -> str:
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    return f"{value:.3f}" if value <= 1 else f"{value:.1f}"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Recall and composition against the number of proposals, one PNG."""
    from matplotlib.figure import Figure  # no pyplot: no window system, no state

    rows = summary["counts"]
    counts = list(rows)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key in ("abo", *(f"recall@{iou:.2f}" for iou in IOUS)):
        left.plot(counts, [np.nan if rows[n][key] is None else rows[n][key] for n in counts], marker="o", label=key)
    shares = [[rows[n][kind] or 0 for n in counts] for kind in KINDS]
    right.stackplot(counts, shares, labels=KINDS)
    for axes, title in ((left, "recall"), (right, "composition")):
        axes.set(xscale="log", xlabel="proposals", title=title, ylim=(0, 1), xticks=counts, xticklabels=counts)
        axes.minorticks_off()
        axes.legend(fontsize=8, loc="lower right")
    left.grid(alpha=0.3)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
