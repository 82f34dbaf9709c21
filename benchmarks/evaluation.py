"""Selection and evaluation: NMS of all classes at once against a loop, faster-coco-eval against pycocotools.

Prints two Markdown tables of CPU time, which other programs on the machine do not lengthen. All pictures are drawn;
the two metrics are checked to be equal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import product

import numpy as np
from pycocotools import mask as coco_mask

from cim.cli.common import parser, run
from cim.core.regions import RegionSet
from cim.evaluation.coco_results import load_ground_truth, read_results
from cim.evaluation.diagnosis import diagnose
from cim.evaluation.metrics import evaluate_coco, evaluate_voc
from cim.inference.selection import box_iou_published, select_index

SIZE = (120, 160)


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    target = parser(__doc__, "python benchmarks/evaluation.py --images 5000")
    target.add_argument("--images", type=int, default=5000)
    target.add_argument("--classes", type=int, default=80)
    target.add_argument("--detections", type=int, default=50, help="per image")
    return target


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    args = get_parser().parse_args(argv)
    print("| NMS, median CPU ms per image | matrix, ranked walk | loop over pairs | ratio |\n|---|---|---|---|")
    for count, classes, nms in product((200, 1000), (20, 80), ("box", "mask")):
        print(nms_row(count, classes, nms))
    truth, results = pictures(args.images, args.classes, args.detections)
    print(f"\n{args.images} images, {len(truth['annotations'])} instances, {len(results)} detections\n")
    loaded = load_ground_truth(truth)
    start = time.process_time()
    checked = read_results(results, loaded)
    checking = time.process_time() - start
    print("| CPU seconds | faster-coco-eval | pycocotools | ratio |\n|---|---|---|---|")
    for name, evaluate in (("VOC metric (4 IoU)", evaluate_voc), ("COCO metric (10 IoU, 4 sizes)", evaluate_coco)):
        seconds, values = [], []
        for backend in ("faster", "pycocotools"):
            start = time.process_time()
            values.append(evaluate(loaded, checked, backend))
            seconds.append(time.process_time() - start)
        key = next(iter(values[0]))
        assert abs(values[0][key] - values[1][key]) < 1e-9, values
        print(f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} | {seconds[1] / seconds[0]:.1f}x |")
    print(f"| checking the results, once before | {checking:.1f} | | |")
    print(f"| diagnosis | {timed(lambda: diagnose(loaded, checked), 1) / 1000:.1f} | | |")


def nms_row(count: int, classes: int, nms: str) -> str:
    """One line of the first table."""
    regions, scores = proposals(count), np.random.default_rng(1).random((count, classes)).astype(np.float32) ** 8
    ours = timed(lambda: select_index(regions, scores, score_threshold=1e-5, nms=nms, nms_iou=0.3, limit=100))
    slow = timed(lambda: loop_nms(regions, scores, nms), repeats=1)
    return f"| {nms}, N = {count}, C = {classes} | {ours:.1f} | {slow:.0f} | {slow / ours:.0f}x |"


def timed(function: Callable[[], object], repeats: int = 5) -> float:
    """Median milliseconds."""
    values = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        values.append(1000 * (time.process_time() - start))
    return float(np.median(values))


def loop_nms(regions: RegionSet, scores: np.ndarray, nms: str) -> list[tuple[int, int]]:
    """One class and one pair after the other; overlaps are given, as they are to the other."""
    iou = (box_iou_published(regions.boxes, regions.size) if nms == "box" else regions.iou()).tolist()
    kept = []
    for class_id in range(scores.shape[1]):
        column = scores[:, class_id].tolist()
        alive: list[int] = []
        for i in sorted((i for i in range(len(column)) if column[i] > 1e-5), key=lambda i: -column[i]):
            if all(iou[i][j] <= 0.3 for j in alive):
                alive.append(i)
        kept += [(i, class_id) for i in alive]
    return sorted(kept, key=lambda pair: -scores[pair])[:100]


def ellipse(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]."""
    y, x = np.ogrid[: size[0], : size[1]]
    centre, radius = rng.random(2) * size, 4 + rng.random(2) * np.array(size) / 4
    return ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 <= 1


def proposals(count: int) -> RegionSet:
    """Random unions of 400 cells on a picture of 375 x 500."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 400, (24, 32)).repeat(16, 0).repeat(16, 1)[:375, :500]
    members = rng.random((count, 400)) < rng.choice([0.02, 0.05, 0.2], (count, 1))
    return RegionSet(cells.astype(np.int32), members).compact()


def pictures(images: int, classes: int, detections: int) -> tuple[dict, list[dict]]:
    """COCO ground truth (7 instances per image) and results (half near an instance)."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for image_id in range(images):
        masks = np.stack([ellipse(rng, SIZE) for _ in range(7)])
        labels = rng.integers(1, classes + 1, 7)
        for rle, mask, label in zip(encode(masks), masks, labels, strict=True):
            annotations.append(
                {"image_id": image_id, "category_id": int(label), "segmentation": rle, "area": float(mask.sum())}
            )
        near = rng.integers(0, 7, detections)
        shifted = np.stack([np.roll(masks[n], rng.integers(-9, 10, 2), (0, 1)) for n in near])
        wanted = np.where(rng.random(detections) < 0.5, labels[near], rng.integers(1, classes + 1, detections))
        for rle, label, score in zip(encode(shifted), wanted, rng.random(detections), strict=True):
            results.append(
                {"image_id": image_id, "category_id": int(label), "segmentation": rle, "score": float(score)}
            )
    truth = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, classes + 1)],
        "annotations": annotations,
    }
    return truth, results


def encode(masks: np.ndarray) -> list[dict]:
    """Run lengths of bool [n, H, W], ``counts`` as text as in a file."""
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles]


if __name__ == "__main__":
    sys.exit(run(main))
